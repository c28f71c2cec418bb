"""Async. The writer of an ingest in the local store.

Small chunks are hashed where they arrive, and gathered until they are worth a write in a thread.
A thread hashes a big one, which is when ``write`` returns, and goes on to write it, while the next
may already wait for it. Another has the disk begin with what was written. So receiving, hashing,
writing and the disk overlap, while at most ``_MOST`` bytes wait.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cradled import digest
from cradled.aio import threads
from cradled.content.ingest import Chunk, Ingest
from cradled.core.content import IngestStatus
from cradled.core.values import Labels
from cradled.errors import AlreadyExists, FailedPrecondition, NotFound
from cradled.spans import span

if TYPE_CHECKING:
    from cradled.content.local import LocalContentStore

_INLINE = 64 << 10
_ENOUGH = 256 << 10
_MOST = 4 << 20


class LocalWriter:
    """Implements ``core.content.Writer``."""

    def __init__(
        self, store: LocalContentStore, ingest: Ingest, state: hashlib._Hash, status: IngestStatus
    ) -> None:
        self._store = store
        self.ingest = ingest
        self._hash = state
        self._offset = status.offset
        self._expected = status.expected
        self._updated_at = status.updated_at
        self._chunks: list[Chunk] = []
        self._gathered = 0
        self._lane = threads.Lane("bulk")
        self._writing: threads.Call[None] | None = None  # the last
        self._flushing: threads.Call[None] | None = None
        self._broken = False
        self._closed = False

    def status(self) -> IngestStatus:
        ingest = self.ingest
        return IngestStatus(
            ref=ingest.ref,
            offset=self._offset,
            total=ingest.total,
            expected=self._expected,
            started_at=ingest.started_at,
            updated_at=self._updated_at,
        )

    def digest(self) -> str:
        return f"{self._hash.name}:{self._hash.hexdigest()}"

    async def write(self, data: bytes | bytearray | memoryview, /) -> None:
        self._check_usable()
        chunk = _kept(data)
        self._chunks.append(chunk)
        self._gathered += len(chunk)
        self._offset += len(chunk)
        self._store.moved.written += len(chunk)
        self._updated_at = time.time_ns()
        # If this is cancelled the hash may lack the chunk.
        with self._breaking():
            if len(chunk) <= _INLINE:
                self._hash.update(chunk)
                await self._flush()
            else:
                before = self._writing
                hashed = threads.Milestone()
                gathered = self._take_gathered()
                self._writing = self._lane.begin(self._take_in, chunk, gathered, hashed)
                await hashed.passed()
                if before is not None:  # it has ended: they run in turn
                    await before.result()
                await self._write_back()

    async def truncate(self) -> None:
        self._check_usable()
        with self._breaking():
            await self._written()
            await threads.run("fs", self.ingest.truncate)
        self._chunks.clear()
        self._gathered = self._offset = 0
        self._hash = hashlib.new(self._hash.name)

    async def commit(self, size: int, expected: str, labels: Labels, /) -> None:
        try:
            self._check_usable()
            if size and size != self._offset:
                raise FailedPrecondition(f"unexpected commit size {self._offset}, expected {size}")
            with self._breaking(), span("content.write"):
                await self._written()
            await self._check_digest(expected)
            with self._breaking(), span("content.fsync", size=self._offset):
                new = await self._store.publish(self.ingest, self._chunks, self.digest())
            if not new:
                raise AlreadyExists(f"content {self.digest()}")
        finally:
            await self.close()

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            # Going on later is a courtesy: that it fails is no reason to fail here.
            with contextlib.suppress(OSError):
                await self._written()
                if not (self.ingest.gone or self._broken):
                    await threads.run("fs", self.ingest.keep, self._chunks, self._updated_at)
        finally:
            self.ingest.close()
            self._store.release(self.ingest)

    def _check_usable(self) -> None:
        if self._closed or self._broken:
            raise FailedPrecondition(f"writer of {self.ingest.ref} is closed")
        if self.ingest.gone:
            raise NotFound(f"reference {self.ingest.ref}")

    @contextlib.contextmanager
    def _breaking(self) -> Iterator[None]:
        """A failure in here leaves the writer unusable; what is on disk stays a true beginning."""
        try:
            yield
        except BaseException:
            self._broken = True
            raise

    async def _flush(self) -> None:
        """Have what was gathered written, once it is enough."""
        if self._gathered < _ENOUGH:
            return
        if self._writing is None or self._writing.finished or self._gathered >= _MOST:
            await self._written()
            self._writing = self._lane.begin(self.ingest.append, self._take_gathered())

    def _take_gathered(self) -> list[Chunk]:
        chunks, self._chunks, self._gathered = self._chunks, [], 0
        return chunks

    def _take_in(self, chunk: Chunk, chunks: list[Chunk], hashed: threads.Milestone) -> None:
        """In a thread: hash the last of some chunks, then write them all."""
        try:
            self._hash.update(chunk)
        finally:
            hashed.reach()
        self.ingest.append(chunks)

    async def _written(self) -> None:
        """Wait for the write under way; raises what it raised."""
        writing, self._writing = self._writing, None
        if writing is not None:
            await writing.result()
        await self._write_back()

    async def _write_back(self) -> None:
        """Have the disk begin, if there is much, and unless it still is at what it had before."""
        flushing = self._flushing
        if self.ingest.dirty and (flushing is None or flushing.finished):
            self._flushing = threads.begin("fs", self.ingest.write_back)
            if flushing is not None:
                await flushing.result()

    async def _check_digest(self, expected: str) -> None:
        if not expected:
            return
        algorithm, _ = digest.split(expected)
        if algorithm != self._hash.name:
            with self._breaking():
                rehash = self.ingest.rehash
                self._hash = await threads.run("bulk", rehash, self._chunks, algorithm)
            self._chunks = []
        actual = self.digest()
        if actual != expected:
            raise FailedPrecondition(f"unexpected commit digest {actual}, expected {expected}")


def _kept(data: bytes | bytearray | memoryview) -> Chunk:
    """The data, copied if its owner may change it."""
    if type(data) is bytes or (isinstance(data, memoryview) and data.readonly):
        return data
    return bytes(data)
