"""Blocking. The master side of a pseudo-terminal.

Used by the shim: imports only C modules.
"""

from __future__ import annotations

from fcntl import ioctl
from struct import pack
from termios import TIOCSWINSZ


def set_size(master: int, width: int, height: int) -> None:
    """Tell the terminal its size in characters; its foreground processes get SIGWINCH."""
    ioctl(master, TIOCSWINSZ, pack("HHHH", height, width, 0, 0))
