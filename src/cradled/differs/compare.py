"""Async. Making a layer of what differs between mounts: the work is done in a worker process, and
what it writes goes into the content store as it comes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from cradled.aio import threads
from cradled.core.content import ContentInfo, ContentStore, Writer
from cradled.core.diff import DiffOptions
from cradled.core.mount import Mount
from cradled.core.values import Descriptor
from cradled.differs import mediatypes
from cradled.differs.apply import directories
from cradled.errors import AlreadyExists, Error
from cradled.workers.pool import Pool

UNCOMPRESSED = "containerd.io/uncompressed"
_PIPE = 1 << 20


class WalkingComparer:
    """Makes tar layers, plain or compressed with gzip or zstd. Implements core.diff.Comparer."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def compare(
        self,
        left: Sequence[Mount],
        right: Sequence[Mount],
        content: ContentStore,
        options: DiffOptions,
        /,
    ) -> Descriptor:
        """Write a blob of what ``right`` changes of ``left``; returns its descriptor.

        Raises Unimplemented for a media type that nothing here makes, Unavailable while another
        writer holds the ref, Error where a file system refuses something, Aborted when the worker
        dies. Then nothing stays but the ingest of a ref that the caller gave.
        """
        media_type = options.media_type or mediatypes.LAYER_GZIP
        params = {
            "left": [(m.type, m.source, m.options, m.target) for m in left],
            "right": [(m.type, m.source, m.options, m.target) for m in right],
            "compression": mediatypes.compression_to_make(media_type),
            "latest": options.source_date_epoch,
        }
        paths = (path for mount in (*left, *right) for path in directories(mount))
        here = all(map(self._pool.covers, paths))
        ref = options.ref or _generated_ref()
        with _telling("failed to open writer"):
            writer = await content.writer(ref)
        try:
            if options.ref:
                await writer.truncate()
            kind = "compressed diff" if params["compression"] else "diff"
            with _telling(f"failed to write {kind}"):
                diff_id = await self._fill(writer, params, anywhere=not here)
            labels = dict(options.labels)
            if params["compression"]:
                labels[UNCOMPRESSED] = diff_id
            digest = writer.digest()
            with contextlib.suppress(AlreadyExists), _telling("failed to commit"):
                await writer.commit(0, digest, labels)
        except BaseException:
            await _given_up(writer, content, "" if options.ref else ref)
            raise
        info = await _labelled(content, digest, labels)
        return Descriptor(media_type, digest, info.size)

    async def _fill(self, writer: Writer, params: dict[str, Any], *, anywhere: bool) -> str:
        """Have a worker write the layer; returns the digest of the uncompressed tar."""
        source, sink = os.pipe2(os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # a user may have no more big pipes left
            fcntl.fcntl(source, fcntl.F_SETPIPE_SZ, _PIPE)
        job = asyncio.ensure_future(self._pool.run("compare", params, [sink], anywhere=anywhere))
        job.add_done_callback(lambda _: os.close(sink))  # so that the reader finds an end
        try:
            while data := await _read(source):
                await writer.write(data)
            digest: str = (await job)["digest"]
            return digest
        finally:
            await _ended(job)
            os.close(source)


@contextlib.contextmanager
def _telling(what: str) -> Iterator[None]:
    """Say what failed, before what a domain error says."""
    try:
        yield
    except Error as error:
        raise type(error)(f"{what}: {error}") from error


async def _read(fd: int) -> bytes:
    """What has come through a pipe. No thread waits for it: there are few, and writing needs
    them."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(fd, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(fd)
    return await threads.run("bulk", os.read, fd, _PIPE)


async def _ended(job: asyncio.Future[Any]) -> None:
    """Break a job off if it is not done; its worker is gone when this returns."""
    job.cancel()
    await asyncio.wait([job])
    if not job.cancelled():
        job.exception()  # looked at, whether or not it is what is raised


async def _given_up(writer: Writer, content: ContentStore, ref: str) -> None:
    """Close the writer and, if ``ref`` is told, drop the ingest."""
    await writer.close()
    if ref:
        with contextlib.suppress(Exception):  # the first error is the one to be told
            await content.abort(ref)


async def _labelled(content: ContentStore, digest: str, labels: dict[str, str]) -> ContentInfo:
    """The blob's info. One that was there before may lack the label of its diff ID."""
    info = await content.info(digest)
    if labels.get(UNCOMPRESSED) and UNCOMPRESSED not in info.labels:
        added = ContentInfo(digest, info.size, labels={UNCOMPRESSED: labels[UNCOMPRESSED]})
        info = await content.update(added, [f"labels.{UNCOMPRESSED}"])
    return info


def _generated_ref() -> str:
    return f"{time.time_ns()}-{base64.urlsafe_b64encode(os.urandom(3)).decode()}"
