"""Async. Layers unpacked while their image is still arriving.

What a blob is may be known only at the end of an archive, but what looks like a layer mostly is
one of the image that will be unpacked. So it is applied as soon as it is there, beside the arrival
of the next blob; what turns out not to be wanted is broken off and dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Collection
from types import TracebackType
from typing import NamedTuple

from cradled.core.content import ContentStore
from cradled.core.diff import Apart, ApartApplier
from cradled.core.mount import Mount
from cradled.core.snapshots import Snapshotter
from cradled.core.values import Descriptor
from cradled.errors import Error, NotFound
from cradled.spans import span


class Unpacked(NamedTuple):
    """An active snapshot without a parent, its mounts, and what applying the layer found."""

    key: str
    mounts: list[Mount]
    apart: Apart


class EarlyLayers:
    """A context manager: leaving it drops what nobody has taken and committed."""

    def __init__(
        self, applier: ApartApplier, content: ContentStore, snapshots: Snapshotter, width: int
    ) -> None:
        self.applier = applier
        self._content = content
        self._snapshots = snapshots
        self._room = asyncio.Semaphore(width)
        self._tasks: dict[str, asyncio.Task[Unpacked]] = {}
        self._keys: list[str] = []

    async def __aenter__(self) -> EarlyLayers:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.drop()
        for key in self._keys:
            with contextlib.suppress(NotFound):  # committed, or never prepared
                await self._snapshots.remove(key)

    def begin(self, layer: Descriptor) -> None:
        """Unpack a layer when there is room."""
        if layer.digest not in self._tasks:
            self._tasks[layer.digest] = asyncio.create_task(self._unpack(layer))

    async def take(self, digest: str) -> Unpacked | None:
        """The snapshot of a layer, waited for; None when it has to be unpacked in the usual way."""
        task = self._tasks.get(digest)
        if task is None:
            return None
        try:
            unpacked = await task
        except (Error, OSError):
            unpacked = None
        del self._tasks[digest]
        return unpacked

    async def drop(self, *, but: Collection[str] = ()) -> None:
        """Break off what is being unpacked, except these layers."""
        tasks = [self._tasks.pop(digest) for digest in self._tasks.keys() - set(but)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _unpack(self, layer: Descriptor) -> Unpacked:
        with span("unpack.wait"):
            await self._room.acquire()
        try:
            with span("unpack.layer", layer=layer.digest):
                return await self._unpack_now(layer)
        finally:
            self._room.release()

    async def _unpack_now(self, layer: Descriptor) -> Unpacked:
        key = f"extract-{time.time_ns()}-{secrets.token_urlsafe(3)} {layer.digest}"
        self._keys.append(key)
        mounts = await self._snapshots.prepare(key, "", {})
        reader = await self._content.open(layer.digest)
        try:
            with span("unpack.apply", size=layer.size):
                apart = await self.applier.apply_apart(layer, reader, directory(mounts))
        finally:
            reader.close()
        return Unpacked(key, mounts, apart)


def directory(mounts: list[Mount]) -> str:
    """Where an active snapshot without a parent has its files.

    Raises Error for a snapshotter that does not just give a directory.
    """
    if len(mounts) == 1 and mounts[0].type == "bind":
        return mounts[0].source
    raise Error("a snapshotter that can rebase gives one bind mount")
