"""Blocking. Processes found by where they are."""

from __future__ import annotations

import os
import signal


def end_those_in(directory: str) -> None:
    """Kill all processes whose working directory this is; they die a little later."""
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
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)
