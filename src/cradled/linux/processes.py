"""Blocking. Processes found by where they are."""

from __future__ import annotations

import os
import select
import signal

_DYING = 1.0  # seconds; one that its disk holds up takes longer


def end_those_in(directory: str) -> None:
    """Kill all processes whose working directory this is, and wait for their ends, but not long."""
    for name in os.listdir("/proc"):
        if name.isdigit() and _directory(int(name)) == directory:
            _end(int(name), directory)


def _directory(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:  # gone, or the kernel's
        return ""


def _end(pid: int, directory: str) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if _directory(pid) == directory:  # now the number cannot be another's
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], _DYING)
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)
