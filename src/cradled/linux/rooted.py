"""Blocking. Paths below a directory that nothing in them can lead out of.

A path is walked one component at a time: each is opened relative to the directory before it and
without following links, so the kernel never sees ``..``, a slash or a symbolic link of somebody
else's making. Links are read and walked here, ``..`` goes up in the canonical path and stops at the
root. This holds whatever happens to the tree meanwhile; unlike openat2(2) with RESOLVE_IN_ROOT it
also tells the canonical path, lets missing directories be made on the way, and costs nothing more
for a directory whose parent is open already.

Open directories are kept, ``KEPT`` at most, by canonical path.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Callable

KEPT = 256
_MAX_LINKS = 255
_MAX_PATH = 4096
OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Directory:
    """An open directory; it closes when the last user lets go of it.

    ``path`` is canonical and relative to the root, which has the empty one. ``inherits`` says that
    new files may get more from it than is asked for: its group, or rights by a default ACL.
    """

    __slots__ = ("fd", "inherits", "path")

    def __init__(self, fd: int, path: bytes, inherits: bool) -> None:
        self.fd = fd
        self.path = path
        self.inherits = inherits

    def close(self) -> None:
        """Close it now; of no use after."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    __del__ = close

    def below(self, name: bytes) -> bytes:
        """Canonical path of an entry."""
        return self.path + b"/" + name if self.path else name


Missing = Callable[[Directory, bytes], None]


class RootedTree:
    """The directories below a root.

    ``missing`` is called with parent and name for a component that is not there, or is neither
    directory nor link: it makes the directory, or raises.
    """

    def __init__(self, root: str | bytes, missing: Missing | None = None) -> None:
        self._missing = missing
        self.root = _opened(os.open(root, OPEN_DIRECTORY & ~os.O_NOFOLLOW), b"")
        self._kept: OrderedDict[bytes, Directory] = OrderedDict()
        self._aliases: dict[bytes, Directory] = {}
        self._last_path = b""
        self._last = self.root

    def close(self) -> None:
        """Close all directories; the tree is of no use after."""
        for directory in (*self._kept.values(), *self._aliases.values(), self._last, self.root):
            directory.close()

    def directory(self, path: bytes, *, make: bool = False) -> Directory:
        """The directory at a path, with ``make`` after calling for what is missing.

        Raises OSError: ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG.
        """
        if path == self._last_path:
            return self._last
        found = self._kept.get(path)
        if found is not None:
            self._kept.move_to_end(path)
        else:
            found = self._aliases.get(path) or self._walk(path, make)
        self._last_path = path
        self._last = found
        return found

    def keep(self, directory: Directory) -> None:
        """Remember an open directory, in place of one known by that path."""
        kept = self._kept
        if directory.path in kept:
            self.forget_links()
        kept[directory.path] = directory
        kept.move_to_end(directory.path)
        if len(kept) > KEPT:
            kept.popitem(last=False)

    def forget(self, path: bytes) -> None:
        """What was at this canonical path, and below, is there no more."""
        below = path + b"/"
        for kept in [known for known in self._kept if known == path or known.startswith(below)]:
            del self._kept[kept]
        self.forget_links()

    def forget_links(self) -> None:
        """A symbolic link is gone or changed."""
        self._aliases.clear()
        self._last_path, self._last = b"", self.root

    def _walk(self, path: bytes, make: bool) -> Directory:
        if len(path) > _MAX_PATH:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path[:64])
        here, rest = self._nearest(path)
        todo = rest.split(b"/")[::-1]
        links = 0
        while todo:
            name = todo.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                here = self._up(here)
                continue
            child, link = self._child(here, name, make)
            if child is not None:
                here = child
                continue
            links += 1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if link.startswith(b"/"):
                here = self.root
            todo += link.split(b"/")[::-1]
        if links:
            if len(self._aliases) > KEPT:
                self._aliases.clear()
            self._aliases[path] = here
        return here

    def _nearest(self, path: bytes) -> tuple[Directory, bytes]:
        """The lowest open directory on a path, and the rest of the path."""
        end = len(path)
        while end > 0:
            known = self._kept.get(path[:end])
            if known is not None:
                return known, path[end + 1 :]
            end = path.rfind(b"/", 0, end)
        return self.root, path

    def _up(self, here: Directory) -> Directory:
        parent = here.path.rpartition(b"/")[0]
        return self._kept.get(parent) or (self._walk(parent, False) if parent else self.root)

    def _child(self, parent: Directory, name: bytes, make: bool) -> tuple[Directory | None, bytes]:
        """The directory of that name, or where the symbolic link of that name leads."""
        path = parent.below(name)
        known = self._kept.get(path)
        if known is not None:
            return known, b""
        for again in (True, False):
            try:
                fd = os.open(name, OPEN_DIRECTORY, dir_fd=parent.fd)
            except FileNotFoundError:
                if not (make and again and self._missing):
                    raise
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                link = _link(parent, name)
                if link:
                    return None, link
                if not (make and again and self._missing):
                    raise NotADirectoryError(
                        errno.ENOTDIR, os.strerror(errno.ENOTDIR), path
                    ) from None
            else:
                directory = _opened(fd, path)
                self.keep(directory)
                return directory, b""
            self._missing(parent, name)
        raise AssertionError


def normal(name: bytes) -> bytes:
    """A name as an archive has it, relative to the root and without empty, ``.`` or ``..`` parts.

    ``..`` takes away the part before it, as text; the root has the empty name.
    """
    if b"." not in name and b"//" not in name:
        return name.strip(b"/")
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part and part != b".":
            parts.append(part)
    return b"/".join(parts)


def _opened(fd: int, path: bytes) -> Directory:
    inherits = bool(os.fstat(fd).st_mode & 0o2000)
    if not inherits:
        try:
            os.getxattr(fd, "system.posix_acl_default")
            inherits = True
        except OSError:
            pass
    return Directory(fd, path, inherits)


def _link(parent: Directory, name: bytes) -> bytes:
    """Where a symbolic link leads; nothing when it is something else."""
    try:
        return os.readlink(name, dir_fd=parent.fd)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return b""
