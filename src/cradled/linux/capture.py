"""Blocking. What a program prints, kept in memory, however much it is.

Used by the shim: imports only ``os`` and C modules.
"""

from __future__ import annotations

import os
from fcntl import F_ADD_SEALS, F_SEAL_GROW, fcntl

SIZE = 1 << 20
"""Bytes that are kept; to write more fails."""
_LINE = 4096


def memory() -> int:
    """A descriptor for a program to write to; who made it closes it. Raises OSError."""
    fd = os.memfd_create("output", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.truncate(fd, SIZE)
    fcntl(fd, F_ADD_SEALS, F_SEAL_GROW)
    return fd


def printed(fd: int) -> bytes:
    """What was written so far: the position is shared with who wrote."""
    return os.pread(fd, min(os.lseek(fd, 0, os.SEEK_CUR), SIZE), 0)


def line(text: bytes) -> str:
    """The end of what was printed, on one line and fit to be shown."""
    words = " ".join(text[-_LINE:].decode(errors="replace").split())
    return "".join(c if c.isprintable() else "\ufffd" for c in words)
