"""Blocking. A layer from what differs between two trees.

As the original writes one: each entry with the directories above it, once; deletions as empty
files ``.wh.<name>`` of the epoch; files that are one inode as hard links to the first of them,
also those of their names that did not change; no sockets; of the extended attributes only the
file capability; times cut to seconds.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from cradled.archive import tar, tarwriter, whiteouts
from cradled.archive.compare import OPEN_FILE, Change, Comparison, capability, read_link
from cradled.archive.tar import Entry

_READ = 256 << 10
_CAPABILITY = b"security.capability"
_KINDS = {
    stat.S_IFREG: tar.REGULAR,
    stat.S_IFDIR: tar.DIRECTORY,
    stat.S_IFLNK: tar.SYMLINK,
    stat.S_IFCHR: tar.CHARACTER,
    stat.S_IFBLK: tar.BLOCK_DEVICE,
    stat.S_IFIFO: tar.FIFO,
}

Write = Callable[[bytes], object]


class LayerWriter:
    """Writes what a comparison finds as a tar stream.

    ``latest``: nanoseconds since the epoch that no time of modification may exceed.
    """

    def __init__(self, comparison: Comparison, write: Write, *, latest: int | None = None) -> None:
        self._comparison = comparison
        self._tree = comparison.right
        self._write = write
        self._latest = latest
        self._listed: set[bytes] = {b""}
        self._first_names: dict[tuple[int, int], bytes] = {}
        self._same_names: dict[tuple[int, int], list[bytes]] = {}

    def run(self) -> None:
        """Write it all. Raises OSError, also for a file that changes while it is read."""
        for change in self._comparison.changes():
            if change.status is None:
                self._whiteout(change.path)
            elif not stat.S_ISSOCK(change.status.st_mode):
                self._present(change, change.status)
        self._write(tarwriter.END)

    def _whiteout(self, path: bytes) -> None:
        above, slash, name = path.rpartition(b"/")
        self._list_parents(path)
        hidden = above + slash + whiteouts.PREFIX + name
        self._write(tarwriter.header(Entry(hidden, tar.REGULAR, 0, 0, 0, 0, 0)))

    def _present(self, change: Change, status: os.stat_result) -> None:
        path = change.path
        if status.st_nlink < 2 or stat.S_ISDIR(status.st_mode):
            self._put(path, status)
            return
        inode = status.st_dev, status.st_ino
        if first := self._first_names.get(inode):
            self._put_link(path, status, first)
        elif change.same:  # of use once another name of it shows up
            self._same_names.setdefault(inode, []).append(path)
        else:
            self._first_names[inode] = path
            self._put(path, status)
            for other in self._same_names.pop(inode, ()):
                self._put_link(other, status, path)

    def _put(self, path: bytes, status: os.stat_result) -> None:
        entry = self._entry(path, status)
        if entry.kind == tar.SYMLINK:
            entry.link = read_link(self._tree, path)
        elif entry.kind == tar.DIRECTORY:
            entry.name += b"/"
        self._list_parents(path)
        if entry.kind == tar.DIRECTORY:
            self._listed.add(path)
        if entry.kind == tar.REGULAR:
            self._file(path, entry, status)
        else:
            self._write(tarwriter.header(entry))

    def _put_link(self, path: bytes, status: os.stat_result, first: bytes) -> None:
        entry = self._entry(path, status)
        entry.kind, entry.link, entry.size = tar.LINK, first, 0
        self._list_parents(path)
        self._write(tarwriter.header(entry))

    def _entry(self, path: bytes, status: os.stat_result) -> Entry:
        kind = _KINDS[stat.S_IFMT(status.st_mode)]
        mtime = status.st_mtime_ns
        if self._latest is not None:
            mtime = min(mtime, self._latest)
        size = status.st_size if kind == tar.REGULAR else 0
        mode = stat.S_IMODE(status.st_mode)
        entry = Entry(path, kind, mode, status.st_uid, status.st_gid, size, mtime)
        if kind in (tar.CHARACTER, tar.BLOCK_DEVICE):
            entry.major, entry.minor = os.major(status.st_rdev), os.minor(status.st_rdev)
        if found := capability(self._tree, path):
            entry.xattrs = {_CAPABILITY: found}
        return entry

    def _list_parents(self, path: bytes) -> None:
        """Have the directories above written that were not yet, the outermost first."""
        missing = []
        above = path.rpartition(b"/")[0]
        while above not in self._listed:
            missing.append(above)
            above = above.rpartition(b"/")[0]
        for path in reversed(missing):
            self._put(path, os.fstat(self._tree.directory(path).fd))

    def _file(self, path: bytes, entry: Entry, status: os.stat_result) -> None:
        above, _, name = path.rpartition(b"/")
        fd = os.open(name, OPEN_FILE, dir_fd=self._tree.directory(above).fd)
        try:
            is_now = os.fstat(fd)
            if (is_now.st_ino, is_now.st_mode) != (status.st_ino, status.st_mode):
                raise _changed(path)
            self._write(tarwriter.header(entry))
            left = entry.size
            while left:
                data = os.read(fd, min(left, _READ))
                if not data:
                    raise _changed(path)
                self._write(data)
                left -= len(data)
        finally:
            os.close(fd)
        if entry.size % tar.BLOCK:
            self._write(tarwriter.padding(entry.size))


def _changed(path: bytes) -> OSError:
    return OSError(errno.ESTALE, "the file changed while it was read", path)
