from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from cradled.daemon import builtins, config_check, config_file, config_text, logs, sections
from cradled.daemon.config import (
    LEVELS,
    TIMEOUTS,
    Config,
    ConfigError,
    Debug,
    ProxyPlugin,
    StreamProcessor,
)
from cradled.daemon.config_check import Problem, line_of
from cradled.daemon.durations import seconds
from cradled.daemon.spelling import nearest
from cradled.plugin import types as t

SCHEDULER = "io.containerd.gc.v1.scheduler"
KNOWN = builtins.known


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path


def examine(directory: Path, text: str, **others: str) -> tuple[Config, list[Problem]]:
    """What a file gives that lies beside others (``name=text`` is ``name.toml``)."""
    for name, content in {"main": text, **others}.items():
        (directory / f"{name}.toml").write_text(content)
    return config_file.examine(f"{directory}/main.toml", must_exist=True, known=KNOWN)


def read(directory: Path, text: str, **others: str) -> Config:
    config, problems = examine(directory, text, **others)
    assert problems == []
    return config


def said(problems: list[Problem]) -> list[str]:
    return [str(one._replace(file=Path(one.file).name)) for one in problems]


def test_defaults(directory: Path) -> None:
    path = f"{directory}/absent.toml"
    assert config_file.load(path, must_exist=False, known=KNOWN) == (Config(), [])
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.toml: No such file"):
        config_file.load(path, must_exist=True, known=KNOWN)
    grpc, ttrpc = builtins.endpoints(Config())
    assert grpc.address == "/run/cradled/cradled.sock"
    assert ttrpc.address == "/run/cradled/cradled.sock.ttrpc"


@pytest.mark.parametrize(
    "text",
    [
        '[grpc]\naddress = "/a.sock"\nuid = 7\n[ttrpc]\naddress = "/b"',
        'version = 1\n[grpc]\naddress = "/a.sock"\nuid = 7\n[ttrpc]\naddress = "/b"',
        'version = 2\n[grpc]\naddress = "/a.sock"\nuid = 7\n[ttrpc]\naddress = "/b"',
        'version = 3\n[grpc]\naddress = "/a.sock"\nuid = 7\n[ttrpc]\naddress = "/b"',
        'version = 4\n[plugins."io.containerd.server.v1.grpc"]\naddress = "/a.sock"\nuid = 7\n'
        '[plugins."io.containerd.server.v1.ttrpc"]\naddress = "/b"',
    ],
)
def test_listeners_in_every_version(directory: Path, text: str) -> None:
    grpc, ttrpc = builtins.endpoints(read(directory, text))
    assert (grpc.address, grpc.uid, ttrpc.address) == ("/a.sock", 7, "/b")


def test_import_newer_than_the_file_is_refused(directory: Path) -> None:
    _, problems = examine(directory, 'version = 2\nimports = ["b.toml"]', b="version = 3")
    assert said(problems) == [
        "b.toml: error: imported config version 3 is newer than the file's own, 2"
    ]


def test_imports_merge(directory: Path) -> None:
    config = read(
        directory,
        f'version = 3\nimports = ["d/*.toml"]\nroot = "/a"\ndisabled_plugins = ["x.y"]\n'
        f'[plugins."{SCHEDULER}"]\nmutation_threshold = 1\ndeletion_threshold = 2',
    )
    assert config.root == "/a"
    (directory / "d").mkdir()
    (directory / "d/2.toml").write_text(
        f'version = 2\nroot = "/b"\ndisabled_plugins = ["z"]\nimports = ["../e.toml"]\n'
        f'[plugins."{SCHEDULER}"]\nmutation_threshold = 3'
    )
    (directory / "d/1.toml").write_text('version = 2\nroot = "/never"')
    (directory / "e.toml").write_text('state = "/e"\nimports = ["main.toml"]')
    config, problems = config_file.examine(f"{directory}/main.toml", must_exist=True, known=KNOWN)
    assert problems == []
    assert (config.root, config.state) == ("/b", "/e")
    assert config.disabled_plugins == ("x.y", "z")
    assert config.plugins[SCHEDULER] == {"mutation_threshold": 3, "deletion_threshold": 2}


def test_entries_are_replaced_as_a_whole(directory: Path) -> None:
    config, problems = examine(
        directory,
        'imports = ["b.toml"]\n[proxy_plugins.a]\ntype = "snapshot"\naddress = "/a"\n'
        "[proxy_plugins.b]\ncapabilities = ['x']",
        b='[proxy_plugins.a]\ntype = "diff"\n[proxy_plugins.a.exports]\nroot = "/r"',
    )
    assert config.proxy_plugins["a"]._asdict() == {
        "type": "diff",
        "address": "",
        "platform": "",
        "exports": {"root": "/r"},
        "capabilities": (),
    }
    assert config.proxy_plugins["b"].capabilities == ("x",)
    assert not problems
    uris = {registration.uri for registration in builtins.proxies(config)}
    assert uris == {"io.containerd.differ.v1.a", ".b"}


def test_a_proxy_cannot_have_the_name_of_a_plugin_of_ours() -> None:
    config = Config(proxy_plugins={"native": ProxyPlugin(type="snapshot")})
    with pytest.raises(
        ConfigError, match=r"there is a plugin io\.containerd\.snapshotter\.v1\.native"
    ):
        list(builtins.proxies(config))


def test_missing_import_is_told(directory: Path) -> None:
    _, problems = examine(directory, 'imports = ["none.toml", "none/*.toml"]')
    assert said(problems) == [
        f"error: cannot read {directory}/none.toml: No such file or directory"
    ]


def test_processors_and_timeouts_come_on_top_of_the_defaults(directory: Path) -> None:
    config = read(
        directory,
        'version = 2\n[timeouts]\n"io.containerd.timeout.shim.load" = "1m"\n'
        '[stream_processors.mine]\naccepts = ["a"]\nreturns = "b"\npath = "p"\nargs = ["-x"]',
    )
    assert config.timeouts == TIMEOUTS | {"io.containerd.timeout.shim.load": "1m"}
    assert config.timeout("shim.load") == 60
    assert config.timeout("task.state") == 2
    mine = StreamProcessor(accepts=("a",), returns="b", path="p", args=("-x",))
    assert config.stream_processors == {**Config().stream_processors, "mine": mine}


def test_every_problem_is_told_at_once(directory: Path) -> None:
    _, problems = examine(
        directory,
        'version = 2\nrot = "/a"\nimports = ["b.toml", "c.toml"]\noom_score = "x"\n'
        f'[plugins."{SCHEDULER}"]\npause_treshold = 1.0\nschedule_delay = "1 s"\n'
        '[plugins."com.example.absent"]\nwhatever = 1\n[debug]\nlevl = "info"\nlevel = "loud"',
        b='[plugins."io.containerd.gc.v1.schedulr"]\n[timeouts]\n"io.containerd.timeout.shim.lod"'
        ' = "1s"\n[proxy_plugins.x]\nadress = "/x"',
        c="what is this",
    )
    assert sorted(said(problems)) == [
        'b.toml:1: note: no such plugin here: plugins."io.containerd.gc.v1.schedulr" '
        '(did you mean "io.containerd.gc.v1.scheduler"?)',
        'b.toml:3: warning: Ignoring unknown key in TOML: timeouts."io.containerd.timeout.shim.lod"'
        ' (did you mean "io.containerd.timeout.shim.load"?)',
        "b.toml:5: warning: Ignoring unknown key in TOML: proxy_plugins.x.adress "
        '(did you mean "address"?)',
        f"error: {directory}/c.toml: Expected '=' after a key in a key/value pair "
        "(at line 1, column 6)",
        'main.toml:11: warning: Ignoring unknown key in TOML: debug.levl (did you mean "level"?)',
        'main.toml:12: error: debug: unknown log level "loud" '
        "(trace, debug, info, warn, error, fatal, panic): debug.level",
        'main.toml:2: warning: Ignoring unknown key in TOML: rot (did you mean "root"?)',
        "main.toml:4: error: configuration: key \"oom_score\" wants a whole number, not 'x': "
        "oom_score",
        f'main.toml:6: warning: Ignoring unknown key in TOML for plugin: plugins."{SCHEDULER}".'
        'pause_treshold (did you mean "pause_threshold"?)',
        f'main.toml:7: error: {SCHEDULER}: key "schedule_delay": "1 s" is no duration (such as '
        f'"100ms", "1m30s"): plugins."{SCHEDULER}".schedule_delay',
    ]


def test_tables_that_have_moved_are_told_where(directory: Path) -> None:
    _, problems = examine(directory, "version = 4\n[grpc]\naddress = '/x'")
    assert said(problems) == [
        "main.toml:2: warning: Ignoring unknown key in TOML: grpc "
        '(did you mean plugins."io.containerd.server.v1.grpc"?)'
    ]


def test_strict_refuses_what_is_otherwise_a_warning(directory: Path) -> None:
    examine(directory, 'rott = "x"')
    path = f"{directory}/main.toml"
    _, problems = config_file.load(path, must_exist=True, known=KNOWN)
    assert [one.fields for one in problems] == [
        {"key": "rott", "file": path, "line": 1, "nearest": "root"}
    ]
    with pytest.raises(ConfigError, match=r"main.toml:1: warning: Ignoring unknown key .*: rott"):
        config_file.load(path, must_exist=True, known=KNOWN, strict=True)


def test_keys_without_effect_are_noted_where_they_ask_for_something() -> None:
    said = config_check.problems(
        {"plugins": {"absent": {"x": 1}, "b": {"uid": 0}, "c": {"uid": 3}}},
        {"b": sections.TtrpcServer, "c": sections.TtrpcServer},
        {"b": {"uid": "so"}, "c": {"uid": "so"}},
    )
    assert said == [Problem("note", "no effect: so", ("plugins", "c", "uid"))]
    names = ["io.containerd.timeout.bolt.open", "io.containerd.timeout.shim.load"]
    said = config_check.problems(
        {"timeouts": dict.fromkeys(names, "9s")}, {}, builtins.known().inert
    )
    assert [(one.level, one.path) for one in said] == [("note", ("timeouts", names[0]))]


def test_keys_of_old_versions_are_noted(directory: Path) -> None:
    _, problems = examine(directory, "no_subreaper = false\nplugin_dir = '/x'")
    assert [(one.level, one.path) for one in problems] == [("note", ("plugin_dir",))]


def test_empty_words_for_the_log_are_the_defaults(directory: Path) -> None:
    config = read(directory, 'version = 2\n[debug]\nlevel = ""\nformat = ""')
    assert config.debug == Debug("", "")


def test_defaults_say_nothing(directory: Path) -> None:
    read(directory, config_text.full(Config(), builtins.known().sections))


def test_what_has_no_effect_is_a_key_that_is_there() -> None:
    known = builtins.known()
    for uri, keys in known.inert.items():
        cls = known.sections.get(uri)
        if cls is not None:
            assert keys.keys() <= set(cls._fields)
        else:
            assert uri in ("", "proxy_plugins", "timeouts")
    assert known.inert["timeouts"].keys() < TIMEOUTS.keys()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("root = 3", 'key "root" wants a text, not 3'),
        ("oom_score = true", 'key "oom_score" wants a whole number, not True'),
        ("debug = {level = 1}", 'key "level" wants a text, not 1'),
        ("imports = [1]", 'key "imports" wants a list of texts'),
        ("imports = 1", 'key "imports" wants a list of texts'),
        ("debug = 1", "debug must be a table, not 1"),
        ("cgroup = 1", "cgroup must be a table, not 1"),
        ("plugins = 1", "plugins must be a table, not 1"),
        ("grpc = 1", "grpc must be a table, not 1"),
        ("plugins = {a = 1}", 'plugins."a" must be a table'),
        ("timeouts = 1", 'key "timeouts" wants a table of texts, not 1'),
        ('timeouts = {"io.containerd.timeout.shim.load" = "x"}', '"x" is no duration'),
        ("proxy_plugins = {a = 1}", "proxy_plugins.a must be a table, not 1"),
        ("proxy_plugins = {a = {exports = {a = 1}}}", 'key "exports" wants a table of texts'),
        ('version = "x"', "version must be a whole number, not 'x'"),
        ("version = 5", "expected containerd config version equal to or less than 4, got 5"),
        (
            '[plugins."io.containerd.metadata.v1.bolt"]\ncontent_sharing_policy = "all"',
            'content_sharing_policy is "shared" or "isolated", not "all"',
        ),
    ],
)
def test_wrong_values_name_the_key(directory: Path, text: str, wanted: str) -> None:
    head = "" if text.startswith("version") else "version = 2\n"
    examine(directory, head + text)
    with pytest.raises(ConfigError) as caught:
        config_file.load(f"{directory}/main.toml", must_exist=True, known=KNOWN)
    assert wanted in str(caught.value)


def test_whole_numbers_do_for_fractions(directory: Path) -> None:
    config = read(directory, f'version = 2\n[plugins."{SCHEDULER}"]\npause_threshold = 0')
    scheduler = next(r for r in builtins.REGISTRATIONS if r.type == t.GC)
    assert config.section(scheduler) == sections.Scheduler(pause_threshold=0.0)


def test_written_configuration_reads_back(directory: Path) -> None:
    config = Config(
        root='/with "quotes" and \\ and \x01',
        required_plugins=("a", "b"),
        plugins={"other.one": {"nested": {"x y": [1, True]}, "f": 0.5, "list": [{"a": 1}]}},
    )
    text = config_text.full(config, builtins.known().sections)
    again = read(directory, text)
    assert again.root == config.root
    assert again.plugins["other.one"] == config.plugins["other.one"]
    assert config_text.full(again, builtins.known().sections) == text
    assert tomllib.loads(text)["version"] == 4


def test_times_are_written_as_they_were(directory: Path) -> None:
    text = "version = 4\n\n[plugins]\n\n[plugins.a]\nat = 2026-01-02T03:04:05\nbig = 1e+20\n"
    assert config_text.text(tomllib.loads(text)) == text


def test_default_configuration_has_a_section_for_every_plugin_with_keys() -> None:
    tables = tomllib.loads(config_text.full(Config(), builtins.known().sections))["plugins"]
    wanted = {r.uri for r in builtins.REGISTRATIONS if r.config is not None}
    assert wanted <= tables.keys()


def test_address_flag_moves_both_sockets(directory: Path) -> None:
    config = read(directory, 'version = 2\n[ttrpc]\naddress = "/elsewhere"\n[grpc]\ngid = 3')
    grpc, ttrpc = builtins.endpoints(builtins.with_address(config, "/x.sock"))
    assert (grpc.address, grpc.gid, ttrpc.address) == ("/x.sock", 3, "/x.sock.ttrpc")


@pytest.mark.parametrize(
    ("word", "found"), [("addres", "address"), ("zzz", ""), ("root", "root"), ("stte", "state")]
)
def test_nearest(word: str, found: str) -> None:
    assert nearest(word, ["address", "root", "state"]) == found


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("a",), 1),
        (("t", "b.c", "x"), 4),
        (("t", "b.c", "y", "z"), 5),
        (("moved", "elsewhere", "q"), 8),
        (("moved", "x"), 0),  # two are called so
        (("none",), 0),
    ],
)
def test_lines_of_keys(path: tuple[str, ...], line: int) -> None:
    text = 'a = 1\n[t]\n[t."b.c"] # x = 1\nx = 2\ny.z = 3\n[[l]]\nx = """\nq = 3\n== """\n[z]\n'
    assert line_of(text, path) == line


@pytest.mark.parametrize(
    ("text", "value"),
    [("100ms", 0.1), ("1m30s", 90.0), ("0s", 0.0), ("", 0.0), ("1.5h", 5400.0), ("2us", 2e-6)],
)
def test_durations(text: str, value: float) -> None:
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["1", "s", "1x", "1s ", "-1s"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(ValueError, match="no duration"):
        seconds(text)


def test_every_level_is_one_the_log_knows() -> None:
    assert set(LEVELS) == logs._LEVELS.keys()
