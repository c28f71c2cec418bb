import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cradled import identifiers
from cradled.aio import threads
from cradled.client import host, names
from cradled.client.options import Options, look_up, make_spec
from cradled.client.processes import Result, parse_signal
from cradled.core.mount import Mount
from cradled.errors import InvalidArgument, NotFound
from cradled.oci import capabilities, spec
from cradled.oci.image import RunConfig
from cradled.oci.users import User

IMAGE = RunConfig(user="web", env=["PATH=/bin", "A=image"], cmd=["serve"], working_dir="/srv")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    yield
    threads.close()


@pytest.fixture
def root(tmp_path: Path) -> list[Mount]:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0:::\nweb:x:33:34:::\n")
    (tmp_path / "etc/group").write_text("www:x:34:\naudio:x:29:web,root\n")
    return [Mount("bind", str(tmp_path))]


async def make(root: list[Mount], *args: str, **options: object) -> spec.Spec:
    return await make_spec("ns", "box", IMAGE, args, root, Options(**options))  # type: ignore[typeddict-item]


async def test_the_image_decides_what_the_caller_leaves_open(root: list[Mount]) -> None:
    made = await make(root)
    process = made["process"]
    assert process["args"] == ["serve"]
    assert process["cwd"] == "/srv"
    assert process["env"] == ["PATH=/bin", "A=image"]
    assert process["user"] == {"uid": 33, "gid": 34, "additionalGids": [29]}
    assert made["hostname"] == "box"
    assert made["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    assert {"type": "network"} in made["linux"]["namespaces"]
    assert "terminal" not in process


async def test_the_caller_decides_over_the_image(root: list[Mount]) -> None:
    made = await make(
        root,
        "other",
        env={"A": "caller"},
        workdir="/tmp",
        user="5:6",
        hostname="h",
        memory=64 << 20,
        cpus=0.5,
        read_only=True,
        tty=True,
        mounts=["/a:/b:ro"],
        entrypoint="/init",
        spec=[spec.env(["LAST=1"])],
    )
    process = made["process"]
    assert process["args"] == ["/init", "other"]
    assert process["env"] == ["PATH=/bin", "A=caller", "TERM=xterm", "LAST=1"]
    assert process["user"] == {"uid": 5, "gid": 6}
    assert made["root"]["readonly"] is True
    assert made["linux"]["resources"]["memory"] == {"limit": 64 << 20}
    assert made["mounts"][-1]["options"] == ["rbind", "rprivate", "ro"]
    assert (made["hostname"], process["cwd"]) == ("h", "/tmp")


async def test_host_network_brings_name_service(root: list[Mount]) -> None:
    made = await make(root, net="host")
    assert {"type": "network"} not in made["linux"]["namespaces"]
    bound = {m["source"] for m in made["mounts"] if m["type"] == "bind"}
    assert bound == set(host.name_service_files())


async def test_privileged_gets_what_this_process_has(root: list[Mount]) -> None:
    made = await make(root, privileged=True)
    assert "seccomp" not in made["linux"]
    granted = made["process"]["capabilities"]["effective"]
    assert granted == list(host.available_capabilities())
    null = next(d for d in made["linux"]["devices"] if d["path"] == "/dev/null")
    assert (null["type"], null["major"], null["minor"]) == ("c", 1, 3)
    assert not [d for d in made["linux"]["devices"] if d["path"].startswith("/dev/pts/")]


async def test_numbers_need_no_files() -> None:
    assert await look_up("7:8", [Mount("ext4", "/dev/x")]) == User(7, 8)


async def test_unknown_user(root: list[Mount]) -> None:
    with pytest.raises(NotFound, match="nosuch"):
        await make(root, user="nosuch")


def test_available_capabilities_are_those_of_the_process() -> None:
    status = Path("/proc/self/status").read_text()
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("CapPrm"))
    assert sum(1 << capabilities.ALL.index(c) for c in host.available_capabilities()) == (
        int(mask, 16) & (1 << len(capabilities.ALL)) - 1
    )


def test_kernel_version() -> None:
    assert ".".join(map(str, host.kernel())) in os.uname().release


def test_generated_names_are_identifiers() -> None:
    made = {names.generate() for _ in range(200)}
    assert len(made) > 190
    for name in made:
        identifiers.validate(name)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (9, 9),
        (signal.SIGHUP, 1),
        ("15", 15),
        ("TERM", 15),
        ("sigkill", 9),
        ("RTMIN+3", signal.SIGRTMIN + 3),
    ],
)
def test_signals(text: int | str, number: int) -> None:
    assert parse_signal(text) == number


@pytest.mark.parametrize("text", ["", "0", "65", "NOSUCH", "TERM+x", "_DFL", "-1", "SIG_IGN", 0])
def test_bad_signals(text: int | str) -> None:
    with pytest.raises(InvalidArgument, match="signal"):
        parse_signal(text)


def test_result_as_text() -> None:
    assert Result(0, b"caf\xc3\xa9 \xff").output == "café \ufffd"
