"""Blocking. Named pipes, and files in their place, opened so that nothing waits for another side.

Used by the shim: imports only ``os`` and C modules.
"""

from __future__ import annotations

import os
from fcntl import F_SETPIPE_SZ, fcntl, ioctl
from stat import S_ISFIFO
from termios import FIONREAD

USUAL, LARGE = 65536, 262144
"""Bytes that a pipe holds as it is made, and when it has been enlarged."""

_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC


def is_fifo(path: str) -> bool:
    """Whether there is a FIFO at ``path``. Raises OSError when there is nothing."""
    return S_ISFIFO(os.stat(path).st_mode)


def open_both(path: str) -> int:
    """Both ends in one descriptor.

    A writer of it is never refused for want of a reader, and its reader never sees the end.
    """
    return os.open(path, os.O_RDWR | _FLAGS)


def open_reader(path: str) -> int:
    """The reading end, without waiting for a writer."""
    return os.open(path, os.O_RDONLY | _FLAGS)


def open_writer(path: str) -> int:
    """The writing end; there must be a reader."""
    return os.open(path, os.O_WRONLY | _FLAGS)


def open_appender(path: str, flags: int = 0) -> int:
    """What is there, to be appended to; writes may block. A FIFO nobody reads is refused."""
    flags |= os.O_WRONLY | os.O_APPEND | _FLAGS
    fd = os.open(path, flags, 0o644)
    os.set_blocking(fd, True)
    return fd


def open_log(path: str) -> int:
    """A file to be appended to, made with its directories where it is missing."""
    try:  # noqa: SIM105 (contextlib is not worth its import)
        os.makedirs(os.path.dirname(path) or ".", 0o755, exist_ok=True)
    except FileExistsError:
        pass  # not a directory, as the open will say
    return open_appender(path, os.O_CREAT)


def waiting(fd: int) -> int:
    """Bytes that lie in a pipe."""
    return int.from_bytes(ioctl(fd, FIONREAD, bytes(4)), "little")


def enlarge(fd: int) -> None:
    """Let a pipe hold more, if this user may have more."""
    try:  # noqa: SIM105 (contextlib is not worth its import)
        fcntl(fd, F_SETPIPE_SZ, LARGE)
    except OSError:
        pass
