"""Blocking. Lines to stderr, which is the daemon's ``log`` FIFO: dropped when nobody reads them."""

from __future__ import annotations

import os
import sys

from cradled.linux import fifo


def to_daemon(bundle: str) -> None:
    """Have the daemon, which reads the bundle's ``log`` FIFO, get the lines, if there is one."""
    try:
        fd = fifo.open_both(f"{bundle}/log")
    except OSError:
        return
    os.dup2(fd, 2, inheritable=False)
    os.close(fd)


def stay(bundle: str) -> None:
    """Turn to this bundle's FIFO when the one in use has been removed with its bundle."""
    if not os.fstat(2).st_nlink:
        to_daemon(bundle)


def line(text: str) -> None:
    """Write a line."""
    try:  # noqa: SIM105 (contextlib is not worth its import)
        os.write(2, f"{text}\n".encode(errors="replace"))
    except OSError:
        pass


def trace(error: BaseException) -> None:
    """Write an exception that should not have been."""
    try:  # noqa: SIM105
        sys.__excepthook__(type(error), error, error.__traceback__)
    except OSError:
        pass
