"""Blocking. Files and directories that are whole or absent, whenever the power goes."""

from __future__ import annotations

import _thread
import os

from cradled.linux import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def atomic_write(path: str, data: bytes, mode: int = 0o644, *, sync: bool = True) -> None:
    """Put a file in place at once; with ``sync`` it is durable when this returns.

    Leaves ``<path>.tmp`` behind when the process dies in between; the next write replaces it.
    Raises OSError, and leaves nothing then.
    """
    temporary = path + ".tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        write_all(fd, data)
        if sync:
            os.fsync(fd)
        os.rename(temporary, path)
    except BaseException:
        discard(temporary)
        raise
    finally:
        os.close(fd)
    if sync:
        sync_directory(os.path.dirname(path) or ".")


def write_all(fd: int, data: bytes | bytearray | memoryview) -> None:
    """Write everything, however many calls it takes."""
    written = os.write(fd, data)
    if written < len(data):
        view = memoryview(data)
        while written < len(view):
            written += os.write(fd, view[written:])


def discard(path: str) -> None:
    """Remove a file, if there is one."""
    try:  # noqa: SIM105 (the shim has no contextlib)
        os.unlink(path)
    except FileNotFoundError:
        pass


def sync_directory(path: str) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_filesystem(path: str) -> None:
    """Make everything durable on the file system that holds ``path``."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc.syncfs(fd)
    finally:
        os.close(fd)


class SharedSync:
    """A sync of one path, made once for everybody who asked before it began."""

    def __init__(self, path: str, sync: Callable[[str], None] = sync_directory) -> None:
        self._path = path
        self._sync = sync
        self._turn = _thread.allocate_lock()
        self._counting = _thread.allocate_lock()
        self._asked = 0
        self._done = 0

    def sync(self) -> None:
        """Return when what was done before the call is durable."""
        with self._counting:
            self._asked = ticket = self._asked + 1
        with self._turn:
            if self._done >= ticket:
                return
            covered = self._asked
            self._sync(self._path)
            self._done = covered
