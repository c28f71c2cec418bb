"""Async. The OCI runtime: its command lines (pure), running it, what its log says went wrong.

Only what must be done by it is: create, start, exec, delete, pause, resume, update, checkpoint,
restore; and of these runc itself need not start and delete (``direct``). A runtime whose containers
are processes of this host (``plain``) is not asked to kill one process or to list them. A runtime
that is running while the shim is killed runs on; what it makes is found and removed by the
``delete`` program.
"""

from __future__ import annotations

import os

from cradled import failpoints
from cradled.errors import Error, NotFound
from cradled.linux.spawn import spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cradled.shim.messages import CheckpointOptions, Options
    from cradled.shim.reaper import Ending, Reaper

DEFAULT_BINARY = "runc"
DEFAULT_ROOT = "/run/containerd/runc"

_PLAIN = ("runc", "crun", "youki")
_NOTHING: tuple[int | None, int | None, int | None] = (None, None, None)
# What speaks to this process alone.
_UNSET = ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")

ENVIRONMENT = {"GOMAXPROCS": "1"} | {k: v for k, v in os.environ.items() if k not in _UNSET}
"""The runtime's: one of Go does one thing after the other, and more threads cost it their start."""


class Runc:
    """The runtime of one container. ``root`` is the directory of its state files."""

    __slots__ = ("_options", "_reaper", "binary", "log", "root")

    def __init__(self, reaper: Reaper, options: Options, root: str, log: str) -> None:
        self._reaper = reaper
        self._options = options
        self.binary = options.binary_name or DEFAULT_BINARY
        self.root = root
        self.log = log

    @property
    def name(self) -> str:
        """Of the program, without its directory."""
        return self.binary.rpartition("/")[2]

    @property
    def plain(self) -> bool:
        """Whether a container's processes are processes of this host, signalled as such."""
        return self.name in _PLAIN

    async def run(self, failure: str, *words: str, fds: Sequence[int | None] = _NOTHING) -> None:
        """Run a command to its end. Raises Error, ``failure`` and the runtime's own words."""
        offset = _size(self.log)
        try:
            pid = spawn(argv(self._options, self.root, self.log, *words), ENVIRONMENT, fds)
        except OSError as error:
            raise Error(f"{failure}: {_not_started(self.binary, self.log, error)}") from None
        failpoints.hit("shim.runtime.running")
        ending: Ending = await self._reaper.watch(pid)
        if ending.status:
            text = last_error(_tail(self.log, offset))
            raise Error(f"{failure}: {text or _no_reason(self.binary, ending.status)}")

    async def kill(self, id: str, signal: int, *, all: bool = False) -> None:
        """Have the runtime send a signal. Raises NotFound for what is not there any more."""
        words = ("kill", "--all", id, str(signal)) if all else ("kill", id, str(signal))
        try:
            await self.run("OCI runtime kill failed", *words)
        except Error as error:
            raise kill_error(error) from None

    async def delete(self, id: str) -> None:
        """Remove a container that has ended or was never started; one that is gone is fine."""
        try:
            await self.run("failed to delete task", "delete", id)
        except Error as error:
            if "does not exist" not in error.what:
                raise

    async def output(self, failure: str, *words: str) -> bytes:
        """What a command prints."""
        fd = os.memfd_create("output", os.MFD_CLOEXEC)
        try:
            await self.run(failure, *words, fds=(None, fd, None))
            return os.pread(fd, os.fstat(fd).st_size, 0)
        finally:
            os.close(fd)


def argv(options: Options, root: str, log: str, *words: str) -> list[str]:
    """A whole command line."""
    line = [options.binary_name or DEFAULT_BINARY, "--root", root]
    line += ["--log", log, "--log-format", "json"]
    if options.systemd_cgroup:
        line.append("--systemd-cgroup")
    return [*line, *words]


def on_console(words: list[str], console: str) -> list[str]:
    """The same command, with the socket it sends the master of a new terminal to."""
    return [words[0], "--console-socket", console, *words[1:]]


def create_words(options: Options, bundle: str, pid_file: str, id: str) -> list[str]:
    """The ``create`` command."""
    words = ["create", "--bundle", bundle, "--pid-file", pid_file]
    if options.no_pivot_root:
        words.append("--no-pivot")
    if options.no_new_keyring:
        words.append("--no-new-keyring")
    return [*words, id]


def exec_words(spec: str, pid_file: str, id: str) -> list[str]:
    """The ``exec`` command."""
    return ["exec", "--process", spec, "--detach", "--pid-file", pid_file, id]


def checkpoint_words(options: CheckpointOptions, image: str, work: str, id: str) -> list[str]:
    """The ``checkpoint`` command; ``image`` is used where the options name no directory."""
    words = ["checkpoint", "--image-path", options.image_path or image]
    words += ["--work-path", options.work_path or work]
    if options.open_tcp:
        words.append("--tcp-established")
    if options.external_unix_sockets:
        words.append("--ext-unix-sk")
    if options.terminal:
        words.append("--shell-job")
    if options.file_locks:
        words.append("--file-locks")
    if options.cgroups_mode:
        words += ["--manage-cgroups-mode", options.cgroups_mode]
    for namespace in options.empty_namespaces:
        words += ["--empty-ns", namespace]
    if not options.exit:
        words.append("--leave-running")
    return [*words, id]


def restore_words(
    options: Options, image: tuple[str, str], bundle: str, pid_file: str, id: str
) -> list[str]:
    """The ``restore`` command; ``image`` is the checkpoint and a directory to work in."""
    words = ["restore", "--image-path", image[0], "--work-path", image[1]]
    words += ["--detach", "--pid-file", pid_file]
    if options.no_pivot_root:
        words.append("--no-pivot")
    return [*words, "-no-subreaper", "--bundle", bundle, id]


def kill_error(error: Error) -> Error:
    """The class of a runtime's refusal to send a signal."""
    text = error.what.lower()
    if any(part in text for part in ("already finished", "not running", "no such process")):
        return NotFound("process already finished")
    if "does not exist" in text:
        return NotFound("no such container")
    return error


def last_error(log: str) -> str:
    """The message of the last error in a runtime's JSON log; empty when it has none."""
    import json  # paid for by the first failure

    for line in reversed(log.split("\n")):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("level") == "error":
            return str(entry.get("msg", "")).strip()
    return ""


def _not_started(binary: str, log: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError) and "/" not in binary:
        reason = f'exec: "{binary}": executable file not found in $PATH'
    else:
        reason = f'fork/exec "{binary}": {(error.strerror or "").lower()}'
    missing = f"open {log}: no such file or directory"
    return f"unable to retrieve OCI runtime error ({missing}): {reason}"


def _no_reason(binary: str, status: int) -> str:
    ended = f"signal {status - 128}" if status > 128 else f"exit status {status}"
    return f"{binary} did not terminate successfully: {ended}"


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _tail(path: str, offset: int) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read().decode(errors="replace")
    except OSError:
        return ""
