"""Blocking. How many files a process may have open.

The soft limit is low because ``select`` fails with descriptors of 1024 and more. A program that
does not use it may raise its own as far as the hard one; what it starts must have the usual one.
"""

from __future__ import annotations

import resource
from contextlib import suppress

_usual: tuple[int, int] | None = None


def raise_files() -> None:
    """Let this process, a program of ours, have as many files as the hard limit says."""
    global _usual
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):  # then it stays as it is
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            _usual = (soft, hard)


def restore_files(pid: int) -> None:
    """Give a process that this one has just started what it would have had by itself."""
    if _usual is not None:
        with suppress(OSError):  # it has ended already
            resource.prlimit(pid, resource.RLIMIT_NOFILE, _usual)
