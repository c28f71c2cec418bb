"""The shim as a program: every form of the start contract, groups, delete, -info."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import pytest
from harness.shims import (
    PATIENCE,
    PROGRAM,
    SOURCE,
    Channel,
    Shim,
    eventually,
    finish,
    has_ended,
    options,
    running,
)

from cradled.api import runc_options_pb2, task_v3_pb2, types_pb2, wellknown_pb2
from cradled.linux import unix

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def shim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shim]:
    with running(tmp_path_factory.mktemp("shim"), forked=False) as shim:
        yield shim


def test_socket_and_process(shim: Shim) -> None:
    key = f"{shim.grpc}/{shim.mark}/first"
    assert shim.path == f"{shim.directory}/s/{hashlib.sha256(key.encode()).hexdigest()}"
    assert os.stat(shim.path).st_mode & 0o777 == 0o600
    assert os.stat(os.path.dirname(shim.path)).st_mode & 0o777 == 0o700
    assert os.getsid(shim.pid) == shim.pid
    assert os.readlink(f"/proc/{shim.pid}/cwd") == str(shim.bundles / "first")
    own = int(Path("/proc/self/oom_score_adj").read_text())
    assert int(Path(f"/proc/{shim.pid}/oom_score_adj").read_text()) == min(own + 1, 1000)
    assert os.readlink(f"/proc/{shim.pid}/fd/2") == str(shim.bundles / "first" / "log")


@pytest.mark.parametrize("stdin", [b"", options(binary_name="runc").SerializeToString()],
                         ids=["nothing", "options"])  # fmt: skip
def test_older_daemons_hear_an_address(shim: Shim, stdin: bytes) -> None:
    bundle = shim.bundle("older", annotations={"io.containerd.runc.v2.group": "older-group"})
    done = shim.program("-debug", "-bundle", str(bundle), "start", bundle=bundle, stdin=stdin)
    assert done.stderr == b""
    key = hashlib.sha256(f"{shim.grpc}/{shim.mark}/older-group".encode()).hexdigest()
    assert done.stdout == f"unix:///run/containerd/s/{key}".encode()
    assert (bundle / "address").read_bytes() == done.stdout
    channel = Channel(done.stdout.decode().removeprefix("unix://"), "containerd.task.v2.Task")
    _shut_down(channel)


@pytest.mark.parametrize("annotation", ["io.containerd.runc.v2.group",
                                        "io.kubernetes.cri.sandbox-id"])  # fmt: skip
def test_a_group_shares_a_shim(shim: Shim, annotation: str) -> None:
    first = shim.bundle("a", annotations={annotation: "pod"})
    second = shim.bundle("b", annotations={annotation: "pod"})
    address = shim.start_program(first)
    assert shim.start_program(second) == address != f"unix://{shim.path}"
    shim.channel.close()
    outer, shim.channel = shim.pid, Channel(address.removeprefix("unix://"))
    try:
        shim.create("a", "/bin/sleep", "1000")
        shim.create("b", "/bin/sleep", "1000")
        inner = shim.connect("a").shim_pid
        assert inner == shim.connect("b").shim_pid != outer
        shim.call("Delete", id="a")
        shim.call("Shutdown", id="a")
        assert shim.state("b").pid
        shim.call("Delete", id="b")
        shim.call("Shutdown", id="b")
        eventually(lambda: has_ended(inner))
    finally:
        shim.channel.close()
        shim.channel = Channel(shim.path)


def test_all_of_a_namespace_share_a_shim(shim: Shim, tmp_path: Path) -> None:
    """Its first container, in whose bundle it works and logs, is not to be its last."""
    shim.env["CRADLED_GROUPING"] = "namespace"
    first = shim.bundle("a", annotations={"io.containerd.runc.v2.group": "pod"})
    os.mkfifo(first / "log", 0o700)
    address = shim.start_program(first)
    second = shim.bundle("b", "/bin/sleep", "1000")
    assert shim.start_program(second) == address
    shim.channel.close()
    outer, shim.channel = shim.pid, Channel(address.removeprefix("unix://"))
    shim.pid = shim.connect().shim_pid
    assert shim.pid != outer
    assert shim.run("a", "/bin/true") == 0
    shutil.rmtree(first)
    os.mkfifo(second / "log", 0o700)
    log = os.open(second / "log", os.O_RDONLY | os.O_NONBLOCK)
    shim.create("b", "/bin/sleep", "1000")
    os.kill(shim.pid, signal.SIGUSR1)
    assert select.select([log], [], [], PATIENCE)[0]
    os.close(log)
    shim.call("Start", id="b")
    assert shim.exec("b", "e", "/bin/true")
    assert shim.wait("b", "e") == 0
    shim.call("Kill", id="b", signal=9)
    finish(shim, "b")
    shim.shut_down()
    shim.channel.close()
    shim.channel, shim.pid = Channel(shim.path), outer


def test_who_comes_as_another_goes_finds_the_shim(shim: Shim) -> None:
    """A daemon that starts a container in the place of the last has connected already."""
    outer = shim.channel
    coming, going = Channel(shim.path), Channel(shim.path)
    outer.close()
    going.call("Shutdown", task_v3_pb2.ShutdownRequest(), wellknown_pb2.Empty)
    shim.channel = coming
    shim.create("c", "/bin/sleep", "1000")
    going.close()
    shim.call("Start", id="c")
    shim.call("Kill", id="c", signal=9)
    finish(shim, "c")
    pid = shim.pid
    shim.call("Shutdown", id="c")
    eventually(lambda: has_ended(pid))
    _start_again(shim)


def test_a_shim_goes_with_the_last_who_has_come(shim: Shim) -> None:
    coming = Channel(shim.path)
    assert _connect(coming) == shim.pid
    shim.call("Shutdown", id="")
    shim.channel.close()
    assert os.path.exists(shim.path)
    coming.close()
    eventually(lambda: has_ended(shim.pid))
    _start_again(shim)


def test_a_stale_socket_is_replaced(shim: Shim) -> None:
    os.kill(shim.pid, signal.SIGKILL)
    eventually(lambda: has_ended(shim.pid))
    path, pid = shim.path, shim.pid
    _start_again(shim)
    assert shim.path == path
    assert shim.pid != pid


@pytest.mark.parametrize("seen", [True, False])
def test_delete_after_the_shim_was_killed(shim: Shim, seen: bool) -> None:
    """The end that the shim saw is told; of one that it did not see, 137."""
    bundle = shim.bundle("dead", "/bin/sh", "-c", "exit 5" if seen else "sleep 1000")
    lower = shim.directory / "lower"
    os.rename(bundle / "rootfs", lower)
    (bundle / "rootfs").mkdir()
    bind = {"type": "bind", "source": str(lower), "options": ["rbind", "rw"]}
    pid = shim.create("dead", rootfs=[bind], options=options(root=f"{shim.directory}/root"))
    shim.call("Start", id="dead")
    if seen:
        assert shim.wait("dead") == 5
    os.kill(shim.pid, signal.SIGKILL)
    eventually(lambda: has_ended(shim.pid))
    done = shim.program("-bundle", str(bundle), "delete", bundle=bundle)
    response = task_v3_pb2.DeleteResponse.FromString(done.stdout)
    assert (response.pid, response.exit_status) == (pid, 5 if seen else 137)
    assert response.exited_at.seconds > 1_600_000_000
    eventually(lambda: has_ended(pid))
    assert not os.path.ismount(bundle / "rootfs")
    assert not os.listdir(f"{shim.directory}/root/{shim.mark}")
    again = shim.program("-bundle", str(bundle), "delete", bundle=bundle)
    assert again.returncode == 0
    _start_again(shim)


def _start_again(shim: Shim) -> None:
    shim.start_program(shim.bundles / "first")
    shim.channel.close()
    shim.channel = Channel(shim.path)
    shim.pid = shim.connect().shim_pid


def test_shim_cgroup(shim: Shim) -> None:
    groups = list(_make_groups(f"{shim.mark}-shim"))
    bundle = shim.bundle("grouped")
    given = options(shim_cgroup=f"/{shim.mark}-shim").SerializeToString()
    address = shim.program("start", bundle=bundle, stdin=given).stdout.decode()
    channel = Channel(address.removeprefix("unix://"))
    pid = _connect(channel)
    assert groups
    assert all((group / "cgroup.procs").read_text() == f"{pid}\n" for group in groups)
    _shut_down(channel)
    for group in groups:
        group.rmdir()


def _connect(channel: Channel) -> int:
    request, response = task_v3_pb2.ConnectRequest(), task_v3_pb2.ConnectResponse
    return channel.call("Connect", request, response).shim_pid  # type: ignore[no-any-return]


def _shut_down(channel: Channel) -> None:
    pid = _connect(channel)
    channel.call("Shutdown", task_v3_pb2.ShutdownRequest(), wellknown_pb2.Empty)
    channel.close()
    eventually(lambda: has_ended(pid))


def _make_groups(name: str) -> Iterator[Path]:
    root = Path("/sys/fs/cgroup")
    unified = (root / "cgroup.controllers").exists()
    for parent in [root] if unified else [root / "pids", root / "cpu"]:
        (parent / name).mkdir()
        yield parent / name


def test_a_shim_cgroup_that_is_not_there(shim: Shim) -> None:
    bundle = shim.bundle("lost")
    given = options(shim_cgroup="/no/such/group").SerializeToString()
    done = shim.program("start", bundle=bundle, stdin=given, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"failed to load cgroup /no/such/group: not found\n"
    key = hashlib.sha256(f"{shim.grpc}/{shim.mark}/lost".encode()).hexdigest()
    assert not os.path.exists(f"/run/containerd/s/{key}")


def test_cores_of_its_own(shim: Shim) -> None:
    """A cookie of the scheduler's that no other has; or the kernel's refusal is told."""
    bundle = shim.bundle("core")
    shim.env["SCHED_CORE"] = "1"
    done = shim.program("start", bundle=bundle, check=False)
    if done.returncode:
        assert b"enable sched core support: " in done.stderr
        assert not (bundle / "address").exists()
        return
    channel = Channel(done.stdout.decode().removeprefix("unix://"))
    cookies = [_core_cookie(pid) for pid in (_connect(channel), os.getpid())]
    assert 0 != cookies[0] != cookies[1]
    _shut_down(channel)


def _core_cookie(pid: int) -> int:
    cookie = ctypes.c_ulonglong()
    assert ctypes.CDLL(None).prctl(62, 0, pid, 0, ctypes.byref(cookie)) == 0
    return cookie.value


def test_many_starts_at_once_find_one_shim(shim: Shim) -> None:
    annotations = {"io.containerd.runc.v2.group": "crowd"}
    bundles = [shim.bundle(f"m{number}", annotations=annotations) for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        addresses = set(pool.map(shim.start_program, bundles))
    (address,) = addresses
    assert os.readlink(bundles[0] / "s") == f"{shim.directory}/s"
    channel = Channel(address.removeprefix("unix://"))
    assert _connect(channel) != shim.pid
    _shut_down(channel)


@pytest.mark.parametrize("words", ["", "-socket {path} "])
def test_one_that_is_started_to_serve(shim: Shim, words: str) -> None:
    """It listens where it is told, or finds that done; the socket for debugging goes nowhere."""
    bundle, path = shim.bundle("served"), f"{shim.directory}/own.sock"
    argv = [sys.executable, "-I", "-S", "-c", PROGRAM, "-namespace", shim.mark]
    argv += ["-address", shim.grpc, "-id", "served", *words.format(path=path).split()]
    debug = bundle / "debug"
    debug.touch()
    with socket.socket(socket.AF_UNIX) as given:
        if not words:
            given.bind(path)
            given.listen()
        line = f'exec "$@" 3<&{given.fileno()} 4<{debug}'
        process = subprocess.Popen(
            ["bash", "-c", line, "bash", *argv], cwd=bundle, stdin=subprocess.DEVNULL,
            pass_fds=[given.fileno()], env={**shim.env, "TTRPC_ADDRESS": shim.ear.path},
        )  # fmt: skip
    eventually(lambda: unix.is_served(path))
    channel = Channel(path)
    assert _connect(channel) == process.pid
    held = {os.readlink(fd) for fd in Path(f"/proc/{process.pid}/fd").iterdir()}
    assert str(debug) not in held
    _shut_down(channel)
    assert process.wait(PATIENCE) == 0
    assert not os.path.exists(path)


def test_info(shim: Shim) -> None:
    bundle = shim.bundles / "first"
    given = options(binary_name="runc")
    info = types_pb2.RuntimeInfo.FromString(
        shim.program("-info", bundle=bundle, stdin=given.SerializeToString()).stdout
    )
    assert info.name == "io.containerd.cradled.v2"
    assert runc_options_pb2.Options.FromString(info.options.value).binary_name == "runc"
    assert info.features.type_url == (
        "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
    )
    assert "pid" in json.loads(info.features.value)["linux"]["namespaces"]


@pytest.mark.parametrize("word", ["-v", "-version", "--version"])
def test_version(shim: Shim, word: str) -> None:
    done = shim.program(word, bundle=shim.bundles / "first")
    assert done.stdout.decode().split()[-2:] == ["Version:", version("cradled")]


def test_wrong_use_says_so(shim: Shim) -> None:
    bundle = shim.bundles / "first"
    for words, text in (
        (["-nonsense", "start"], "flag provided but not defined: -nonsense"),
        (["explode"], "unknown action explode"),
    ):
        done = shim.program(*words, bundle=bundle, check=False)
        assert done.returncode == 1
        assert text in done.stderr.decode()


def test_modules_of_a_serving_shim(shim: Shim) -> None:
    """A running shim holds nothing that is not on the list (of a bare ``python -I -S``)."""
    code = f"""
import sys
sys.path.insert(0, {SOURCE!r})
bare = set(sys.modules)
import cradled.shim.__main__, cradled.shim.supervise
cradled.shim.supervise.libc.load()
print(*sorted(set(sys.modules) - bare))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, check=True, text=True
    )
    loaded = set(done.stdout.split())
    own = {name for name in loaded if name.startswith("cradled")}
    assert loaded - own <= STANDARD
    rooms = {".".join(name.split(".")[:2]) for name in own}
    own_rooms = {"errors", "failpoints", "linux", "outputs", "shim", "ttrpc"}
    assert rooms == {"cradled", *(f"cradled.{room}" for room in own_rooms)}


STANDARD = {
    "__future__", "_collections_abc", "_ctypes", "_json", "_socket", "_stat", "_struct", "ctypes",
    "ctypes._endian", "errno", "faulthandler", "fcntl", "genericpath", "os", "os.path",
    "posixpath", "select", "stat", "struct", "termios", "types",
}  # fmt: skip
