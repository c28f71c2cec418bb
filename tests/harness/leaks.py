"""Proof that a test leaves nothing behind: no process, mount, cgroup, socket or runtime's state.

Everything a test starts carries a mark in its environment, and lives below one directory or under
a name that is the mark, so that two runs on one machine never see each other's remains. What has
neither (a shim's socket below ``/run``, a file in ``/tmp``) is looked for at the end of a whole run
on a machine that does nothing else (``Places``).
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

MARK = "CRADLED_TEST_MARK"
RUN = ("/run/containerd", "/run/cradled", "/run/runc", "/run/crun", "/run/netns")
SHARED = (*RUN, "/run/containerd/s", "/run/containerd/fifo", "/tmp", "/var/tmp", "/dev/shm")


def marked_processes(mark: str) -> dict[int, str]:
    """Processes that inherited the mark: {pid: command line}; zombies of ours included."""
    needle = f"{MARK}={mark}".encode()
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            environ = Path(f"/proc/{entry}/environ").read_bytes()
            if needle in environ.split(b"\0"):
                command = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ")
                found[int(entry)] = command.decode(errors="replace").strip()
        except OSError:
            continue
    return found


def processes_with(text: str) -> dict[int, str]:
    """Processes with ``text`` in their command line (forked shims, containers' runtimes)."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                command = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ")
            except OSError:
                continue
            if text in command.decode(errors="replace"):
                found[int(entry)] = command.decode(errors="replace").strip()
    return found


def mounts_below(directory: str) -> list[str]:
    """Mount points below a directory in this mount namespace, deepest last."""
    with open("/proc/self/mountinfo") as lines:
        points = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    return sorted(point for point in points if point.startswith(directory + "/"))


def cgroups_named(part: str) -> list[str]:
    """Cgroup directories with ``part`` in their name, in every hierarchy."""
    found = []
    for top in Path("/sys/fs/cgroup").iterdir():
        if not top.is_dir() or top.is_symlink():
            continue
        for current, directories, _ in os.walk(top):
            found += [os.path.join(current, d) for d in directories if part in d]
    return found


def sockets_below(directory: str) -> list[str]:
    """Paths of unix sockets that are bound below a directory, whoever holds them."""
    with open("/proc/net/unix") as lines:
        paths = [line.split()[-1] for line in lines]
    return sorted({path for path in paths if path.lstrip("@").startswith(directory + "/")})


def states_named(name: str) -> list[str]:
    """Entries of this name a little below ``/run``: runtimes' states, network namespaces."""
    found = []
    for top in RUN:
        for current, directories, files in os.walk(top):
            found += [
                os.path.join(current, each) for each in (*directories, *files) if each == name
            ]
            if current.count("/") > top.count("/") + 1:
                directories.clear()
    return found


def remains(mark: str, directory: str) -> list[str]:
    """Everything of a test that is still there, in words."""
    left = [f"process {pid}: {command}" for pid, command in marked_processes(mark).items()]
    left += [f"process {pid}: {command}" for pid, command in processes_with(directory).items()]
    left += [f"mount {point}" for point in mounts_below(directory)]
    left += [f"socket {path}" for path in sockets_below(directory)]
    # The namespace's own cgroup, and its directory of a runtime's state, are made by the runtime
    # as parents; nobody removes them.
    left += [f"cgroup {path}" for path in cgroups_named(mark) if not is_empty_parent(path, mark)]
    left += [f"state {path}" for path in states_named(mark) if not is_empty_parent(path, mark)]
    return left


def is_empty_parent(path: str, mark: str) -> bool:
    """True for the cgroup or state of the namespace itself with nothing in it."""
    if os.path.basename(path) != mark:
        return False
    try:
        with os.scandir(path) as entries:
            children = any(entry.is_dir() for entry in entries)
        return not children and not Path(path, "cgroup.procs").read_text()
    except FileNotFoundError:
        return not os.path.exists(path) or not os.listdir(path)
    except NotADirectoryError:
        return False


def assert_settled(mark: str, directory: str, patience: float = 10.0) -> None:
    """Return once nothing is left; fail when ``patience`` seconds do not get there."""
    deadline = time.monotonic() + patience
    while left := remains(mark, directory):
        if time.monotonic() > deadline:
            raise AssertionError("left behind:\n" + "\n".join(left))
        time.sleep(0.02)


def remove_parents(mark: str) -> None:
    """Remove what runtimes have made for the namespace, and leave to its next container."""
    for path in (*sorted(cgroups_named(mark), reverse=True), *states_named(mark)):
        with suppress(OSError):
            os.rmdir(path)


class Places:
    """What lies in the places that all programs of a machine share, to compare with later."""

    def __init__(self) -> None:
        self._entries = self._read()

    def added(self) -> list[str]:
        """Paths that were not there at first."""
        return sorted(self._read() - self._entries)

    @staticmethod
    def _read() -> set[str]:
        found = set()
        for place in SHARED:
            with suppress(FileNotFoundError, NotADirectoryError):
                names = [name for name in os.listdir(place) if not name.startswith("pytest-of-")]
                found |= {os.path.join(place, name) for name in names}
        return found
