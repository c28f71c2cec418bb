"""A runtime that fails as it is told to: a script, with the real one behind it.

A fault is a function that breaks a runtime at a command, and returns the reason that is to be told.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from cradled.api import wellknown_pb2
from harness.shims import Shim, has_ended, options

CREATED, RUNNING, STOPPED, PAUSED = 1, 2, 3, 4
COMMANDS = "create start state exec kill pause resume update delete ps features"

SCRIPT = """#!/bin/sh
for word; do
    case $before in
    --log) log=$word ;;
    --pid-file) pid_file=$word ;;
    --console-socket) socket=$word ;;
    esac
    case $word in
    {words}) command=${{command:-$word}} ;;
    esac
    before=$word
done
real() {{ {real} "$@"; }}
[ ! -e {here}/$command.fault ] || . {here}/$command.fault
exec {real} "$@"
"""


class Runtime:
    """A script in a directory of its own; ``faults`` are what it does in place of a command."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory / f"{name}-{len(os.listdir(directory))}"
        self.directory.mkdir()
        self.path = self.directory / name
        self.repair()

    def repair(self) -> None:
        """Let it be what it should be."""
        text = SCRIPT.format(
            words="|".join(COMMANDS.split()), real=shutil.which("runc"), here=self.directory
        )
        self.path.unlink(missing_ok=True)
        self.path.write_text(text)
        self.path.chmod(0o755)
        for fault in self.directory.glob("*.fault"):
            fault.unlink()

    def fail(self, command: str, script: str) -> None:
        """Have it do something else when it is given a command."""
        self.directory.joinpath(f"{command}.fault").write_text(script)

    @property
    def options(self) -> wellknown_pb2.Any:
        root = str(self.directory.parent.parent / "runc")
        return options(binary_name=str(self.path), root=root)


def missing(runtime: Runtime, command: str) -> str:
    runtime.path.unlink()
    return f"fork/exec {runtime.path}: no such file or directory"


def not_executable(runtime: Runtime, command: str) -> str:
    runtime.path.chmod(0o644)
    return f"fork/exec {runtime.path}: permission denied"


def of_another_format(runtime: Runtime, command: str) -> str:
    runtime.path.write_bytes(b"\0asm\1\0\0\0")
    return f"fork/exec {runtime.path}: exec format error"


def silent(runtime: Runtime, command: str) -> str:
    runtime.fail(command, "exit 3")
    return f"{runtime.path} did not terminate successfully: exit status 3"


def dies(runtime: Runtime, command: str) -> str:
    runtime.fail(command, "kill -9 $$")
    return f"{runtime.path} did not terminate successfully: exit status 137"


def garbage(runtime: Runtime, command: str) -> str:
    noise = r"printf '\377\000{\"level\":\"error\"\n[[[\n\"level\"\n\033[2J'"
    runtime.fail(command, f"{noise} >> $log; {noise}; {noise} >&2; exit 1")
    return f"{runtime.path} did not terminate successfully: exit status 1"


def talks(runtime: Runtime, command: str) -> str:
    line = '{"level":"error","msg":"it is Tuesday\\n","time":"2020-01-02T03:04:05Z"}'
    runtime.fail(command, f"printf '%s\\n' '{line}' >> $log; exit 1")
    return "it is Tuesday"


def dies_late(runtime: Runtime, command: str) -> str:
    runtime.fail(command, 'real "$@"; kill -9 $$')
    return f"{runtime.path} did not terminate successfully: exit status 137"


FAULTS = (missing, not_executable, of_another_format, silent, dies, garbage, talks, dies_late)
Fault = Callable[[Runtime, str], str]

METHODS = {
    "start": ("Start", "OCI runtime start failed"),
    "kill": ("Kill", "unknown error after kill"),
    "pause": ("Pause", "OCI runtime pause failed"),
    "resume": ("Resume", "OCI runtime resume failed"),
    "update": ("Update", "OCI runtime update failed"),
    "delete": ("Delete", "failed to delete task"),
    "ps": ("Pids", "OCI runtime ps failed"),
}
STATUSES = {"start": CREATED, "resume": PAUSED, "delete": STOPPED}
FIELDS: dict[str, dict[str, object]] = {
    "kill": {"signal": 15},
    "update": {"resources": wellknown_pb2.Any(value=b'{"pids":{"limit":100}}')},
}


def arrange(shim: Shim, runtime: Runtime, id: str, command: str) -> int:
    """A container in the state in which it is given a command; its pid."""
    pid = shim.create(id, "/bin/sleep", "1000", options=runtime.options)
    if command != "start":
        shim.call("Start", id=id)
    if command == "resume":
        shim.call("Pause", id=id)
    if command == "delete":
        os.kill(pid, 9)
        shim.wait(id)
    return pid


def end(shim: Shim, id: str, pid: int) -> None:
    """Delete a container in whatever state it is."""
    if shim.state(id).status == PAUSED:
        shim.call("Resume", id=id)
    if not has_ended(pid):
        os.kill(pid, 9)
        shim.wait(id)
    shim.call("Delete", id=id)
