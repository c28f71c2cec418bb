"""Blocking. Named pipes, opened so that nothing waits for the other side.

Used by the shim: imports only ``os``.
"""

from __future__ import annotations

import os
from stat import S_ISFIFO

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
