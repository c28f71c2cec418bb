"""Blocking. Copying a tree with everything that a layer can say of a file.

Owners, modes, times, extended attributes, hard links, holes, devices and FIFOs are kept; blocks are
shared where the file system can. Sockets are left out. No symbolic link is followed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

_FICLONE = 0x40049409
_CHUNK = 1 << 24
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL)

Copied = dict[tuple[int, int], str]
"""Where the first of several names of a file was copied to."""


def copy_tree(source: str, target: str) -> None:
    """Copy a directory; ``target`` must not exist. What was made stays when this fails."""
    os.mkdir(target, 0o700)
    _copy_contents(source, target, {})
    _copy_attributes(source, target, os.lstat(source))


def _copy_contents(source: str, target: str, copied: Copied) -> None:
    with os.scandir(source) as entries:
        for entry in entries:
            _copy_entry(entry.path, f"{target}/{entry.name}", copied)


def _copy_entry(source: str, target: str, copied: Copied) -> None:
    status = os.lstat(source)
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFDIR:
        os.mkdir(target, 0o700)
        _copy_contents(source, target, copied)
    elif kind == stat.S_IFSOCK:
        return
    else:
        if status.st_nlink > 1:
            first = copied.setdefault((status.st_dev, status.st_ino), target)
            if first != target:
                os.link(first, target, follow_symlinks=False)
                return
        if kind == stat.S_IFREG:
            copy_file(source, target)
        elif kind == stat.S_IFLNK:
            os.symlink(os.readlink(source), target)
        else:
            os.mknod(target, kind | 0o600, status.st_rdev)
    _copy_attributes(source, target, status)


def _copy_attributes(source: str, target: str, status: os.stat_result) -> None:
    os.lchown(target, status.st_uid, status.st_gid)
    for name in os.listxattr(source, follow_symlinks=False):
        value = os.getxattr(source, name, follow_symlinks=False)
        try:
            os.setxattr(target, name, value, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(target, stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)


def copy_file(source: str, target: str) -> None:
    """Copy what is in a regular file, holes as holes; ``target`` must not exist."""
    reading = os.open(source, _OPEN)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        writing = os.open(target, flags, 0o600)
        try:
            _copy_data(reading, writing)
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _copy_data(reading: int, writing: int) -> None:
    try:
        fcntl.ioctl(writing, _FICLONE, reading)
        return
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    size = os.fstat(reading).st_size
    os.ftruncate(writing, size)
    at = 0
    while at < size:
        try:
            at = os.lseek(reading, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        end = os.lseek(reading, at, os.SEEK_HOLE)
        while at < end:
            copied = os.copy_file_range(reading, writing, min(end - at, _CHUNK), at, at)
            if not copied:
                return
            at += copied
