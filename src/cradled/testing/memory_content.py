"""Async. A content store in memory: a ``core.content.ContentStore`` for tests of what lies above.

It passes the suite that the real one passes. It keeps no labels, as a backend.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from cradled import digest as digests
from cradled import filters as language
from cradled.core.content import ContentInfo, IngestStatus
from cradled.core.values import Labels
from cradled.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unavailable


class MemoryReader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def fileno(self) -> int:
        return -1

    async def read(self, offset: int, length: int, /) -> bytes:
        return self._data[offset : offset + length]

    def close(self) -> None:
        return


class MemoryContentStore:
    """``blobs`` may be looked at, and tampered with."""

    def __init__(self) -> None:
        self.blobs: dict[str, tuple[bytes, int]] = {}
        self.ingests: dict[str, tuple[IngestStatus, bytearray]] = {}
        self._locked: dict[str, int] = {}

    async def info(self, digest: str, /) -> ContentInfo:
        data, at = self._blob(digest)
        return ContentInfo(digest, len(data), at, at)

    async def update(self, info: ContentInfo, fieldpaths: Sequence[str] = (), /) -> ContentInfo:
        raise FailedPrecondition("update not supported on immutable content store")

    async def walk(self, filters: Sequence[str] = (), /) -> AsyncIterator[ContentInfo]:
        wanted = language.parse(filters)
        for digest in list(self.blobs):
            if wanted.match(lambda path: {"digest": digest}.get(path[0])):  # noqa: B023
                yield await self.info(digest)

    async def delete(self, digest: str, /) -> None:
        self._blob(digest)
        await asyncio.sleep(0)
        del self.blobs[digest]

    async def open(self, digest: str, /) -> MemoryReader:
        return MemoryReader(self._blob(digest)[0])

    async def writer(self, ref: str, /, *, total: int = 0, expected: str = "") -> MemoryWriter:
        if not ref:
            raise InvalidArgument("ref must not be empty")
        algorithm = digests.split(expected)[0] if expected else digests.CANONICAL
        if expected in self.blobs:
            raise AlreadyExists(f"content {expected}")
        if ref in self._locked:
            raise Unavailable(f"ref {ref} locked for a while (since {self._locked[ref]})")
        self._locked[ref] = now = time.time_ns()
        await asyncio.sleep(0)
        status, data = self.ingests.get(ref) or (None, bytearray())
        if status is None or (total and status.total and total != status.total):
            status, data = IngestStatus(ref, 0, total, "", now, now), bytearray()
        self.ingests[ref] = status, data
        return MemoryWriter(self, replace(status, expected=expected), data, algorithm)

    async def status(self, ref: str, /) -> IngestStatus:
        if ref not in self.ingests:
            raise NotFound(f"reference {ref}")
        status, data = self.ingests[ref]
        return replace(status, offset=len(data))

    async def list_statuses(self, filters: Sequence[str] = (), /) -> list[IngestStatus]:
        wanted = language.parse(filters)
        return [
            await self.status(ref)
            for ref in list(self.ingests)
            if wanted.match(lambda path: {"ref": ref}.get(path[0]))  # noqa: B023
        ]

    async def abort(self, ref: str, /) -> None:
        if self.ingests.pop(ref, None) is None:
            raise NotFound(f"reference {ref}")

    def release(self, ref: str) -> None:
        """For writers."""
        self._locked.pop(ref, None)

    def _blob(self, digest: str) -> tuple[bytes, int]:
        digests.split(digest)
        if digest not in self.blobs:
            raise NotFound(f"content digest {digest}")
        return self.blobs[digest]


class MemoryWriter:
    def __init__(
        self, store: MemoryContentStore, status: IngestStatus, data: bytearray, algorithm: str
    ) -> None:
        self._store = store
        self._status = status
        self._data = data
        self._algorithm = algorithm
        self._closed = False

    def status(self) -> IngestStatus:
        return replace(self._status, offset=len(self._data))

    def digest(self) -> str:
        return f"{self._algorithm}:{hashlib.new(self._algorithm, self._data).hexdigest()}"

    async def write(self, data: bytes | bytearray | memoryview, /) -> None:
        self._check()
        self._data += data

    async def truncate(self) -> None:
        self._check()
        self._data.clear()

    async def commit(self, size: int, expected: str, labels: Labels, /) -> None:
        try:
            self._check()
            if size and size != len(self._data):
                raise FailedPrecondition(f"unexpected commit size {len(self._data)}")
            if expected:
                self._algorithm, _ = digests.split(expected)
            actual = self.digest()
            if expected not in ("", actual):
                text = f"unexpected commit digest {actual}, expected {expected}"
                raise FailedPrecondition(text)
            await asyncio.sleep(0)
            self._check()
            del self._store.ingests[self._status.ref]
            if actual in self._store.blobs:
                raise AlreadyExists(f"content {actual}")
            self._store.blobs[actual] = bytes(self._data), time.time_ns()
        finally:
            await self.close()

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._store.release(self._status.ref)

    def _check(self) -> None:
        if self._closed:
            raise FailedPrecondition(f"writer of {self._status.ref} is closed")
        kept = self._store.ingests.get(self._status.ref)
        if kept is None or kept[1] is not self._data:
            raise NotFound(f"reference {self._status.ref}")
