"""Blocking. What a container can be given of this host: devices, capabilities, name service."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cradled.oci import capabilities

_NAME_SERVICE = ("/etc/hosts", "/etc/resolv.conf")
# Made anew in every container, or views of the process that looks.
_OWN = frozenset({"pts", "shm", "fd", "mqueue", "console", "ptmx", "core", "log"})


def kernel() -> tuple[int, int]:
    """Version of the running kernel."""
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()) or 0)


def available_capabilities() -> tuple[str, ...]:
    """What this process may hand on: a runtime fails on capabilities it has not got itself."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "CapPrm":
            return capabilities.from_mask(int(value, 16))
    return capabilities.ALL


def name_service_files() -> list[str]:
    """Files that make names work in the host's network."""
    return [path for path in _NAME_SERVICE if os.path.isfile(path)]


def devices() -> list[dict[str, Any]]:
    """The device nodes below ``/dev`` as objects of ``linux.devices``."""
    return list(_devices("/dev"))


def _devices(directory: str) -> Iterator[dict[str, Any]]:
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            if entry.name in _OWN or entry.is_symlink():
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    yield from _devices(entry.path)
                    continue
                status = entry.stat(follow_symlinks=False)
            except OSError:  # went away meanwhile
                continue
            if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
                yield _device(entry.path, status)


def _device(path: str, status: os.stat_result) -> dict[str, Any]:
    return {
        "path": path,
        "type": "c" if stat.S_ISCHR(status.st_mode) else "b",
        "major": os.major(status.st_rdev),
        "minor": os.minor(status.st_rdev),
        "fileMode": stat.S_IMODE(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
    }
