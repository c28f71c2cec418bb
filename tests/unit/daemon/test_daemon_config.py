from __future__ import annotations

import tomllib

import pytest

from cradled.daemon import builtins, logs, sections
from cradled.daemon.config import (
    LEVELS,
    Config,
    ConfigError,
    check_sections,
    from_tables,
    lift,
    nearest,
    to_toml,
)
from cradled.plugin import types as t


def read(text: str, *imported: str) -> tuple[Config, list[str]]:
    return from_tables(tomllib.loads(part) for part in (text, *imported))


def test_defaults() -> None:
    config, warnings = from_tables([])
    assert config == Config()
    assert warnings == []
    grpc, ttrpc = builtins.endpoints(config)
    assert grpc.address == "/run/cradled/cradled.sock"
    assert ttrpc.address == "/run/cradled/cradled.sock.ttrpc"


@pytest.mark.parametrize(
    "text",
    [
        'version = 2\n[grpc]\naddress = "/a.sock"\nuid = 7\n[ttrpc]\naddress = "/b"',
        'version = 3\n[grpc]\naddress = "/a.sock"\nuid = 7\n[ttrpc]\naddress = "/b"',
        'version = 4\n[plugins."io.containerd.server.v1.grpc"]\naddress = "/a.sock"\nuid = 7\n'
        '[plugins."io.containerd.server.v1.ttrpc"]\naddress = "/b"',
    ],
)
def test_listeners_in_every_version(text: str) -> None:
    config, warnings = read(text)
    grpc, ttrpc = builtins.endpoints(config)
    assert (grpc.address, grpc.uid, ttrpc.address) == ("/a.sock", 7, "/b")
    assert warnings == []


def test_old_tables_are_lifted() -> None:
    lifted = lift(
        tomllib.loads(
            'version = 2\n[debug]\nlevel = "debug"\naddress = "/d"\n[metrics]\naddress = "m"\n'
            'grpc_histogram = true\n[grpc]\ntcp_address = "t"\n'
            '[plugins."io.containerd.internal.v1.restart"]\ninterval = "3s"'
        )
    )
    assert lifted == {
        "version": 4,
        "debug": {"level": "debug"},
        "plugins": {
            "io.containerd.server.v1.debug": {"address": "/d"},
            "io.containerd.server.v1.metrics": {"address": "m"},
            "io.containerd.server.v1.grpc-tcp": {"address": "t"},
            "io.containerd.metrics.v1.grpc-prometheus": {"grpc_histogram": True},
            "io.containerd.monitor.container.v1.restart": {"interval": "3s"},
        },
    }


def test_newer_version_is_refused() -> None:
    with pytest.raises(ConfigError, match="equal to or less than 4, got 5"):
        read("version = 5")


def test_import_newer_than_the_file_is_refused() -> None:
    with pytest.raises(ConfigError, match="newer"):
        read("version = 2", "version = 3")


def test_imports_merge() -> None:
    uri = "io.containerd.gc.v1.scheduler"
    config, _ = read(
        f'version = 2\nroot = "/a"\ndisabled_plugins = ["x.y"]\n'
        f'[plugins."{uri}"]\nmutation_threshold = 1\ndeletion_threshold = 2',
        f'version = 2\nroot = "/b"\ndisabled_plugins = ["z"]\n'
        f'[plugins."{uri}"]\nmutation_threshold = 3',
    )
    assert config.root == "/b"
    assert config.disabled_plugins == ("x.y", "z")
    assert config.plugins[uri] == {"mutation_threshold": 3, "deletion_threshold": 2}


def test_unknown_keys_are_warned_about_with_the_nearest() -> None:
    config, warnings = read(
        'version = 2\nrot = "/a"\n[plugins."io.containerd.gc.v1.scheduler"]\npause_treshold = 1.0\n'
        '[plugins."com.example.absent"]\nwhatever = 1\n[debug]\nlevl = "info"'
    )
    warnings += check_sections(config, builtins.REGISTRATIONS)
    assert warnings == [
        'Ignoring unknown key "rot" in configuration (did you mean "root"?)',
        'Ignoring unknown key "levl" in debug (did you mean "level"?)',
        'Ignoring unknown key "pause_treshold" in io.containerd.gc.v1.scheduler '
        '(did you mean "pause_threshold"?)',
    ]


def test_keys_of_the_original_without_effect_are_no_surprise() -> None:
    _, warnings = read(
        'version = 3\n[timeouts]\na = "1s"\n[cgroup]\npath = ""\n[proxy_plugins]\n'
        "[stream_processors]"
    )
    assert warnings == []


@pytest.mark.parametrize("text", ["root = 3", "oom_score = true", "debug = {level = 1}"])
def test_wrong_types_name_the_key(text: str) -> None:
    with pytest.raises(ConfigError, match=r'key "(root|oom_score|level)" wants'):
        read("version = 2\n" + text)


def test_whole_numbers_do_for_fractions() -> None:
    config, _ = read('version = 2\n[plugins."io.containerd.gc.v1.scheduler"]\npause_threshold = 0')
    scheduler = next(r for r in builtins.REGISTRATIONS if r.type == t.GC)
    assert config.section(scheduler) == sections.Scheduler(pause_threshold=0.0)


def test_written_configuration_reads_back() -> None:
    config = Config(
        root='/with "quotes" and \\ and \x01',
        required_plugins=("a", "b"),
        plugins={"other.one": {"nested": {"x y": [1, True]}, "f": 0.5}},
    )
    text = to_toml(config, builtins.REGISTRATIONS)
    again, warnings = read(text)
    assert warnings == []
    assert again.root == config.root
    assert again.plugins["other.one"] == config.plugins["other.one"]
    assert to_toml(again, builtins.REGISTRATIONS) == text
    assert tomllib.loads(text)["version"] == 4


def test_default_configuration_has_a_section_for_every_plugin_with_keys() -> None:
    tables = tomllib.loads(to_toml(Config(), builtins.REGISTRATIONS))["plugins"]
    wanted = {r.uri for r in builtins.REGISTRATIONS if r.config is not None}
    assert wanted <= tables.keys()


def test_address_flag_moves_both_sockets() -> None:
    config, _ = read('version = 2\n[ttrpc]\naddress = "/elsewhere"\n[grpc]\ngid = 3')
    grpc, ttrpc = builtins.endpoints(builtins.with_address(config, "/x.sock"))
    assert (grpc.address, grpc.gid, ttrpc.address) == ("/x.sock", 3, "/x.sock.ttrpc")


@pytest.mark.parametrize(
    ("word", "found"), [("addres", "address"), ("zzz", ""), ("root", "root"), ("stte", "state")]
)
def test_nearest(word: str, found: str) -> None:
    assert nearest(word, ["address", "root", "state"]) == found


@pytest.mark.parametrize(
    ("text", "value"),
    [("100ms", 0.1), ("1m30s", 90.0), ("0s", 0.0), ("", 0.0), ("1.5h", 5400.0), ("2us", 2e-6)],
)
def test_durations(text: str, value: float) -> None:
    assert sections.seconds(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["1", "s", "1x", "1s ", "-1s"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(ConfigError, match="no duration"):
        sections.seconds(text)


@pytest.mark.parametrize("text", ['level = "loud"', 'format = "xml"'])
def test_unknown_log_words_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="unknown log"):
        read(f"version = 2\n[debug]\n{text}")


def test_every_level_is_one_the_log_knows() -> None:
    assert set(LEVELS) == logs._LEVELS.keys()
