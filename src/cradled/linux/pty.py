"""Blocking. The master side of a pseudo-terminal.

Used by the shim: imports only ``os``, ``linux.fds``, ``linux.unix`` and C modules.
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, SOCK_STREAM, socket
from fcntl import ioctl
from struct import pack
from termios import TIOCSWINSZ

from cradled.linux import fds, unix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self


def set_size(master: int, width: int, height: int) -> None:
    """Tell the terminal its size in characters; its foreground processes get SIGWINCH."""
    ioctl(master, TIOCSWINSZ, pack("HHHH", height, width, 0, 0))


class HandOver:
    """A socket, in ``directory``, over which a program hands over a master; it is told ``path``.

    A path to the directory may be longer than a socket's address can be, so the socket is named
    through our own descriptor of the directory.
    """

    __slots__ = ("_directory", "_local", "_socket", "path")

    def __init__(self, directory: str, name: str) -> None:
        self._directory = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        place = f"fd/{self._directory}/{name}"
        self._local = f"/proc/self/{place}"
        self.path = f"/proc/{os.getpid()}/{place}"
        try:
            self._socket = unix.listen(self._local)
            self._socket.setblocking(False)
        except BaseException:
            os.close(self._directory)
            raise

    def receive(self) -> int:
        """The master, non-blocking, once the program has sent it. Raises OSError."""
        connection = socket(AF_UNIX, SOCK_STREAM, 0, unix.accept(self._socket))
        try:
            connection.setblocking(False)
            master = fds.receive(connection)
        finally:
            connection.close()
        if not os.isatty(master):
            os.close(master)
            raise OSError("it is no terminal")
        os.set_blocking(master, False)
        return master

    def close(self) -> None:
        """Remove the socket."""
        self._socket.close()
        try:
            os.unlink(self._local)
        except FileNotFoundError:
            pass
        finally:
            os.close(self._directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
