"""Shim programs that are missing, hang, lie or die: an error that says so in time, nothing left."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness import leaks
from harness.shims import has_ended
from harness.tasks import GO, OWN, Node, running

from cradled.api.types_pb2 import RuntimeRequest
from cradled.core.containers import Runtime
from cradled.core.values import AnyValue
from cradled.errors import Error, NotFound
from cradled.runtime.bootstrap import Daemon
from cradled.runtime.info import runtime_info
from cradled.runtime.launcher import Launchers
from cradled.runtime.timeouts import Timeouts
from cradled.zygote.client import Zygote

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

TIMEOUTS = Timeouts(start=1.0, cleanup=0.5, shutdown=0.5)

SCRIPT = """#!/bin/sh
for action; do :; done
cat > {here}/stdin
case $action in
start) {start} ;;
delete) {delete} ;;
esac
"""

# A shim that listens, in a session of its own as they all have, on the socket it is given.
SERVE = """
import os, socket, sys, time
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
FIRST
HEAD = bytes([0, 0, 0, 4, 0, 0, 0, 1, 2, 0])  # of an answer of four bytes to the first request
if os.fork():
    os._exit(0)
os.setsid()
for fd in 0, 1, 2:
    os.dup2(os.open("/dev/null", os.O_RDWR), fd)
"""


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with running(OWN, TIMEOUTS) as node:
        yield node


class Program:
    """A shim's program that does as it is told at ``start`` and ``delete``."""

    def __init__(self, directory: Path, start: str, delete: str = "exit 1") -> None:
        self.path = directory / "shim"
        self.path.write_text(SCRIPT.format(here=directory, start=start, delete=delete))
        self.path.chmod(0o755)


async def refusal(node: Node, runtime: str, id: str = "c") -> str:
    """The error's text of a task's creation, of which nothing must stay."""
    node.add(id, "/bin/true")
    node.change(id, runtime=Runtime(runtime))
    with pytest.raises(Error) as caught:
        await node.create(id)
    with pytest.raises(NotFound):
        await node.tasks.get(node.scope, id)
    assert not node.bundle(id).exists()
    await node.settled()
    return str(caught.value)


FAILED = "failed to start shim: start failed: "

STARTS = {
    "nothing": (":", "shim gave no usable address: ''"),
    "fails": ("echo no luck >&2; exit 7", FAILED + "no luck: exit status 7"),
    "silent": ("exit 7", FAILED + ": exit status 7"),
    "dies": ("kill -9 $$", FAILED + ": signal 9"),
    "hangs": ("sleep 1000", FAILED + "{path} did not terminate within 1 s"),
    "floods": ("yes", FAILED + "{path} did not terminate within 1 s"),
    "leaves a child": (
        "setsid sleep 1000 & echo cannot >&2; exit 1",
        FAILED + "cannot: exit status 1",
    ),
    "hangs with a child": (
        "setsid sleep 1000 & sleep 1000",
        FAILED + "{path} did not terminate within 1 s",
    ),
    "half": (
        """printf '{"version":3,"addr'""",
        """shim gave no usable address: '{"version":3,"addr'""",
    ),
    "noise": (
        r"printf '\377\000\010\003'",
        "failed to connect to shim: [Errno 111] Connection refused",
    ),
    "another protocol": (
        """printf '{"version":3,"address":"unix:///x","protocol":"smtp"}'""",
        'unsupported shim protocol "smtp"',
    ),
    "too new": (
        """printf '{"version":4,"address":"unix:///x","protocol":"ttrpc"}'""",
        "unsupported shim version (4): not implemented",
    ),
}


@pytest.mark.parametrize("case", STARTS)
async def test_start(node: Node, tmp_path: Path, case: str) -> None:
    script, text = STARTS[case]
    program = Program(tmp_path, script)
    assert await refusal(node, str(program.path)) == text.replace("{path}", str(program.path))


LOST = "failed to create shim task: ttrpc: closed"
SERVICES = {
    "nothing": (
        "time.sleep(1000)",
        "failed to connect to shim: [Errno 111] Connection refused",
    ),
    "a dead line": ("listener.accept()[0].close(); time.sleep(1000)", LOST),
    "one word": ("listener.accept()[0].recv(10); sys.exit()", LOST),
    "a broken answer": (
        "c = listener.accept()[0]; c.sendall(HEAD + bytes([255] * 4)); time.sleep(1000)",
        "failed to create shim task: bad response: message is cut short: internal",
    ),
    "half an answer": ("c = listener.accept()[0]; c.sendall(HEAD[:9]); sys.exit()", LOST),
}


def serving(directory: Path, what: str, first: str = "") -> Program:
    """One that starts a server which listens, and then does something, or ``first`` even before."""
    (directory / "serve.py").write_text(SERVE.replace("FIRST", first) + what)
    address = directory / "shim.sock"
    start = f"{sys.executable} {directory}/serve.py {address}; printf unix://{address}"
    return Program(directory, start)


@pytest.mark.parametrize("case", SERVICES)
async def test_service(node: Node, tmp_path: Path, case: str) -> None:
    """It starts, says where it is, and is no shim."""
    what, text = SERVICES[case]
    program = serving(tmp_path, what, "listener.close()" if case == "nothing" else "")
    assert await refusal(node, str(program.path)) == text


async def test_a_shim_that_never_answers(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who goes away leaves nothing of it, and can begin anew with another."""
    monkeypatch.setattr("cradled.runtime.manager.TAKE_BACK_SECONDS", 0.1)
    program = serving(tmp_path, "c = listener.accept()[0]; time.sleep(1000)")
    node.add("deaf", "/bin/sh", "-c", "exit 3")
    node.change("deaf", runtime=Runtime(str(program.path)))
    creation = asyncio.create_task(node.create("deaf"))
    while not leaks.processes_with(f"{tmp_path}/serve.py"):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    creation.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creation
    node.change("deaf", runtime=Runtime(OWN))
    await node.run("deaf")
    assert (await node.tasks.wait(node.scope, "deaf")).status == 3
    assert not leaks.processes_with(f"{tmp_path}/serve.py")


async def test_a_program_that_went_away(node: Node, tmp_path: Path) -> None:
    program = Program(tmp_path, "exit 1")
    await refusal(node, str(program.path))
    for spoil, reason in (
        (lambda path: path.chmod(0o644), "permission denied"),
        (lambda path: path.write_bytes(b"\0asm\1\0\0\0"), "exec format error"),
        (lambda path: path.unlink(), "no such file or directory"),
    ):
        spoil(program.path)
        text = await refusal(node, str(program.path))
        assert text == f"{FAILED}fork/exec {program.path}: {reason}"
        program.path.touch()
        program.path.chmod(0o755)


DELETES = {
    "fails": "exit 3",
    "dies": "kill -9 $$",
    "hangs": "sleep 1000 & sleep 1000",
    "says nothing": ":",
    "talks": "echo nonsense",
    "does nothing": r"printf '\010\005\020\011'",
}


@pytest.mark.skipif(not os.path.exists(GO), reason="needs containerd's runc shim")
@pytest.mark.parametrize("case", DELETES)
async def test_delete(tmp_path: Path, case: str) -> None:
    """A shim that is gone, and a program that cannot clean up after it: that is done for it."""
    program = Program(tmp_path, f'exec {GO} "$@" < {tmp_path}/stdin', DELETES[case])
    async with running(str(program.path), TIMEOUTS) as node:
        pid = await node.run("left", "/bin/sleep", "1000")
        os.kill(await node.shim_pid("left"), 9)
        events = await node.heard("left", "create", "start", "exit", "delete")
        assert (events[2].pid, events[2].exit_status) == (pid, 9 if case == "does nothing" else 255)
        await node.settled()
        assert has_ended(pid)
        assert not [path for path in leaks.cgroups_named("left") if node.mark in path]


INFOS = {
    "fails": ("echo no luck >&2; exit 7", "no luck: status 7"),
    "dies": ("kill -9 $$", ": status -9"),
    "hangs": ("sleep 1000", "{path} did not terminate within 1 s"),
    "floods": ("yes", "{path} did not terminate within 1 s"),
    "talks": ("echo nonsense", "its answer is no RuntimeInfo: "),
}


@pytest.mark.parametrize("case", INFOS)
async def test_info(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.setattr("cradled.runtime.info.INFO_SECONDS", 1.0)
    script, reason = INFOS[case]
    program = Program(tmp_path, "exit 1")
    program.path.write_text(f"#!/bin/sh\n{script}\n")
    text = await info_refusal(program)
    assert text.startswith("shim -info failed: " + reason.replace("{path}", str(program.path)))
    assert not leaks.processes_with(str(program.path))


async def test_info_of_what_cannot_be_run(tmp_path: Path) -> None:
    program = Program(tmp_path, "exit 1")
    program.path.chmod(0o644)
    text = await info_refusal(program)
    assert text == f"shim -info failed: fork/exec {program.path}: permission denied"


async def info_refusal(program: Program) -> str:
    launchers = Launchers(Daemon("/d", "/d.ttrpc", "/s"), Zygote(), runc_root="/r")
    asked = RuntimeRequest(runtime_path=str(program.path))
    with pytest.raises(Error) as caught:
        await runtime_info(
            launchers, AnyValue("containerd.types.RuntimeRequest", asked.SerializeToString())
        )
    return str(caught.value)
