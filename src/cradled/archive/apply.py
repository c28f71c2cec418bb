"""Blocking. Unpacking a layer into a directory.

``Unpacker`` has the plain rules: whiteouts remove what is there. ``cradled.archive.overlay`` has
those for writing straight into an overlay's upper directory. Nothing outside the target is ever
touched: directories are reached as ``cradled.linux.rooted`` tells, and the last component of a name
is only ever created, never followed; what was there before is removed first.

A file costs four system calls: open, write, utimensat, close. Owner and mode are set only where
creating it left something else.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from cradled.archive import tar, whiteouts
from cradled.archive.decompress import LayerStream
from cradled.archive.errors import ArchiveError
from cradled.archive.tar import Entry, TarReader
from cradled.linux.fs import write_all
from cradled.linux.rooted import OPEN_DIRECTORY, Directory, RootedTree, normal
from cradled.linux.tree import remove_entry

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LATEST = (1 << 63) - 1
_ID_MASK = 0xFFFF_FFFF
_UNSUPPORTED = (errno.ENOTSUP, errno.EOPNOTSUPP)


class Applied(NamedTuple):
    """Digest and size in bytes of the uncompressed layer, and the directories it did not list."""

    digest: str
    size: int
    implied: tuple[bytes, ...] = ()


def apply(stream: LayerStream, unpacker: Unpacker) -> Applied:
    """Unpack a stream, read it to its end and tell what it was.

    Raises ArchiveError for a bad archive, OSError where the file system refuses something. What
    was unpacked until then stays.
    """
    unpacker.unpack(TarReader(stream))
    stream.drain()
    return Applied(stream.digest, stream.size, tuple(unpacker.implied))


class Unpacker:
    """Plain rules. ``devices`` false leaves out device nodes, which a user namespace forbids.

    For one layer; ``close`` it after."""

    def __init__(self, root: str, *, devices: bool = True) -> None:
        self.tree = RootedTree(root, self._missing)
        self.implied: dict[bytes, None] = {}
        self._devices = devices
        self._unpacked: set[bytes] | None = set()  # and the directories above these
        self._times: dict[bytes, tuple[int, int]] = {}
        self._uid = os.geteuid()
        self._gid = os.getegid()
        self._umask = _umask()
        self._creators: dict[int, Callable[[Entry, Directory, bytes], None]] = {
            tar.DIRECTORY: self._directory,
            tar.SYMLINK: self._symlink,
            tar.LINK: self._link,
            tar.CHARACTER: self._device,
            tar.BLOCK_DEVICE: self._device,
            tar.FIFO: self._fifo,
        }

    def close(self) -> None:
        """Close all directories."""
        self.tree.close()

    def unpack(self, reader: TarReader) -> None:
        """Apply every entry; directories get their times at the end."""
        directory, creators = self.tree.directory, self._creators
        unpacked = self._unpacked
        while (entry := reader.next()) is not None:
            path = normal(entry.name)
            if not path or (not self._devices and entry.kind in _DEVICES):
                continue
            above, _, name = path.rpartition(b"/")
            parent = directory(above, make=True)
            if name.startswith(whiteouts.PREFIX):
                self._whiteout(entry, parent, name)
                continue
            if entry.kind == tar.REGULAR:
                self._file(entry, parent, name, reader)
            elif entry.kind in creators:
                creators[entry.kind](entry, parent, name)
            else:
                raise ArchiveError(f"unhandled tar header type {entry.kind}")
            if unpacked is not None:
                made = parent.below(name)
                while made and made not in unpacked:
                    unpacked.add(made)
                    made = made.rpartition(b"/")[0]
        self._set_directory_times()

    # What an overlay does otherwise.

    def hide(self, entry: Entry, parent: Directory, name: bytes) -> None:
        """A whiteout for this name."""
        self.remove(parent, name)

    def hide_all(self, directory: Directory) -> None:
        """An opaque directory: remove all in it that this layer has not unpacked."""
        wanted = self._unpacked or ()
        pending = [directory.path]
        while pending:
            here = self.tree.directory(pending.pop())
            for name in map(os.fsencode, os.listdir(here.fd)):
                path = here.below(name)
                if path not in wanted:
                    self.remove(here, name)
                elif self._is_directory(here, name):
                    pending.append(path)

    def make_implied(self, parent: Directory, name: bytes) -> None:
        """A directory that the layer does not list, for what it has below."""
        try:
            os.mkdir(name, 0o755, dir_fd=parent.fd)
        except FileExistsError:
            raise not_a_directory(parent, name) from None
        if self._umask & 0o755 or parent.inherits:
            self._chmod(parent, name, 0o755)

    def replaced_by_directory(self, directory: Directory) -> None:
        """A new directory took the place of something that was none."""

    def source_missing(self, error: OSError) -> NoReturn:
        """A hard link's target is not there."""
        raise error

    # Entries by kind.

    def _file(self, entry: Entry, parent: Directory, name: bytes, reader: TarReader) -> None:
        mode = entry.mode & 0o7777
        try:
            fd = os.open(name, _CREATE, mode, dir_fd=parent.fd)
        except FileExistsError:
            self.remove(parent, name)
            fd = os.open(name, _CREATE, mode, dir_fd=parent.fd)
        try:
            if entry.sparse is None:
                while piece := reader.piece():
                    write_all(fd, piece)
            else:
                _write_sparse(fd, entry, reader)
            owned = entry.uid != self._uid or entry.gid != self._gid or parent.inherits
            if owned:
                os.fchown(fd, *owner_of(entry))
            if entry.xattrs:
                self.set_xattrs(fd, entry.xattrs, special=False)
            if owned or entry.xattrs or mode & (0o7000 | self._umask):
                os.fchmod(fd, mode)
            os.utime(fd, ns=_times(entry))
        finally:
            os.close(fd)

    def _directory(self, entry: Entry, parent: Directory, name: bytes) -> None:
        mode = entry.mode & 0o7777
        fresh, replacing = True, False
        try:
            os.mkdir(name, mode & 0o1777, dir_fd=parent.fd)
        except FileExistsError:
            if self._is_directory(parent, name):
                fresh = False
            else:
                self.remove(parent, name)
                os.mkdir(name, mode & 0o1777, dir_fd=parent.fd)
                replacing = True
        acl = any(key.startswith(b"system.posix_acl") for key in entry.xattrs)
        inherits = parent.inherits or acl or bool(mode & 0o2000)
        fd = os.open(name, OPEN_DIRECTORY, dir_fd=parent.fd)
        directory = Directory(fd, parent.below(name), inherits or not fresh)
        owned = not fresh or inherits or entry.uid != self._uid or entry.gid != self._gid
        if owned:
            os.fchown(fd, *owner_of(entry))
        if entry.xattrs:
            self.set_xattrs(fd, entry.xattrs, special=False)
        if owned or entry.xattrs or mode & (0o6000 | self._umask):
            os.fchmod(fd, mode)
        if replacing:
            self.replaced_by_directory(directory)
        self.tree.keep(directory)
        self.implied.pop(directory.path, None)
        self.set_times_last(directory.path, _times(entry))

    def _symlink(self, entry: Entry, parent: Directory, name: bytes) -> None:
        self._create(parent, name, lambda: os.symlink(entry.link, name, dir_fd=parent.fd))
        self._set_attributes(entry, parent, name)

    def _device(self, entry: Entry, parent: Directory, name: bytes) -> None:
        kind = stat.S_IFCHR if entry.kind == tar.CHARACTER else stat.S_IFBLK
        device = os.makedev(entry.major & _ID_MASK, entry.minor & _ID_MASK)
        mode = kind | entry.mode & 0o7777
        self._create(parent, name, lambda: os.mknod(name, mode, device, dir_fd=parent.fd))
        self._set_attributes(entry, parent, name)

    def _fifo(self, entry: Entry, parent: Directory, name: bytes) -> None:
        mode = entry.mode & 0o7777
        self._create(parent, name, lambda: os.mkfifo(name, mode, dir_fd=parent.fd))
        self._set_attributes(entry, parent, name)

    def _link(self, entry: Entry, parent: Directory, name: bytes) -> None:
        above, _, source = entry.link.rpartition(b"/")
        if source in (b"", b".", b".."):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), entry.link)

        def link() -> None:
            there = self.tree.directory(above.lstrip(b"/"))
            where = {"src_dir_fd": there.fd, "dst_dir_fd": parent.fd}
            os.link(source, name, follow_symlinks=False, **where)

        try:
            self._create(parent, name, link)
        except (FileNotFoundError, NotADirectoryError) as error:
            self.source_missing(error)
        self._set_attributes(entry, parent, name)

    # Parts of these.

    def _whiteout(self, entry: Entry, parent: Directory, name: bytes) -> None:
        if name == whiteouts.OPAQUE:
            self.hide_all(parent)
        else:
            self.hide(entry, parent, whiteouts.removed(name))

    def _missing(self, parent: Directory, name: bytes) -> None:
        self.make_implied(parent, name)
        self.implied[parent.below(name)] = None

    def _create(self, parent: Directory, name: bytes, create: Callable[[], None]) -> None:
        try:
            create()
        except FileExistsError:
            self.remove(parent, name)
            create()

    def remove(self, parent: Directory, name: bytes) -> None:
        """Remove whatever has this name, if anything, and what is known about it."""
        try:
            os.unlink(name, dir_fd=parent.fd)
            self.tree.forget_links()
        except FileNotFoundError:
            pass
        except IsADirectoryError:
            path = parent.below(name)
            self.tree.forget(path)
            for known in [d for d in self._times if d == path or d.startswith(path + b"/")]:
                del self._times[known]
            remove_entry(parent.fd, name)

    def _is_directory(self, parent: Directory, name: bytes) -> bool:
        return stat.S_ISDIR(os.stat(name, dir_fd=parent.fd, follow_symlinks=False).st_mode)

    def _set_attributes(self, entry: Entry, parent: Directory, name: bytes) -> None:
        """Owner, extended attributes, mode and times of what is no ordinary file."""
        is_now = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
        uid, gid = owner_of(entry)
        owned = uid not in (is_now.st_uid, -1) or gid not in (is_now.st_gid, -1)
        if owned:
            os.chown(name, uid, gid, dir_fd=parent.fd, follow_symlinks=False)
        if entry.xattrs:
            path = b"/proc/self/fd/%d/%b" % (parent.fd, name)
            self.set_xattrs(path, entry.xattrs, special=not stat.S_ISREG(is_now.st_mode))
        mode = entry.mode & 0o7777
        changed = owned or entry.xattrs or is_now.st_mode & 0o7777 != mode
        if changed and not stat.S_ISLNK(is_now.st_mode):
            self._chmod(parent, name, mode)
        os.utime(name, ns=_times(entry), dir_fd=parent.fd, follow_symlinks=False)

    def _chmod(self, parent: Directory, name: bytes, mode: int) -> None:
        """Set the mode of what must not be opened and is no symbolic link."""
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent.fd)
        try:
            os.chmod(f"/proc/self/fd/{fd}", mode)
        finally:
            os.close(fd)

    def set_xattrs(self, file: int | bytes, xattrs: tar.Xattrs, *, special: bool) -> None:
        """Set what an archive may set and the file system takes."""
        for key, value in xattrs.items():
            if not self.may_set(key):
                continue
            try:
                os.setxattr(file, key, value, follow_symlinks=isinstance(file, int))
            except OSError as error:
                refused = error.errno == errno.EPERM and special and key.startswith(b"user.")
                if error.errno not in _UNSUPPORTED and not refused:
                    raise

    def set_times_last(self, path: bytes, times: tuple[int, int]) -> None:
        """Set a directory's times when nothing more is created in it."""
        self._times[path] = times

    def may_set(self, key: bytes) -> bool:
        """Trusted attributes are the administrator's, never an archive's."""
        return not key.startswith(b"trusted.")

    def _set_directory_times(self) -> None:
        for path, times in self._times.items():
            above, _, name = path.rpartition(b"/")
            parent = self.tree.directory(above)
            os.utime(name, ns=times, dir_fd=parent.fd, follow_symlinks=False)


_DEVICES = (tar.CHARACTER, tar.BLOCK_DEVICE)


def _write_sparse(fd: int, entry: Entry, reader: TarReader) -> None:
    os.ftruncate(fd, entry.size)
    for offset, length in entry.sparse or ():
        os.lseek(fd, offset, os.SEEK_SET)
        while length:
            piece = reader.piece(length)
            write_all(fd, piece)
            length -= len(piece)


def owner_of(entry: Entry) -> tuple[int, int]:
    """IDs as the kernel takes them: 32 bits, of which all ones leave the owner as it is."""
    uid, gid = entry.uid & _ID_MASK, entry.gid & _ID_MASK
    return (-1 if uid == _ID_MASK else uid), (-1 if gid == _ID_MASK else gid)


def not_a_directory(parent: Directory, name: bytes) -> NotADirectoryError:
    """The error for a file where a directory has to be."""
    return NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), parent.below(name))


def _times(entry: Entry) -> tuple[int, int]:
    """Access time, which is never before the modification, and that; the epoch where unusable."""
    mtime = entry.mtime if 0 <= entry.mtime <= _LATEST else 0
    atime = max(entry.atime, entry.mtime)
    return (atime if 0 <= atime <= _LATEST else 0), mtime


def _umask() -> int:
    """The process's umask, without setting it."""
    with open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"Umask:"):
                return int(line[6:], 8)
    return 0o777
