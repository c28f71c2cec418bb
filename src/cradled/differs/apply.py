"""Async. Applying layers to mounts: the work is done in a worker process."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from cradled.aio import threads
from cradled.core.content import Reader
from cradled.core.diff import Apart
from cradled.core.mount import Mount
from cradled.core.values import AnyValue, Descriptor
from cradled.differs import mediatypes
from cradled.differs.processors import Processor, plan, temporary
from cradled.linux.fs import write_all
from cradled.linux.mount import split_layers
from cradled.workers.pool import Pool

_COPY = 1 << 20


class WalkingApplier:
    """Unpacks tar layers, plain or compressed with gzip or zstd. Implements
    core.diff.ApartApplier."""

    def __init__(self, pool: Pool, processors: Sequence[Processor] = ()) -> None:
        self._pool = pool
        self._processors = processors

    async def apply(
        self,
        layer: Descriptor,
        blob: Reader,
        mounts: Sequence[Mount],
        /,
        *,
        payloads: Mapping[str, AnyValue] | None = None,
        sync_fs: bool = False,
    ) -> Descriptor:
        """Unpack a layer onto mounts; returns the descriptor of the uncompressed tar.

        Raises NotFound for a media type that nothing here reads, Error for a bad archive, where
        a processor fails or the file system refuses something, Aborted when the worker dies.
        What was unpacked until then stays: the caller drops the snapshot.
        """
        chain = plan(self._processors, layer.media_type)
        params = {
            "mounts": [(m.type, m.source, m.options, m.target) for m in mounts],
            "sniff": chain.compressed,
            "sync": sync_fs,
        }
        here = all(self._pool.covers(path) for mount in mounts for path in directories(mount))
        with ExitStack() as stack:
            fd = await _file_of(blob, stack)
            fd = await chain.run(layer.media_type, fd, payloads or {}, stack)
            done = await self._pool.run("apply", params, [fd], anywhere=not here)
        return Descriptor(mediatypes.LAYER, done["digest"], done["size"])

    async def apply_apart(self, layer: Descriptor, blob: Reader, upper: str, /) -> Apart:
        """Unpack into an overlay's upper directory while the layers below are not there yet.

        Raises as ``apply``.
        """
        chain = plan(self._processors, layer.media_type)
        params = {"upper": upper, "sniff": chain.compressed}
        anywhere = not self._pool.covers(upper)
        with ExitStack() as stack:
            fd = await _file_of(blob, stack)
            fd = await chain.run(layer.media_type, fd, {}, stack)
            done = await self._pool.run("apply_apart", params, [fd], anywhere=anywhere)
        applied = Descriptor(mediatypes.LAYER, done["digest"], done["size"])
        return Apart(applied, tuple(done["implied"]), done["needs_lowers"])

    async def settle(self, apart: Apart, upper: str, lowers: Sequence[str], /) -> bool:
        """Finish what ``apply_apart`` left open; false when the layer has to be applied again."""
        if apart.needs_lowers or not apart.implied:
            return not apart.needs_lowers
        params = {"upper": upper, "lowers": list(lowers), "implied": list(apart.implied)}
        anywhere = not self._pool.covers(upper)
        settled: bool = await self._pool.run("settle", params, anywhere=anywhere)
        return settled


def directories(mount: Mount) -> list[str]:
    """The directories that a mount is made of; for kinds not known here the root of all."""
    if mount.type == "overlay":
        pairs = (word.partition("=")[::2] for word in mount.options)
        values = [value for key, value in pairs if key in ("upperdir", "workdir", "lowerdir")]
        return [path for value in values for path in split_layers(value)]
    return [mount.source] if {"bind", "rbind"} & set(mount.options) else ["/"]


async def _file_of(blob: Reader, stack: ExitStack) -> int:
    """The file that a blob lies in; one that lies elsewhere is brought into an unnamed one, since
    a layer may have to be read twice."""
    fd = blob.fileno()
    if fd < 0:
        fd = temporary(stack)
        await _copy(blob, fd)
    return fd


async def _copy(blob: Reader, fd: int) -> None:
    offset = 0
    while data := await blob.read(offset, _COPY):
        offset += len(data)
        await threads.run("bulk", write_all, fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
