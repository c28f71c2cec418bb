import json

import pytest

from cradled.errors import InvalidArgument, NotFound
from cradled.oci import capabilities, spec, users
from cradled.oci.image import RunConfig
from cradled.oci.users import User


def build(*options: spec.Option) -> spec.Spec:
    return spec.build("ns", "id", *options)


def test_default_is_confined() -> None:
    made = build()
    assert made["ociVersion"] == "1.0.2"
    assert made["process"]["noNewPrivileges"] is True
    assert made["process"]["capabilities"]["bounding"] == list(capabilities.DEFAULT)
    assert "inheritable" not in made["process"]["capabilities"]
    assert made["process"]["rlimits"] == [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}]
    assert made["linux"]["cgroupsPath"] == "/ns/id"
    assert made["linux"]["resources"]["devices"] == [{"allow": False, "access": "rwm"}]
    kinds = [n["type"] for n in made["linux"]["namespaces"]]
    assert kinds == ["pid", "ipc", "uts", "mount", "network"]
    assert "/proc/kcore" in made["linux"]["maskedPaths"]
    assert "/proc/sys" in made["linux"]["readonlyPaths"]
    destinations = [m["destination"] for m in made["mounts"]]
    assert destinations == [
        *("/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/run"),
    ]
    json.dumps(made)


def test_two_specs_share_nothing() -> None:
    one, other = build(), build(spec.env(["A=1"]), spec.privileged(), spec.mount("/m", "/s"))
    assert one == build()
    assert other != one


@pytest.mark.parametrize(
    ("config", "command", "entrypoint", "expected"),
    [
        (RunConfig(cmd=["sh"]), [], "", ["sh"]),
        (RunConfig(cmd=["sh"]), ["ls", "-l"], "", ["ls", "-l"]),
        (RunConfig(entrypoint=["/init"], cmd=["sh"]), [], "", ["/init", "sh"]),
        (RunConfig(entrypoint=["/init"], cmd=["sh"]), ["x"], "", ["/init", "x"]),
        (RunConfig(entrypoint=["/init"], cmd=["sh"]), [], "/other", ["/other"]),
        (RunConfig(entrypoint=["/init"], cmd=["sh"]), ["x"], "/other", ["/other", "x"]),
    ],
)
def test_command_of_image(
    config: RunConfig, command: list[str], entrypoint: str, expected: list[str]
) -> None:
    assert build(spec.image(config, command, entrypoint))["process"]["args"] == expected


def test_image_without_command() -> None:
    with pytest.raises(InvalidArgument, match="names no command"):
        build(spec.image(RunConfig()))


def test_image_gives_environment_and_directory() -> None:
    config = RunConfig(cmd=["x"], env=["PATH=/bin", "LANG=C"], working_dir="/srv")
    process = build(spec.image(config), spec.env(["LANG=de", "A=b=c"]))["process"]
    assert process["env"] == ["PATH=/bin", "LANG=de", "A=b=c"]
    assert process["cwd"] == "/srv"


def test_env_removes_a_bare_name() -> None:
    process = build(spec.env(["A=1", "B=2"]), spec.env(["A", "NEVER"]))["process"]
    assert process["env"] == [spec.DEFAULT_PATH, "B=2"]


def test_tty_keeps_the_images_term() -> None:
    assert "TERM=xterm" in build(spec.tty())["process"]["env"]
    process = build(spec.env(["TERM=vt100"]), spec.tty())["process"]
    assert process["terminal"] is True
    assert [e for e in process["env"] if e.startswith("TERM=")] == ["TERM=vt100"]


@pytest.mark.parametrize(
    ("text", "source", "destination", "access"),
    [("/a:/b", "/a", "/b", "rw"), ("/a:/b:ro", "/a", "/b", "ro"), ("/a:/b:rw", "/a", "/b", "rw")],
)
def test_volume(text: str, source: str, destination: str, access: str) -> None:
    made = build(spec.volume(text))["mounts"][-1]
    assert made == {
        "destination": destination,
        "type": "bind",
        "source": source,
        "options": ["rbind", "rprivate", access],
    }


@pytest.mark.parametrize("text", ["", "/a", "/a:", ":/b", "/a:/b:x", "a:/b", "/a:b", "/a:/b:ro:z"])
def test_bad_volume(text: str) -> None:
    with pytest.raises(InvalidArgument):
        spec.volume(text)


def test_resources() -> None:
    resources = build(spec.memory(64 << 20), spec.cpus(1.5))["linux"]["resources"]
    assert resources["memory"] == {"limit": 64 << 20}
    assert resources["cpu"] == {"quota": 150_000, "period": 100_000}
    with pytest.raises(InvalidArgument):
        spec.memory(1000)
    for count in (0.0, -1.0, float("nan")):
        with pytest.raises(InvalidArgument):
            spec.cpus(count)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("64k", 65536),
        ("64m", 64 << 20),
        ("1.5G", 3 << 29),
        ("2TiB", 2 << 40),
        ("10MB", 10 << 20),
        ("7b", 7),
    ],
)
def test_size(text: str, size: int) -> None:
    assert spec.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "m", "-1", "1x", "1 0", "0x10"])
def test_bad_size(text: str) -> None:
    with pytest.raises(InvalidArgument):
        spec.parse_size(text)


def test_host_network_shares_the_namespace() -> None:
    kinds = [n["type"] for n in build(spec.host_network())["linux"]["namespaces"]]
    assert kinds == ["pid", "ipc", "uts", "mount"]


def test_privileged_undoes_confinement_whatever_the_order() -> None:
    device = {"path": "/dev/x", "type": "c", "major": 1, "minor": 2}
    made = build(spec.seccomp("amd64", (6, 1)), spec.privileged(["chown"], [device]))
    assert made["process"]["capabilities"]["effective"] == ["CAP_CHOWN"]
    assert made["process"]["noNewPrivileges"] is False
    assert {"maskedPaths", "readonlyPaths", "seccomp"}.isdisjoint(made["linux"])
    assert made["linux"]["devices"] == [device]
    assert made["linux"]["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    sysfs = next(m for m in made["mounts"] if m["type"] == "sysfs")
    assert sysfs["options"][-1] == "rw"


def test_capability_names() -> None:
    assert capabilities.normalise(["net_admin", "CAP_CHOWN"]) == ("CAP_NET_ADMIN", "CAP_CHOWN")
    with pytest.raises(InvalidArgument, match="capability"):
        capabilities.normalise(["NET_EVERYTHING"])
    assert capabilities.from_mask(0b1000_0001) == ("CAP_CHOWN", "CAP_SETUID")
    assert capabilities.from_mask(1 << 60) == ()
    assert set(capabilities.DEFAULT) < set(capabilities.ALL)
    assert capabilities.ALL.index("CAP_CHECKPOINT_RESTORE") == 40


PASSWD = "root:x:0:0:root:/root:/bin/sh\nbad line\nweb:x:33:34::/srv:\n7:x:1007:1008::/:\n"
GROUP = "root:x:0:\nwww:x:34:\naudio:x:29:root,web\nvideo:x:44:web\nbroken:x:no:web\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", User(0, 0, (29,))),
        ("root", User(0, 0, (29,))),
        ("0", User(0, 0, (29,))),
        ("web", User(33, 34, (29, 44))),
        ("33", User(33, 34, (29, 44))),
        ("web:audio", User(33, 29)),
        ("web:5", User(33, 5)),
        ("1234", User(1234, 0)),
        ("1234:video", User(1234, 44)),
        ("7", User(1007, 1008)),  # an entry of that name wins over the number
    ],
)
def test_user(text: str, expected: User) -> None:
    assert users.resolve(text, PASSWD, GROUP) == expected


def test_user_without_files() -> None:
    assert users.resolve("") == User()
    assert users.resolve("5:6") == User(5, 6)


def test_unknown_user() -> None:
    with pytest.raises(NotFound, match='user "nosuch" in /etc/passwd'):
        users.resolve("nosuch", PASSWD)
    with pytest.raises(NotFound, match='group "nosuch" in /etc/group'):
        users.resolve("web:nosuch", PASSWD, GROUP)
    with pytest.raises(NotFound):
        users.resolve(str(2**31), PASSWD)


@pytest.mark.parametrize("text", [":", ":5", "web:"])
def test_malformed_user(text: str) -> None:
    with pytest.raises(InvalidArgument):
        users.resolve(text, PASSWD, GROUP)
