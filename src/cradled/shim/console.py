"""Blocking. The socket over which a runtime hands over the master of a new terminal.

It lies in the bundle. A path to it there may be longer than a socket's address can be, so it is
named through the shim's own descriptor of the directory.
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, socket

from cradled.linux import fds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self


class ConsoleSocket:
    """Listens while a runtime starts a process; ``path`` is for its command line."""

    __slots__ = ("_directory", "_local", "_socket", "path")

    def __init__(self, bundle: str, name: str) -> None:
        self._directory = os.open(bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        place = f"fd/{self._directory}/{name}"
        self._local = f"/proc/self/{place}"
        self.path = f"/proc/{os.getpid()}/{place}"
        self._socket = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK)
        try:
            self._socket.bind(self._local)
            self._socket.listen(1)
        except BaseException:
            self.close()
            raise

    def receive(self) -> int:
        """The master, non-blocking, once the runtime has ended well. Raises OSError."""
        fd, _ = self._socket._accept()  # type: ignore[attr-defined]
        connection = socket(AF_UNIX, SOCK_STREAM, 0, fd)
        try:
            master = fds.receive(connection)
        finally:
            connection.close()
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
