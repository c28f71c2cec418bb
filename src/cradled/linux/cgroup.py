"""Blocking. Control groups where the kernel shows them: which ones a process is in, who is in them.

A process of a *legacy* or *hybrid* host is in one group per controller (``memory:/a``), and in one
more of the unified hierarchy; on a *unified* host it is in that one only. The hierarchies are
looked for where every distribution mounts them, below ``/sys/fs/cgroup``.

Used by the shim: imports only ``os``.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = "/sys/fs/cgroup"
NO_LIMIT = (1 << 64) - 1

# Any hierarchy tells the members of a container's group; these are there on every legacy host.
_MEMBERS = ("devices", "memory", "pids", "freezer", "cpu", "name=systemd")


class Cgroup:
    """The groups of a process at the time it was asked."""

    __slots__ = ("_text", "unified")

    def __init__(self, text: str) -> None:
        """``text`` is the content of ``/proc/<pid>/cgroup``."""
        self._text = text
        self.unified = all(line.startswith("0::") for line in text.split("\n") if line)

    def directory(self, controller: str) -> str:
        """The group's directory for a controller; empty when it has none."""
        for line in self._text.split("\n"):
            number, _, rest = line.partition(":")
            names, _, path = rest.partition(":")
            if self.unified and number == "0":
                return ROOT + path
            if controller in names.split(","):
                return f"{ROOT}/{controller.removeprefix('name=')}{path}"
        return ""

    def exists(self) -> bool:
        """Whether the group has not been removed yet."""
        return os.path.isdir(self._members())

    def pids(self) -> list[int]:
        """The processes in the group and below it. Raises OSError when it is gone."""
        return list(_pids(self._members()))

    def thaw(self) -> None:
        """Let a frozen group run, if it is still there."""
        try:
            if self.unified:
                write(f"{self.directory('')}/cgroup.freeze", "0")
            else:
                write(f"{self.directory('freezer')}/freezer.state", "THAWED")
        except FileNotFoundError:
            pass

    def is_frozen(self) -> bool:
        """Whether no process in the group runs, nor will."""
        if self.unified:
            return table(f"{self.directory('')}/cgroup.events").get("frozen") == 1
        return text(f"{self.directory('freezer')}/freezer.state").strip() == "FROZEN"

    def _members(self) -> str:
        for controller in _MEMBERS:
            directory = self.directory(controller)
            if directory:
                return directory
        return ""


def of_process(pid: int) -> Cgroup:
    """The groups of a process. Raises OSError when there is no such process."""
    return Cgroup(read(f"/proc/{pid}/cgroup"))


def directories(path: str) -> list[str]:
    """The directories that make up the group ``path`` on this host, those that exist."""
    if os.path.exists(f"{ROOT}/cgroup.controllers"):
        candidates = [ROOT]
    else:
        candidates = [f"{ROOT}/{name}" for name in sorted(os.listdir(ROOT))]
        itself = os.stat(ROOT).st_dev  # a directory where nothing is mounted is no hierarchy
        candidates = [path for path in candidates if os.stat(path).st_dev != itself]
    found = (f"{candidate}/{path.strip('/')}" for candidate in candidates)
    return [directory for directory in found if os.path.exists(f"{directory}/cgroup.procs")]


def join(directory: str, pid: int) -> None:
    """Move a process into a group. Raises OSError."""
    write(f"{directory}/cgroup.procs", str(pid))


def thaw(directory: str) -> None:
    """Let what is frozen in a group of a legacy freezer run; to be killed in others it need not."""
    try:  # noqa: SIM105 (the shim has no contextlib)
        write(f"{directory}/freezer.state", "THAWED")
    except OSError:
        pass  # another hierarchy's, or gone


def members(directory: str) -> list[int]:
    """The processes in a group and below it; those of other pid namespaces are 0."""
    try:
        return list(_pids(directory))
    except OSError:  # it is gone
        return []


def remove(directory: str) -> None:
    """Remove a group and those below it, unless there are processes in them."""
    try:
        with os.scandir(directory) as entries:
            below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        for path in below:
            remove(path)
        os.rmdir(directory)
    except OSError:
        pass


def read(path: str) -> str:
    """The content of a file the kernel makes up; one read, so that it is of one moment."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(fd, 65536)
        while len(text) % 4096 == 0 and (more := os.read(fd, 65536)):
            text += more
    finally:
        os.close(fd)
    return text.decode(errors="surrogateescape")


def write(path: str, text: str) -> None:
    """Write to a file of the kernel in one call. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def is_first_of_namespace(pid: int) -> bool:
    """Whether the kernel ends all others of a pid namespace with this process. Raises OSError."""
    for line in read(f"/proc/{pid}/status").split("\n"):
        if line.startswith("NSpid:"):
            numbers = line.split()
            return len(numbers) > 2 and numbers[-1] == "1"
    return False


# The files of a group. One that the kernel does not have reads as if it were empty.


def text(path: str) -> str:
    """A whole file."""
    try:
        return read(path)
    except OSError:
        return ""


def listed(directory: str) -> list[str]:
    """The names of all files of a group."""
    try:
        return os.listdir(directory)
    except OSError:
        return []


def number(path: str) -> int:
    """A file of one number; ``max`` is ``NO_LIMIT``."""
    word = text(path).strip()
    return NO_LIMIT if word == "max" else int(word or 0)


def table(path: str) -> dict[str, int]:
    """A file of lines ``key value``."""
    pairs = (line.split() for line in text(path).split("\n"))
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}


def assignments(words: list[str]) -> dict[str, int]:
    """Words ``key=value``; ``max`` is ``NO_LIMIT``."""
    pairs = (word.partition("=") for word in words)
    return {key: NO_LIMIT if value == "max" else int(value) for key, _, value in pairs}


def _pids(directory: str) -> Iterator[int]:
    yield from map(int, read(f"{directory}/cgroup.procs").split())
    with os.scandir(directory) as entries:
        below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    for path in below:
        try:
            yield from _pids(path)
        except OSError:  # removed meanwhile
            continue
