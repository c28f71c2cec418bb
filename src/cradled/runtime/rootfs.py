"""Async. Letting go of overlays: not while somebody waits for a container to be deleted.

When the last one lets go of an overlay, the kernel first writes out the whole file system that its
upper directory is on, with all that others have in flight there. So a descriptor is kept on it
while the shim unmounts: that takes it out of sight, and is over at once. The descriptor is closed
in a thread. Until that is done the upper directory is in use; whoever wants it again waits.

Nothing of this is to be found again after a crash: the kernel closes the descriptor.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cradled.aio import threads
from cradled.core.mount import Mount
from cradled.linux import libc


def upper_of(mounts: Sequence[Mount]) -> str:
    """The upper directory of a root file system; empty where there is none."""
    for mount in mounts:
        if mount.type == "overlay":
            for option in mount.options:
                if option.startswith("upperdir="):
                    return option.removeprefix("upperdir=")
    return ""


class Overlays:
    """Those that are being let go of, by upper directory."""

    def __init__(self) -> None:
        self._closing: dict[str, threads.Call[None]] = {}

    @contextmanager
    def held(self, rootfs: str, upper: str) -> Iterator[None]:
        """While in here an overlay that is mounted on ``rootfs`` can only be detached."""
        fd = _open(rootfs) if upper else -1
        try:
            yield
        finally:
            if fd >= 0:
                self._closing = {k: v for k, v in self._closing.items() if not v.finished}
                self._closing[upper] = threads.begin("mount", _close, fd)

    async def settled(self, upper: str) -> None:
        """Wait until an upper directory is free."""
        closing = self._closing.pop(upper, None)
        if closing is not None:
            await closing.result()


def _open(path: str) -> int:
    """A descriptor of what is mounted there; -1 where that cannot be had without waiting."""
    try:
        flags = os.O_PATH | os.O_DIRECTORY
        return libc.openat2(libc.AT_FDCWD, path, flags, resolve=libc.RESOLVE_CACHED)
    except OSError:
        return -1


def _close(fd: int) -> None:
    """Blocking: what is synced is synced in here."""
    os.close(fd)
