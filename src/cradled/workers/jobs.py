"""Blocking. What a worker can do, by name: plain values in, plain values out.

A failure comes back as ``{"error": [class, text]}``, the class one of ``cradled.errors``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

from cradled import errors
from cradled.archive import compress, decompress
from cradled.archive.apart import ApartUnpacker, settle
from cradled.archive.apply import Applied, Unpacker, apply
from cradled.archive.decompress import LayerStream, positional
from cradled.archive.errors import ArchiveError
from cradled.archive.overlay import LowersNeeded, OverlayUnpacker
from cradled.archive.writeback import EarlyWriteback
from cradled.linux import libc, mount
from cradled.linux.fs import sync_filesystem
from cradled.linux.tree import empty_directory, remove_tree, usage
from cradled.workers.compare import compare

Params = dict[str, Any]
MountWords = tuple[str, str, Sequence[str], str]
"""Type, source, options, target below the root."""

_steps: list[tuple[str, int, int, dict[str, str]]] = []
_MOST_IMPLIED = 32 << 10  # bytes of paths; a reply has to fit into one packet


def load() -> None:
    """Import what jobs import when they need it: later the files may be out of reach."""
    decompress.load()
    compress.load()
    libc.load()


def run(job: str, params: Params, fds: Sequence[int], mountpoint: str) -> dict[str, Any]:
    """Do a job and tell how it went. ``mountpoint`` is a directory to mount on.

    ``steps`` of the reply are what took time: name, begin and end by the monotonic clock, which all
    processes share, and what else there is to tell.
    """
    _steps.clear()
    reply = _run(job, params, fds, mountpoint)
    return {**reply, "steps": list(_steps)} if _steps else reply


def _run(job: str, params: Params, fds: Sequence[int], mountpoint: str) -> dict[str, Any]:
    try:
        return {"result": JOBS[job](params, fds, mountpoint)}
    except errors.Error as error:
        return _failure(type(error).__name__, error.what)
    except ArchiveError as error:
        return _failure("Error", str(error))
    except OSError as error:
        return _failure("Error", _reason(error))
    except Exception as error:
        return _failure("Internal", f"{job}: {error!r}")


def _failure(kind: str, text: str) -> dict[str, Any]:
    return {"error": [kind, text]}


def _reason(error: OSError) -> str:
    reason = (error.strerror or str(error)).lower()
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    return f"{name}: {reason}" if name else reason


def _apply(params: Params, fds: Sequence[int], mountpoint: str) -> dict[str, Any]:
    """Apply the layer behind ``fds[0]`` to ``mounts``.

    ``sniff``: decompress by the first bytes. ``sync``: make it durable.
    """
    layer = Layer(fds[0], params["sniff"])
    plans: list[MountWords] = params["mounts"]
    if not plans or plans[0][3]:
        raise errors.InvalidArgument("no mount to apply a layer to")
    target = direct_target(plans)
    if target is None:
        applied = _apply_mounted(layer, plans, mountpoint, params["sync"])
    elif plans[0][0] == "overlay":
        applied = _apply_to_upper(layer, plans, target, mountpoint, params["sync"])
    else:
        applied = layer.apply(Unpacker(target, devices=layer.devices), target, params["sync"])
    return {"digest": applied.digest, "size": applied.size}


class Layer:
    """A layer's blob, to be applied as often as it takes."""

    def __init__(self, fd: int, sniff: bool) -> None:
        self._fd = fd
        self._sniff = sniff
        self.devices = not in_user_namespace()

    def stream(self) -> LayerStream:
        """Its uncompressed bytes, from the start."""
        return LayerStream(positional(self._fd), sniff=self._sniff)

    def apply(self, unpacker: Unpacker, target: str, sync: bool) -> Applied:
        """Apply to what lies on the file system of ``target``; ``sync`` makes that durable then."""
        begun = time.monotonic_ns()
        with closing(unpacker), self.stream() as stream, EarlyWriteback(target):
            applied = apply(stream, unpacker)
        _note_layer(stream, begun)
        if sync:
            begun = time.monotonic_ns()
            sync_filesystem(target)
            _steps.append(("layer.sync", begun, time.monotonic_ns(), {}))
        return applied


def _note_layer(stream: LayerStream, begun: int) -> None:
    """The two threads that a layer takes: one waits for the other, as it should be."""
    busy, waited = (f"{part / 1e6:.1f} ms" for part in (stream.busy, stream.waited))
    _steps.append(("layer.decompress", stream.began, stream.ended, {"busy": busy}))
    _steps.append(("layer.write", begun, time.monotonic_ns(), {"waited": waited}))


def direct_target(plans: Sequence[MountWords]) -> str | None:
    """The directory that shows through these mounts, where writing to it is as good: the empty
    upper directory of a lone overlay, or the source of a lone bind mount."""
    if len(plans) != 1 or plans[0][3]:
        return None
    kind, source, words, _ = plans[0]
    if any(word.startswith(("uidmap=", "gidmap=")) for word in words) or "ro" in words:
        return None
    if kind == "overlay":
        upper = _value(words, "upperdir=")
        return upper if upper and not os.listdir(upper) else None
    return source if "bind" in words or "rbind" in words else None


def _value(words: Sequence[str], prefix: str) -> str:
    return next((word.removeprefix(prefix) for word in words if word.startswith(prefix)), "")


def _apply_to_upper(
    layer: Layer, plans: Sequence[MountWords], upper: str, mountpoint: str, sync: bool
) -> Applied:
    words = plans[0][2]
    lowers = _value(words, "lowerdir=")
    rules = OverlayUnpacker(
        upper,
        mount.split_layers(lowers) if lowers else [],
        user="userxattr" in words,
        devices=layer.devices,
    )
    try:
        return layer.apply(rules, upper, sync)
    except LowersNeeded:
        _empty(upper)
    return _apply_mounted(layer, plans, mountpoint, sync)


def _apply_mounted(
    layer: Layer, plans: Sequence[MountWords], mountpoint: str, sync: bool
) -> Applied:
    mount.mount_all(plans, mountpoint)
    try:
        return layer.apply(Unpacker(mountpoint, devices=layer.devices), mountpoint, sync)
    finally:
        mount.unmount_below(mountpoint, detach=True)


def _empty(directory: str) -> None:
    parent, name = os.path.split(directory)
    fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        empty_directory(fd, name)
    finally:
        os.close(fd)


def _apply_apart(params: Params, fds: Sequence[int], _mountpoint: str) -> dict[str, Any]:
    """Apply the layer behind ``fds[0]`` to the empty directory ``upper``, knowing no lower one."""
    upper = params["upper"]
    layer = Layer(fds[0], params["sniff"])
    unpacker = ApartUnpacker(upper, devices=layer.devices)
    begun = time.monotonic_ns()
    with closing(unpacker), layer.stream() as stream, EarlyWriteback(upper):
        try:
            apply(stream, unpacker)
            implied = unpacker.open
            needs_lowers = sum(map(len, implied)) > _MOST_IMPLIED
        except LowersNeeded:
            stream.drain()  # what the whole layer is, is told all the same
            implied, needs_lowers = [], True
    _note_layer(stream, begun)
    if needs_lowers:
        _empty(upper)
        implied = []
    return {
        "digest": stream.digest,
        "size": stream.size,
        "implied": implied,
        "needs_lowers": needs_lowers,
    }


def _settle(params: Params, _fds: Sequence[int], _mountpoint: str) -> bool:
    """Settle ``implied`` directories of ``upper`` by ``lowers``; false, and it is empty, if that
    cannot be."""
    upper = params["upper"]
    try:
        settle(upper, params["lowers"], params["implied"])
    except LowersNeeded:
        _empty(upper)
        return False
    return True


def in_user_namespace() -> bool:
    """Whether IDs are mapped: then device nodes cannot be made."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return file.read().split() != ["0", "0", "4294967295"]


def _usage(params: Params, _fds: Sequence[int], _mountpoint: str) -> list[int]:
    """Allocated bytes and inodes of the tree at ``path``."""
    return list(usage(params["path"]))


def _remove_tree(params: Params, _fds: Sequence[int], _mountpoint: str) -> None:
    """Remove the tree at ``path``; nothing there is fine."""
    remove_tree(params["path"])


JOBS: dict[str, Callable[[Params, Sequence[int], str], Any]] = {
    "apply": _apply,
    "apply_apart": _apply_apart,
    "settle": _settle,
    "compare": compare,
    "usage": _usage,
    "remove_tree": _remove_tree,
}
