"""Async. Applying layers to mounts: the work is done in a worker process."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from cradled.aio import threads
from cradled.core.content import Reader
from cradled.core.mount import Mount
from cradled.core.values import AnyValue, Descriptor
from cradled.differs import mediatypes
from cradled.linux.fs import write_all
from cradled.workers.pool import Pool

_COPY = 1 << 20


class WalkingApplier:
    """Unpacks tar layers, plain or compressed with gzip or zstd. Implements core.diff.Applier."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

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

        Raises NotFound for a media type that nothing here reads, Error for a bad archive or where
        the file system refuses something, Aborted when the worker dies. What was unpacked until
        then stays: the caller drops the snapshot.
        """
        params = {
            "mounts": [(m.type, m.source, m.options, m.target) for m in mounts],
            "sniff": mediatypes.is_compressed(layer.media_type),
            "sync": sync_fs,
        }
        with ExitStack() as stack:
            fd = blob.fileno()
            if fd < 0:
                fd = stack.enter_context(tempfile.TemporaryFile(buffering=0)).fileno()
                await _copy(blob, fd)
            done = await self._pool.run("apply", params, [fd])
        return Descriptor(mediatypes.LAYER, done["digest"], done["size"])


async def _copy(blob: Reader, fd: int) -> None:
    """Bring a blob that lies elsewhere into a file: a layer may have to be read twice."""
    offset = 0
    while data := await blob.read(offset, _COPY):
        offset += len(data)
        await threads.run("bulk", write_all, fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
