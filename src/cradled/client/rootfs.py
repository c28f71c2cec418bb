"""Blocking. Small files of a root file system that is described by mounts but mounted nowhere.

Looking up a user before the container exists must not mount anything: a mount could be left over,
and needs rights that reading does not. Binds and overlays are directories in the end; the layers
are searched here as overlayfs does it, with links followed inside of them only.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from cradled.core.mount import Mount
from cradled.errors import InvalidArgument, Unimplemented

_MAX_SIZE = 1 << 20
_MAX_LINKS = 40
_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")


def read_text(mounts: Sequence[Mount], path: str) -> str:
    """The text of a file, empty when it is not there.

    Raises Unimplemented for mounts other than binds and overlays, InvalidArgument for what is no
    regular file of at most 1 MiB.
    """
    found = _find(_layers(mounts), path)
    if found is None:
        return ""
    fd = os.open(found, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_SIZE:
            raise InvalidArgument(f"{path} of the image: not a regular file of at most 1 MiB")
        return file.read(_MAX_SIZE).decode(errors="replace")


def _layers(mounts: Sequence[Mount]) -> list[str]:
    """The directories of a root file system, uppermost first."""
    mount = mounts[0] if len(mounts) == 1 else Mount("none", "")
    if mount.type == "bind":
        return [mount.source]
    if mount.type != "overlay":
        raise Unimplemented("reading users of an image on mounts other than bind and overlay")
    options = dict(option.partition("=")[::2] for option in mount.options)
    lower = options.get("lowerdir", "").replace("\\:", "\0").split(":")
    upper = [options["upperdir"]] if "upperdir" in options else []
    return upper + [name.replace("\0", ":") for name in lower]


def _find(layers: list[str], path: str) -> str | None:
    """Where the file really is; None when it is not there."""
    todo = path.split("/")[::-1]
    trail = [layers]  # merged directories from the root to here
    links = 0
    while todo:
        name = todo.pop()
        if name in ("", "."):
            continue
        if name == "..":
            trail = trail[:-1] or trail
            continue
        found = _look_up(trail[-1], name)
        if not found:
            return None
        mode = os.lstat(found[0]).st_mode
        if stat.S_ISDIR(mode):
            trail.append(found)
        elif stat.S_ISLNK(mode):
            links += 1
            target = os.readlink(found[0])
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            trail = trail[:1] if target.startswith("/") else trail
            todo += target.split("/")[::-1]
        else:
            return None if any(todo) else found[0]
    return None


def _look_up(directories: list[str], name: str) -> list[str]:
    """What a name means in a merged directory: one path, or the directories that merge."""
    merged: list[str] = []
    for directory in directories:
        path = f"{directory}/{name}"
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        whiteout = stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
        if whiteout or (merged and not stat.S_ISDIR(status.st_mode)):
            break
        merged.append(path)
        if not stat.S_ISDIR(status.st_mode) or _is_opaque(path):
            break
    return merged


def _is_opaque(path: str) -> bool:
    for name in _OPAQUE:
        try:
            if os.getxattr(path, name, follow_symlinks=False) == b"y":
                return True
        except OSError:  # not set, or not supported here
            continue
    return False
