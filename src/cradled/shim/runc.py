"""Async. The OCI runtime: its command lines (pure), running it, what its log says went wrong.

Only what must be done by it is: create, start, exec, delete, pause, resume, update, checkpoint,
restore; and of these runc itself need not start and delete (``direct``). A runtime whose containers
are processes of this host (``plain``) is not asked to kill one process or to list them. A runtime
that is running while the shim is killed runs on; what it makes is found and removed by the
``delete`` program.

A runtime that does not come to its end is killed, with all that is in its process group; what runs
in a container has a session of its own. Its time is measured for what is broken, not for what is
slow: a host under load, or a hook, may take a while.
"""

from __future__ import annotations

import os

from cradled import failpoints
from cradled.errors import Error, NotFound
from cradled.linux import capture
from cradled.linux.signals import SIGKILL
from cradled.linux.spawn import spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cradled.linux.reaper import Ending
    from cradled.shim.container import Supervisor
    from cradled.shim.messages import CheckpointOptions, Options

DEFAULT_BINARY = "runc"
DEFAULT_ROOT = "/run/containerd/runc"

LIMIT = 120.0
"""Seconds for a command, where nobody says how many."""
CLEANUP = 10.0
"""Seconds for one that cleans up: something has gone wrong before it."""

_SLOW = ("checkpoint", "restore")  # take the longer, the more memory a container has
_SLOWER = 10
_DYING = 1.0  # seconds that a killed runtime gets; one that its disk holds up takes longer
_LOGGED = 1 << 16  # bytes of the end of its log that are looked through
_LAST_PID = 1 << 22  # the most that a kernel can be told to have

_GONE = ("does not exist", "cannot open directory")  # as runc and crun say it
_PLAIN = ("runc", "crun", "youki")
_NOTHING: tuple[int | None, int | None, int | None] = (None, None, None)
# What speaks to this process alone.
_UNSET = ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")

ENVIRONMENT = {"GOMAXPROCS": "1"} | {k: v for k, v in os.environ.items() if k not in _UNSET}
"""The runtime's: one of Go does one thing after the other, and more threads cost it their start."""


class Runc:
    """The runtime of one container.

    ``root`` is the directory of its state files, ``log`` the file it logs to; ``limit`` are the
    seconds that a command gets, None for as many as it takes.
    """

    __slots__ = ("_limit", "_loop", "_options", "_reaper", "binary", "log", "root")

    def __init__(
        self, shim: Supervisor, options: Options, root: str, log: str, limit: float | None
    ) -> None:
        self._loop = shim.loop
        self._reaper = shim.reaper
        self._options = options
        self._limit = limit
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

    async def make(self, failure: str, *words: str, fds: Sequence[int | None] = _NOTHING) -> None:
        """Run a command that makes a process, with the descriptors that are to be the process's.

        Raises as ``run`` does.
        """
        await self._run(failure, words, fds, self._limit, -1)

    async def run(
        self, failure: str, *words: str, stdin: int | None = None, limit: float | None = None
    ) -> None:
        """Run a command to its end, or to the end of its time (``limit``: less than usual).

        Raises Error, ``failure`` and the runtime's own words.
        """
        fd = capture.memory()
        limit = min(filter(None, (limit, self._limit)), default=None)
        try:
            await self._run(failure, words, (stdin, fd, fd), limit, fd)
        finally:
            os.close(fd)

    async def output(self, failure: str, *words: str) -> bytes:
        """What a command prints to its standard output. Raises as ``run`` does."""
        fd = capture.memory()
        try:
            await self._run(failure, words, (None, fd, None), self._limit, fd)
            return capture.printed(fd)
        finally:
            os.close(fd)

    async def kill(
        self, id: str, signal: int, *, all: bool = False, limit: float | None = None
    ) -> None:
        """Have the runtime send a signal. Raises NotFound for what is not there any more."""
        words = ("kill", "--all", id, str(signal)) if all else ("kill", id, str(signal))
        try:
            await self.run("unknown error after kill", *words, limit=limit)
        except Error as error:
            raise kill_error(error) from None

    async def delete(self, id: str) -> None:
        """Remove a container that has ended or was never started; one that is gone is fine."""
        try:
            await self.run("failed to delete task", "delete", id)
        except Error as error:
            if not any(words in error.what for words in _GONE):
                raise

    async def _run(
        self,
        failure: str,
        words: Sequence[str],
        fds: Sequence[int | None],
        limit: float | None,
        printed: int,
    ) -> None:
        offset = _size(self.log)
        try:
            pid = spawn(argv(self._options, self.root, self.log, *words), ENVIRONMENT, fds)
        except OSError as error:
            reason = _not_started(self.binary, error)
            raise Error(f"{failure}: {self._unlogged(reason)}") from None
        failpoints.hit("shim.runtime.running")
        if limit is not None and words[0] in _SLOW:
            limit *= _SLOWER
        status = await self._end(pid, limit)
        if status == 0:
            return
        said = last_error(_tail(self.log, offset))
        if not said:
            text = capture.line(capture.printed(printed)) if printed >= 0 else ""
            said = self._silence(status, limit) + (text and f": {text}")
        raise Error(f"{failure}: {said}")

    def _silence(self, status: int | None, limit: float | None) -> str:
        """How a command failed, where the runtime does not tell why."""
        if status is None:
            return f"{self.binary} did not terminate within {limit:g} s"
        reason = f"{self.binary} did not terminate successfully: exit status {status}"
        return self._unlogged(reason)

    def _unlogged(self, reason: str) -> str:
        """A failure of which the log says nothing, or that there is none."""
        if os.path.exists(self.log):
            return reason
        missing = f"open {self.log}: no such file or directory"
        return f"unable to retrieve OCI runtime error ({missing}): {reason}"

    async def _end(self, pid: int, limit: float | None) -> int | None:
        """The status that a runtime ends with; None for one that has to be killed."""
        ended = self._reaper.watch(pid)
        if limit is not None and not await self._loop.within(ended, limit):
            os.killpg(pid, SIGKILL)
            await self._loop.within(ended, _DYING)
            return None
        ending: Ending = await ended
        return ending.status


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
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and entry.get("level") == "error":
            said = str(entry.get("msg", "")).strip()
            return said.encode(errors="replace").decode()  # JSON can name what UTF-8 cannot
    return ""


def pids(output: bytes) -> list[int]:
    """The process ids that ``ps --format json`` prints. Raises Error for anything else."""
    import json  # for runtimes that are asked for them

    try:
        found = json.loads(output) or []
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, list) and all(type(pid) is int and 0 < pid <= _LAST_PID for pid in found):
        return found
    raise Error(
        f"OCI runtime ps failed: {capture.line(output) or 'nothing'} is no list of processes"
    )


def _not_started(binary: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError) and "/" not in binary:
        return f'exec: "{binary}": executable file not found in $PATH'
    return f"fork/exec {binary}: {(error.strerror or '').lower()}"


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _tail(path: str, offset: int) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(offset, os.fstat(file.fileno()).st_size - _LOGGED))
            return file.read(_LOGGED).decode(errors="replace")
    except OSError:
        return ""
