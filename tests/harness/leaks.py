"""Proof that a test leaves nothing behind: no process, mount, cgroup, network namespace or socket.

Everything a test starts carries a mark in its environment and lives below one directory, so that
two runs on one machine never see each other's remains.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

MARK = "CRADLED_TEST_MARK"


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


def network_namespaces() -> set[str]:
    """Names bound below /run/netns."""
    try:
        return set(os.listdir("/run/netns"))
    except FileNotFoundError:
        return set()


def remains(mark: str, directory: str) -> list[str]:
    """Everything of a test that is still there, in words."""
    left = [f"process {pid}: {command}" for pid, command in marked_processes(mark).items()]
    left += [f"process {pid}: {command}" for pid, command in processes_with(directory).items()]
    left += [f"mount {point}" for point in mounts_below(directory)]
    # The namespace's own cgroup is made by the runtime as a parent; nobody removes it.
    left += [f"cgroup {path}" for path in cgroups_named(mark) if not is_empty_parent(path, mark)]
    return left


def is_empty_parent(path: str, mark: str) -> bool:
    """True for the cgroup of the namespace itself with no process and no child in it."""
    if os.path.basename(path) != mark:
        return False
    try:
        with os.scandir(path) as entries:
            children = any(entry.is_dir() for entry in entries)
        return not children and not Path(path, "cgroup.procs").read_text()
    except FileNotFoundError:
        return True


def assert_settled(mark: str, directory: str, patience: float = 10.0) -> None:
    """Return once nothing is left; fail when ``patience`` seconds do not get there."""
    deadline = time.monotonic() + patience
    while left := remains(mark, directory):
        if time.monotonic() > deadline:
            raise AssertionError("left behind:\n" + "\n".join(left))
        time.sleep(0.02)
