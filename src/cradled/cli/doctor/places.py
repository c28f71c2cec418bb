"""Blocking. The directories of a daemon: what they lie on, what is in them, what is left there."""

from __future__ import annotations

import json
import os
import socket
import tomllib
from collections.abc import Iterator

from cradled.cli.doctor.finding import FAIL, OK, WARN, Finding
from cradled.linux import mount

STORAGE = "storage"
CONTAINERS = "containers"
REGISTRIES = "registries"

HOSTS = ("/etc/containerd/certs.d", "/etc/docker/certs.d")

_GIB = 1 << 30
_LITTLE = 0.10  # of the space or inodes
_NO = 0.01
_BUNDLES = "io.containerd.runtime.v2.task"
_REMOTE = ("nfs", "nfs4", "cifs", "smb3", "9p", "ceph")


def findings(root: str, state: str, *, running: bool) -> Iterator[Finding]:
    """``running``: a daemon serves these directories now."""
    yield from _place("root", root, keeps=True)
    yield from _place("state", state, keeps=False)
    if os.geteuid() == 0:
        yield from _shims(state, running=running)
        yield from _mounts(state)
    else:
        yield Finding(CONTAINERS, "tasks", OK, "not looked at: that takes root")


def _place(name: str, path: str, *, keeps: bool) -> Iterator[Finding]:
    where = path
    while not os.path.exists(where):
        where = os.path.dirname(where)
    under = _mount_of(where)
    numbers = os.statvfs(where)
    free = numbers.f_bavail * numbers.f_frsize
    share = numbers.f_bavail / max(numbers.f_blocks, 1)
    inodes = numbers.f_favail / numbers.f_files if numbers.f_files else 1.0
    text = f"{path} on {under.type}, {free / _GIB:.1f} GiB free"
    if where != path:
        text += " (made when a daemon starts)"
    status, advice = OK, ""
    if min(share, inodes) < _NO:
        status, advice = FAIL, "free some space"
        text += f"; only {min(share, inodes):.1%} of {'space' if share < inodes else 'inodes'}"
    elif min(share, inodes) < _LITTLE and free < 10 * _GIB:
        status, advice = WARN, "free some space"
        text += f"; only {min(share, inodes):.0%} of {'space' if share < inodes else 'inodes'}"
    yield Finding(STORAGE, name, status, text, advice)
    if keeps:
        yield from _suits_images(under, numbers)


def _suits_images(under: mount.MountInfo, numbers: os.statvfs_result) -> Iterator[Finding]:
    name = "root's file system"
    if under.type == "overlay":
        advice = "put root on a volume, or use the native snapshotter"
        yield Finding(STORAGE, name, WARN, "overlay mounts do not lie on overlay", advice)
    elif under.type in ("tmpfs", "ramfs"):
        advice = "images are gone after a reboot, and take memory: put root on a disk"
        yield Finding(STORAGE, name, WARN, f"{under.type} is memory", advice)
    elif under.type in _REMOTE:
        advice = "put root on a disk of this host"
        yield Finding(STORAGE, name, WARN, f"{under.type} is remote", advice)
    flags = ((os.ST_NOEXEC, "noexec"), (os.ST_NOSUID, "nosuid"), (os.ST_NODEV, "nodev"))
    for flag, option in flags:
        if numbers.f_flag & flag:
            advice = f"mount it without {option}, which holds in containers too"
            status = FAIL if option == "noexec" else WARN
            yield Finding(STORAGE, name, status, f"mounted {option}", advice)


def _mount_of(path: str) -> mount.MountInfo:
    """The mount that shows at a path: the last with the longest target."""
    real = os.path.realpath(path)
    best: mount.MountInfo | None = None
    for one in mount.mounts():
        target = one.target.rstrip("/")
        inside = real == target or real.startswith(f"{target}/")
        if inside and (best is None or len(one.target) >= len(best.target)):
            best = one
    assert best is not None
    return best


def _shims(state: str, *, running: bool) -> Iterator[Finding]:
    """Bundles, and whether a shim serves each."""
    served, dead = 0, []
    for bundle in _bundles(state):
        if _is_served(bundle):
            served += 1
        else:
            dead.append(os.path.relpath(bundle, f"{state}/{_BUNDLES}"))
    text = f"{served} have a shim"
    if not running and served:
        text += "; the next daemon takes them over"
    yield Finding(CONTAINERS, "tasks", OK, text)
    if dead:
        advice = "a daemon cleans up at its start: restart it" if running else "start a daemon"
        text = f"without a shim: {', '.join(dead[:5])}{' ...' if len(dead) > 5 else ''}"
        yield Finding(CONTAINERS, "left over", WARN, text, advice)


def _bundles(state: str) -> Iterator[str]:
    base = f"{state}/{_BUNDLES}"
    for namespace in _names(base):
        for id in _names(f"{base}/{namespace}"):
            yield f"{base}/{namespace}/{id}"


def _is_served(bundle: str) -> bool:
    try:
        with open(f"{bundle}/bootstrap.json", encoding="utf-8") as file:
            address = json.load(file)["address"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    path = str(address).removeprefix("unix://")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def _mounts(state: str) -> Iterator[Finding]:
    """Root file systems of containers that have no bundle any more."""
    base = f"{os.path.realpath(state)}/{_BUNDLES}/"
    alone = []
    for one in mount.mounts():
        if one.target.startswith(base):
            bundle = base + "/".join(one.target[len(base) :].split("/")[:2])
            if not os.path.exists(f"{bundle}/config.json"):
                alone.append(one.target)
    if alone:
        text = f"nobody's: {', '.join(alone[:5])}{' ...' if len(alone) > 5 else ''}"
        advice = "; ".join(f"umount {target}" for target in alone[:5])
        yield Finding(CONTAINERS, "mounts", WARN, text, advice)
    else:
        yield Finding(CONTAINERS, "mounts", OK, "none is left over")


def registries(directories: tuple[str, ...] = HOSTS) -> Iterator[Finding]:
    """Whether every hosts.toml can be read; nothing of what is in it is told."""
    there = [directory for directory in directories if os.path.isdir(directory)]
    if not there:
        yield Finding(REGISTRIES, "hosts", OK, "no directory; every registry is as its name says")
    for directory in there:
        names = _names(directory)
        yield Finding(REGISTRIES, "hosts", OK, f"{directory}: {', '.join(names) or 'empty'}")
        for name in names:
            path = f"{directory}/{name}/hosts.toml"
            try:
                with open(path, "rb") as file:
                    tomllib.load(file)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except PermissionError:
                yield Finding(REGISTRIES, name, OK, f"{path}: not readable for this user")
            except (OSError, ValueError) as error:
                yield Finding(REGISTRIES, name, FAIL, f"{path}: {error}", "correct the file")


def _names(directory: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(directory) if not name.startswith("."))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
