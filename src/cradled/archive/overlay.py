"""Blocking. Unpacking a layer straight into the upper directory of an overlay, without mounting it.

What the layer takes away becomes what overlayfs understands: a character device 0:0 hides a name,
the attribute ``overlay.opaque`` hides all that the lower directories have in one. A directory that
the layer goes through but does not list takes its attributes from the nearest lower layer.

Three things need the layers below as they look when mounted, and raise ``LowersNeeded``: a way
through a symbolic link that lies below, a hard link to a file below, and hiding everything at the
root. The caller empties the upper directory and applies the layer again, mounted, by plain rules.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from typing import NoReturn

from cradled.archive.apply import Unpacker, owner_of
from cradled.archive.tar import Entry
from cradled.linux.rooted import OPEN_DIRECTORY, Directory


class LowersNeeded(Exception):
    """The layer cannot be applied without its lower layers mounted."""


class OverlayUnpacker(Unpacker):
    """Overlay rules for the empty upper directory ``root`` over ``lowers``, the nearest first.

    ``user`` keeps overlay's attributes in ``user.`` instead of ``trusted.``, as the mount option
    ``userxattr`` does.
    """

    def __init__(
        self, root: str, lowers: Sequence[str] = (), *, user: bool = False, devices: bool = True
    ) -> None:
        super().__init__(root, devices=devices)
        self._unpacked = None  # there is nothing in the upper directory but what was unpacked
        self._prefix = b"user.overlay." if user else b"trusted.overlay."
        self._opaque: set[bytes] = set()
        self._lowers = lowers

    def hide(self, entry: Entry, parent: Directory, name: bytes) -> None:
        self.remove(parent, name)
        os.mknod(name, stat.S_IFCHR, 0, dir_fd=parent.fd)
        if entry.uid or entry.gid:
            os.chown(name, *owner_of(entry), dir_fd=parent.fd, follow_symlinks=False)

    def hide_all(self, directory: Directory) -> None:
        if not directory.path and self._lowers:
            raise LowersNeeded("an opaque root")
        self._make_opaque(directory.fd, directory.path)

    def replaced_by_directory(self, directory: Directory) -> None:
        # What was there hid what the lower layers have by that name; that must stay hidden.
        self._make_opaque(directory.fd, directory.path)

    def make_implied(self, parent: Directory, name: bytes) -> None:
        path = parent.below(name)
        model = self._nearest_below(path)
        try:
            super().make_implied(parent, name)
        except NotADirectoryError:
            if not _is_whiteout(parent, name):
                raise
            self.remove(parent, name)
            super().make_implied(parent, name)
            model = None
            fd = os.open(name, OPEN_DIRECTORY, dir_fd=parent.fd)
            try:
                self._make_opaque(fd, path)
            finally:
                os.close(fd)
        if model is not None:
            self._copy_attributes(model, parent, name)

    def source_missing(self, error: OSError) -> NoReturn:
        if self._lowers:
            raise LowersNeeded("a hard link to a lower layer") from error
        raise error

    def may_set(self, key: bytes) -> bool:
        return super().may_set(key) and not key.startswith(self._prefix)

    def _make_opaque(self, fd: int, path: bytes) -> None:
        os.setxattr(fd, self._prefix + b"opaque", b"y")
        self._opaque.add(path)

    def _nearest_below(self, path: bytes) -> Directory | None:
        """The directory that the lower layers show by this path, as the nearest of them has it."""
        if any(path.startswith(opaque + b"/") for opaque in self._opaque):
            return None
        stack = [Directory(os.open(lower, _OPEN_LOWER), b"", False) for lower in self._lowers]
        for name in path.split(b"/"):
            stack = self._merged(stack, name)
            if not stack:
                return None
        return stack[0]

    def _merged(self, stack: list[Directory], name: bytes) -> list[Directory]:
        """The directories that make up the entry ``name`` of a merged directory."""
        found: list[Directory] = []
        for lower in stack:
            try:
                fd = os.open(name, OPEN_DIRECTORY, dir_fd=lower.fd)
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                if not found and _is_symlink(lower, name):
                    raise LowersNeeded("a way through a symbolic link below") from None
                break  # a file or whiteout hides what is further down
            found.append(Directory(fd, lower.below(name), False))
            if self._is_opaque(fd):
                break
        return found

    def _is_opaque(self, fd: int) -> bool:
        try:
            return os.getxattr(fd, self._prefix + b"opaque") == b"y"
        except OSError:
            return False

    def _copy_attributes(self, model: Directory, parent: Directory, name: bytes) -> None:
        """Give an implied directory what the merged one had; times come last, as for all."""
        had = os.fstat(model.fd)
        fd = os.open(name, OPEN_DIRECTORY, dir_fd=parent.fd)
        try:
            os.fchown(fd, had.st_uid, had.st_gid)
            names = [os.fsencode(key) for key in os.listxattr(model.fd)]
            xattrs = {key: os.getxattr(model.fd, key) for key in names if self.may_set(key)}
            self.set_xattrs(fd, xattrs, special=False)
            os.fchmod(fd, stat.S_IMODE(had.st_mode))
        finally:
            os.close(fd)
        self.set_times_last(parent.below(name), (had.st_atime_ns, had.st_mtime_ns))


_OPEN_LOWER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def _is_whiteout(parent: Directory, name: bytes) -> bool:
    status = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
    return stat.S_ISCHR(status.st_mode) and not status.st_rdev


def _is_symlink(parent: Directory, name: bytes) -> bool:
    return stat.S_ISLNK(os.stat(name, dir_fd=parent.fd, follow_symlinks=False).st_mode)
