"""Blocking. Mounts whose files have other owners than on disk (ID-mapped mounts, Linux 5.12).

A mapping is a text ``inside:outside:length[,...]``: what belongs to ``inside`` on disk belongs to
``outside`` where it is mounted. Overlay takes ID-mapped layers from Linux 5.19 on. Sources:
mount_setattr(2), user_namespaces(7).
"""

from __future__ import annotations

import errno
import os

from cradled.linux import libc

_CLONE_NEWUSER = 0x10000000
_OPEN_TREE_CLONE = 1
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_MOUNT_ATTR_IDMAP = 0x100000
_MOVE_MOUNT_F_EMPTY_PATH = 4
_FAILED = 1


def lines(mapping: str) -> str:
    """A mapping as /proc/PID/uid_map takes it. Raises ValueError."""
    ranges = []
    for part in mapping.split(","):
        numbers = part.split(":")
        if len(numbers) != 3 or not all(x.isascii() and x.isdigit() for x in numbers):
            raise ValueError(f'bad mapping of IDs "{mapping}"')
        ranges.append(" ".join(numbers))
    return "\n".join(ranges) + "\n"


def user_namespace(uidmap: str, gidmap: str) -> int:
    """A descriptor of a new user namespace with these mappings. Raises OSError, ValueError."""
    uids, gids = lines(uidmap), lines(gidmap)
    libc.load()  # the child calls nothing that may wait for a lock of another thread
    hear, tell = os.pipe2(os.O_CLOEXEC)
    end, hold = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.fork()
        if pid == 0:
            _be_namespace(tell, end, hold)
        try:
            os.close(tell)
            tell = -1
            if os.read(hear, 1) != b".":
                raise OSError(errno.EPERM, "cannot make a user namespace")
            for name, text in (("uid_map", uids), ("gid_map", gids)):
                with open(f"/proc/{pid}/{name}", "wb", buffering=0) as file:
                    file.write(text.encode())
            return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(hold)
            hold = -1
            os.waitpid(pid, 0)
    finally:
        for fd in (hear, tell, end, hold):
            if fd >= 0:
                os.close(fd)


def _be_namespace(tell: int, end: int, hold: int) -> None:
    """What the child does: live in a new namespace until the parent has what it needs of it."""
    try:
        os.close(hold)
        libc.unshare(_CLONE_NEWUSER)
        os.write(tell, b".")
        os.read(end, 1)
    finally:
        os._exit(_FAILED)


def mapped(source: str, namespace: int, *, recursive: bool = False) -> int:
    """A descriptor of a detached mount of a directory or file, with the namespace's mappings."""
    below = _AT_RECURSIVE if recursive else 0
    fd = copied(source, recursive=recursive)
    try:
        values = (_MOUNT_ATTR_IDMAP, 0, 0, namespace)
        attributes = libc.buffer(b"".join(value.to_bytes(8, "little") for value in values))
        where = (fd, b"", _AT_EMPTY_PATH | below)
        libc.syscall(libc.SYS_MOUNT_SETATTR, *where, attributes, len(attributes), path=source)
    except BaseException:
        os.close(fd)
        raise
    return fd


def copied(source: str, *, recursive: bool = False) -> int:
    """A descriptor of a detached copy of the mount at a path, which is what it shows."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    name = os.fsencode(source)
    return libc.syscall(libc.SYS_OPEN_TREE, libc.AT_FDCWD, name, flags, path=source)


def attach(fd: int, target: str) -> None:
    """Mount a detached mount on ``target``."""
    where = (libc.AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)
    libc.syscall(libc.SYS_MOVE_MOUNT, fd, b"", *where, path=target)
