"""Blocking. What differs between two trees: the one below (left) and the one above (right).

Both are walked at once, directory by directory, names in the order of their bytes, a directory
before what is in it. As in the original, two entries are the same if they are one inode, or if
mode, owner, device and file capability are equal and, unless they are directories, size and time
of modification too. A time without a fraction may have been cut off by an archive: then the
seconds are compared, and the contents.

Where right is an overlay whose lower layers are what left shows, only what is in its topmost
layer can differ (``topmost``): names come from there, and everything else is as told above.

Paths are walked as ``cradled.linux.rooted`` tells, and no file is opened through a link, because
a container may be at work in the right tree.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from cradled.linux.rooted import Directory, RootedTree

OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CAPABILITY = "security.capability"
_READ = 128 << 10
_BILLION = 1_000_000_000


class Change(NamedTuple):
    """An entry that differs. ``status`` is that of right; None: right does not have it.

    ``same``: it does not differ, but has other names, which may.
    """

    path: bytes
    status: os.stat_result | None
    same: bool = False


class _Level(NamedTuple):
    """A directory on the way down."""

    path: bytes
    names: Iterator[bytes]
    in_left: bool
    pruned: bool


class Comparison:
    """Two trees. ``close`` it after."""

    def __init__(self, left: str, right: str, topmost: Topmost | None = None) -> None:
        self._left = RootedTree(left)
        self.right = RootedTree(right)
        self._topmost = topmost

    def close(self) -> None:
        """Close all directories."""
        self._left.close()
        self.right.close()
        if self._topmost is not None:
            self._topmost.close()

    def changes(self) -> Iterator[Change]:
        """All that differs. The roots themselves are not compared.

        Of a directory that is gone, or is none any more, nothing below is told. Raises OSError,
        also where a tree changes in a way that this cannot make up for.
        """
        levels = [self._level(b"", in_left=True, pruned=self._topmost is not None)]
        while levels:
            level = levels[-1]
            for name in level.names:
                path = level.path + b"/" + name if level.path else name
                before = _status(self._left, level.path, name) if level.in_left else None
                after = _status(self.right, level.path, name)
                if after is None:
                    if before is not None:
                        yield Change(path, None)
                    continue
                if before is None or not self._same(path, before, after):
                    yield Change(path, after)
                elif after.st_nlink > 1 and not stat.S_ISDIR(after.st_mode):
                    yield Change(path, after, same=True)
                if stat.S_ISDIR(after.st_mode):
                    was = before is not None and stat.S_ISDIR(before.st_mode)
                    levels.append(self._level(path, in_left=was, pruned=level.pruned))
                    break
            else:
                levels.pop()

    def _level(self, path: bytes, *, in_left: bool, pruned: bool) -> _Level:
        if in_left and pruned and self._topmost is not None:
            top = self._topmost.names(path)
            if top is not None:
                return _Level(path, iter(sorted(top)), in_left, pruned=True)
        names = _names(self.right, path)
        if in_left:
            names |= _names(self._left, path)
        return _Level(path, iter(sorted(names)), in_left, pruned=False)

    def _same(self, path: bytes, before: os.stat_result, after: os.stat_result) -> bool:
        if (before.st_dev, before.st_ino) == (after.st_dev, after.st_ino):
            return True
        if (before.st_mode, before.st_uid, before.st_gid, before.st_rdev) != (
            after.st_mode, after.st_uid, after.st_gid, after.st_rdev,
        ):  # fmt: skip
            return False
        if stat.S_ISDIR(after.st_mode):
            return self._same_capability(path)
        if before.st_size != after.st_size:
            return False
        seconds, fraction = divmod(before.st_mtime_ns, _BILLION)
        other_seconds, other_fraction = divmod(after.st_mtime_ns, _BILLION)
        if seconds != other_seconds:
            return False
        if fraction and other_fraction:
            return fraction == other_fraction and self._same_capability(path)
        return self._same_capability(path) and self._same_content(path, after)

    def _same_capability(self, path: bytes) -> bool:
        return capability(self._left, path) == capability(self.right, path)

    def _same_content(self, path: bytes, status: os.stat_result) -> bool:
        if stat.S_ISLNK(status.st_mode):
            return read_link(self._left, path) == read_link(self.right, path)
        if not stat.S_ISREG(status.st_mode):
            return True
        with _File(self._left, path) as before, _File(self.right, path) as after:
            while True:
                data = before.read(_READ)
                if data != after.read(len(data) or 1):
                    return False
                if not data:
                    return True


class Topmost:
    """The topmost layer of the overlay that right is.

    ``user``: overlay's marks are in ``user.`` attributes.
    """

    def __init__(self, directory: str, *, user: bool = False) -> None:
        self._tree = RootedTree(directory)
        self._prefix = b"user.overlay." if user else b"trusted.overlay."

    def close(self) -> None:
        """Close all directories."""
        self._tree.close()

    def names(self, path: bytes) -> set[bytes] | None:
        """What can differ in a directory that left and right have; None: anything, also further
        down. So it is in one that hides the layers below, or shows another place of theirs."""
        try:
            directory = self._tree.directory(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
            return None
        if self._has(directory, b"opaque") or self._has(directory, b"redirect"):
            return None
        return set(map(os.fsencode, os.listdir(directory.fd)))

    def _has(self, directory: Directory, mark: bytes) -> bool:
        return _attribute(directory.fd, self._prefix + mark) is not None


class _File:
    """A file of a tree, open for reading as a context manager."""

    def __init__(self, tree: RootedTree, path: bytes) -> None:
        above, _, name = path.rpartition(b"/")
        self._fd = os.open(name, OPEN_FILE, dir_fd=tree.directory(above).fd)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def read(self, size: int) -> bytes:
        """Exactly ``size`` bytes, fewer only at the end."""
        data = os.read(self._fd, size)
        while len(data) < size and (more := os.read(self._fd, size - len(data))):
            data += more
        return data


def capability(tree: RootedTree, path: bytes) -> bytes | None:
    """The file capability of an entry."""
    above, _, name = path.rpartition(b"/")
    return _attribute(b"/proc/self/fd/%d/%b" % (tree.directory(above).fd, name), _CAPABILITY)


def read_link(tree: RootedTree, path: bytes) -> bytes:
    """Where a symbolic link leads."""
    above, _, name = path.rpartition(b"/")
    return os.readlink(name, dir_fd=tree.directory(above).fd)


def _attribute(file: int | bytes, name: bytes | str) -> bytes | None:
    try:
        return os.getxattr(file, name, follow_symlinks=isinstance(file, int))
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.ENOTSUP):
            raise
        return None


def _status(tree: RootedTree, above: bytes, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=tree.directory(above).fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _names(tree: RootedTree, path: bytes) -> set[bytes]:
    return set(map(os.fsencode, os.listdir(tree.directory(path).fd)))
