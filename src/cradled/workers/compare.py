"""Blocking. The job that makes a layer of what differs between two sets of mounts.

Both are mounted read-only, one over the other on the worker's mount point; each is reached by a
descriptor. Where the right one is an overlay right above what left shows, only its topmost layer
is walked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any

from cradled.archive.compare import Comparison, Topmost
from cradled.archive.compress import LayerSink
from cradled.archive.difftar import LayerWriter
from cradled.linux import mount

MountWords = tuple[str, str, Sequence[str], str]
"""Type, source, options, target below the root."""


def compare(params: dict[str, Any], fds: Sequence[int], mountpoint: str) -> dict[str, Any]:
    """Write what ``right`` changes of ``left`` to ``fds[0]``; tell the uncompressed tar.

    ``compression``: as ``LayerSink`` takes it. ``latest``: nanoseconds that no time may exceed,
    or None.
    """
    left: list[MountWords] = params["left"]
    right: list[MountWords] = params["right"]
    topmost = _topmost(left, right)
    with (
        _mounted(left, right, mountpoint) as roots,
        closing(Comparison(*roots, topmost)) as comparison,
        LayerSink(fds[0], params["compression"]) as sink,
    ):
        LayerWriter(comparison, sink.write, latest=params["latest"]).run()
    return {"digest": sink.digest, "size": sink.size}


@contextmanager
def _mounted(
    left: Sequence[MountWords], right: Sequence[MountWords], mountpoint: str
) -> Iterator[tuple[str, str]]:
    """Paths by which what is mounted can be reached."""
    opened: list[int] = []
    try:
        for plans in (left, right):
            mount.mount_all([read_only(plan) for plan in plans], mountpoint)
            opened.append(os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        left_fd, right_fd = opened
        yield f"/proc/self/fd/{left_fd}", f"/proc/self/fd/{right_fd}"
    finally:
        for fd in opened:
            os.close(fd)
        with suppress(FileNotFoundError):
            mount.unmount_below(mountpoint, detach=True)


def read_only(plan: MountWords) -> MountWords:
    """The same without a way to write to it. An overlay's upper layer becomes its highest lower
    one, so that nothing disturbs whoever has it mounted."""
    kind, source, words, target = plan
    kept = [word for word in words if word not in ("rw", "ro")]
    upper = _value(kept, "upperdir=")
    if kind == "overlay" and upper:
        lowers = _value(kept, "lowerdir=")
        kept = [
            word for word in kept if not word.startswith(("upperdir=", "workdir=", "lowerdir="))
        ]
        kept = [word for word in kept if word != "volatile"]
        kept.append(f"lowerdir={_escaped(upper)}:{lowers}")
    return kind, source, ["ro", *kept], target


def _topmost(left: Sequence[MountWords], right: Sequence[MountWords]) -> Topmost | None:
    """The one layer that right has more than left, if that is the difference."""
    below, above = _layers(left), _layers(right)
    if below is None or above is None or len(above) < 2 or above[1:] != below:
        return None
    return Topmost(above[0], user="userxattr" in right[0][2])


def _layers(plans: Sequence[MountWords]) -> list[str] | None:
    """The directories that make up what these mounts show, the highest first."""
    if len(plans) != 1 or plans[0][3]:
        return None
    kind, source, words, _ = plans[0]
    if kind != "overlay":
        return [source] if {"bind", "rbind"} & set(words) else None
    upper, lowers = _value(words, "upperdir="), _value(words, "lowerdir=")
    return ([upper] if upper else []) + (mount.split_layers(lowers) if lowers else [])


def _value(words: Sequence[str], prefix: str) -> str:
    return next((word.removeprefix(prefix) for word in words if word.startswith(prefix)), "")


def _escaped(path: str) -> str:
    return path.replace("\\", "\\\\").replace(":", "\\:")
