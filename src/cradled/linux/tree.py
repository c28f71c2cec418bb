"""Blocking. Whole directory trees: measured, or removed, never leaving them.

Neither follows a symbolic link nor enters what is mounted below, and both take a tree of any depth:
one directory is open at a time, and the way up is checked.
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def usage(path: str | bytes) -> tuple[int, int]:
    """Allocated bytes and number of inodes of a tree, its root included; hard links count once.

    Files that vanish meanwhile are not counted.
    """
    size = inodes = 0
    for status in _inodes(path):
        size += status.st_blocks * 512
        inodes += 1
    return size, inodes


def usage_of_changes(path: str | bytes, base: str | bytes) -> tuple[int, int]:
    """As ``usage``, of what has changed since the tree was made as a snapshot of ``base``, which
    has kept its inodes."""
    known = {(status.st_ino, status.st_ctime_ns) for status in _inodes(base)}
    size = inodes = 0
    for status in _inodes(path):
        if (status.st_ino, status.st_ctime_ns) not in known:
            size += status.st_blocks * 512
            inodes += 1
    return size, inodes


def _inodes(path: str | bytes) -> Iterator[os.stat_result]:
    """Every inode of a tree once."""
    with _Walker(os.open(path, _OPEN)) as walker:
        top = os.fstat(walker.fd)
        yield top
        linked: set[int] = set()
        while True:
            for entry in walker.entries():
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if status.st_dev != top.st_dev:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    walker.enter_later(entry.name)
                elif status.st_nlink > 1:
                    if status.st_ino in linked:
                        continue
                    linked.add(status.st_ino)
                yield status
            if not walker.advance():
                return


def remove_tree(path: str | bytes) -> None:
    """Remove a file, or a directory with all that is in it. Nothing there is fine.

    Raises OSError: EBUSY for what is mounted in it, which stays.
    """
    parent, name = os.path.split(os.path.abspath(path))
    fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        remove_entry(fd, name)
    finally:
        os.close(fd)


def remove_entry(parent: int, name: str | bytes) -> None:
    """``remove_tree`` of a name in an open directory."""
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        pass
    else:
        return
    if not _remove_empty(parent, name):
        empty_directory(parent, name)
        os.rmdir(name, dir_fd=parent)


def empty_directory(parent: int, name: str | bytes) -> None:
    """Remove all that is in the directory ``name``; the directory itself stays."""
    with _Walker(os.open(name, _OPEN, dir_fd=parent)) as walker:
        while True:
            for entry in walker.entries():
                if entry.is_dir(follow_symlinks=False):
                    walker.enter_later(entry.name)
                else:
                    os.unlink(entry.name, dir_fd=walker.fd)
            if not walker.advance(remove=True):
                return


def _remove_empty(parent: int, name: str | bytes) -> bool:
    """Remove a directory unless there is something in it. A mount point raises EBUSY, full or not:
    it cannot be told by its device, which a bind mount may share."""
    try:
        os.rmdir(name, dir_fd=parent)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


class _Walker:
    """Depth-first walk with one open directory. Directories not entered yet wait in lists."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._device = os.fstat(fd).st_dev
        self._waiting: list[list[str]] = [[]]  # of every directory on the way down
        self._way: list[
            tuple[int, str]
        ] = []  # inode of the directory left, name of the one entered

    def __enter__(self) -> _Walker:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def entries(self) -> Iterator[os.DirEntry[str]]:
        with os.scandir(self.fd) as entries:
            yield from entries

    def enter_later(self, name: str) -> None:
        """Walk into this entry of the current directory when its turn comes."""
        self._waiting[-1].append(name)

    def advance(self, *, remove: bool = False) -> bool:
        """Go to the next directory; False after the last. ``remove`` those that are done."""
        while True:
            while self._waiting[-1]:
                name = self._waiting[-1].pop()
                if not (remove and _remove_empty(self.fd, name)) and self._enter(name):
                    return True
            if not self._way:
                return False
            self._leave(remove)

    def _enter(self, name: str) -> bool:
        try:
            fd = os.open(name, _OPEN, dir_fd=self.fd)
        except FileNotFoundError:
            return False
        if os.fstat(fd).st_dev != self._device:
            os.close(fd)
            return False
        self._way.append((os.fstat(self.fd).st_ino, name))
        self._waiting.append([])
        os.close(self.fd)
        self.fd = fd
        return True

    def _leave(self, remove: bool) -> None:
        inode, name = self._way.pop()
        self._waiting.pop()
        fd = os.open("..", _OPEN, dir_fd=self.fd)
        if os.fstat(fd).st_ino != inode:
            os.close(fd)
            raise OSError(errno.ESTALE, "the tree is being moved about", name)
        os.close(self.fd)
        self.fd = fd
        if remove:
            os.rmdir(name, dir_fd=fd)
