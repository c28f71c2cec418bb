"""File trees as data, so that two can be compared attribute for attribute."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    """All that a layer says of a file; times in nanoseconds."""

    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    device: int
    links: tuple[str, ...]
    content: str
    xattrs: tuple[tuple[str, bytes], ...]


KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link", stat.S_IFCHR: "char",
         stat.S_IFBLK: "block", stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket"}  # fmt: skip


def read_tree(top: Path) -> dict[str, Entry]:
    """{path: entry} of everything below ``top``, the top itself as ``.``."""
    paths = ["."]
    for current, directories, files in os.walk(top):
        paths += [os.path.relpath(os.path.join(current, n), top) for n in directories + files]
    names: dict[tuple[int, int], list[str]] = {}
    for path in paths:
        status = os.lstat(top / path)
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            names.setdefault((status.st_dev, status.st_ino), []).append(path)
    return {path: read_entry(top, path, names) for path in paths}


def read_entry(top: Path, path: str, names: dict[tuple[int, int], list[str]]) -> Entry:
    full = top / path
    status = os.lstat(full)
    kind = KINDS[stat.S_IFMT(status.st_mode)]
    content = ""
    if kind == "file":
        with open(full, "rb") as data:
            content = hashlib.file_digest(data, "sha256").hexdigest()
    elif kind == "link":
        content = os.readlink(full)
    xattrs = tuple(sorted((k, os.getxattr(full, k, follow_symlinks=False))
                          for k in os.listxattr(full, follow_symlinks=False)))  # fmt: skip
    links = tuple(sorted(names.get((status.st_dev, status.st_ino), ())))
    size = status.st_size if kind == "file" else 0
    # A symlink's mode says nothing on Linux; a directory's link count depends on the file system.
    mode = stat.S_IMODE(status.st_mode) if kind != "link" else 0
    device = status.st_rdev if kind in ("char", "block") else 0
    return Entry(kind, mode, status.st_uid, status.st_gid, size, status.st_mtime_ns,
                 device, links, content, xattrs)  # fmt: skip


def differences(ours: dict[str, Entry], theirs: dict[str, Entry]) -> list[str]:
    """What differs, in words; empty when the trees are equal."""
    found = [f"only in ours: {path}" for path in sorted(ours.keys() - theirs.keys())]
    found += [f"only in theirs: {path}" for path in sorted(theirs.keys() - ours.keys())]
    for path in sorted(ours.keys() & theirs.keys()):
        for field, mine, other in zip(Entry._fields, ours[path], theirs[path], strict=True):
            if mine != other:
                found.append(f"{path}: {field} is {mine!r}, theirs {other!r}")
    return found
