"""Blocking. Subvolumes of btrfs: made, copied, removed and named to mount (linux/btrfs.h)."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable

from cradled.linux import mount

_ROOT_INODE = 256  # of every subvolume

_SUBVOL_CREATE = 0x5000940E
_SNAP_DESTROY = 0x5000940F
_SNAP_CREATE_V2 = 0x50009417
_SUBVOL_SETFLAGS = 0x4008941A
_INO_LOOKUP = 0xD0009412
_READ_ONLY = 2

_BY_NAME = struct.Struct("=q4088s")  # a descriptor and a name
_BY_NAME_2 = struct.Struct("=qQQ32s4040s")  # and flags
_LOOKUP = struct.Struct("=QQ4080s")  # tree, object, name


def create(path: str) -> None:
    """Make an empty subvolume. Raises OSError: ENOTTY where it would not lie on btrfs."""
    _in_parent(path, _SUBVOL_CREATE, lambda name: _BY_NAME.pack(0, name))


def snapshot(source: str, path: str) -> None:
    """Make a writable subvolume that begins as another one is now."""
    fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _in_parent(path, _SNAP_CREATE_V2, lambda name: _BY_NAME_2.pack(fd, 0, 0, b"", name))
    finally:
        os.close(fd)


def freeze(path: str) -> None:
    """Make a subvolume read-only."""
    _ioctl(path, _SUBVOL_SETFLAGS, struct.pack("=Q", _READ_ONLY))


def destroy(path: str) -> None:
    """Remove a subvolume with all that is in it, however much. Raises OSError."""
    _in_parent(path, _SNAP_DESTROY, lambda name: _BY_NAME.pack(0, name))


def is_subvolume(path: str) -> bool:
    """Whether there is a subvolume."""
    try:
        return os.lstat(path).st_ino == _ROOT_INODE
    except FileNotFoundError:
        return False


def subvolume_id(path: str) -> int:
    """The number by which a subvolume can be mounted."""
    found = _ioctl(path, _INO_LOOKUP, _LOOKUP.pack(0, _ROOT_INODE, b""))
    return int(_LOOKUP.unpack(found)[0])


def device(path: str) -> str:
    """A block device of the file system that a path lies on. Raises ValueError for another kind."""
    path = os.path.realpath(path)
    found = None
    for entry in mount.mounts():
        inside = path == entry.target or path.startswith(entry.target.rstrip("/") + "/")
        if inside and (found is None or len(entry.target) >= len(found.target)):
            found = entry
    if found is None or found.type != "btrfs":
        raise ValueError(f"{path} is not on btrfs")
    return found.source


def _in_parent(path: str, request: int, arguments: Callable[[bytes], bytes]) -> None:
    parent, name = os.path.split(path)
    _ioctl(parent, request, arguments(os.fsencode(name)), named=path)


def _ioctl(path: str, request: int, data: bytes, named: str = "") -> bytes:
    buffer = bytearray(data)  # bytes would be copied, and no more than 1 KiB
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, request, buffer)
        return bytes(buffer)
    except OSError as error:
        error.filename = named or path
        raise
    finally:
        os.close(fd)
