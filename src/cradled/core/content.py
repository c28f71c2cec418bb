"""Pure. Content: immutable blobs by digest, and the ingests they grow from.

The same ``ContentStore`` is spoken by the backend (no namespaces, no labels kept), by the
namespaced store over it, and by the proxy over rpc; one contract suite runs on all three.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cradled.core.values import Labels


@dataclass(frozen=True, slots=True)
class ContentInfo:
    """A committed blob. Times are nanoseconds since the epoch, size is in bytes."""

    digest: str
    size: int
    created_at: int = 0
    updated_at: int = 0
    labels: Labels = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class IngestStatus:
    """A blob in the making: bytes so far, and what was announced (0 or empty: nothing)."""

    ref: str
    offset: int
    total: int = 0
    expected: str = ""
    started_at: int = 0
    updated_at: int = 0


class Reader(Protocol):
    """An open blob. The caller closes it; closing twice is fine."""

    size: int

    def fileno(self) -> int:
        """A descriptor open for reading, valid until ``close``; -1 where there is none."""
        ...

    async def read(self, offset: int, length: int, /) -> bytes:
        """Up to ``length`` bytes at ``offset``; empty at the end."""
        ...

    def close(self) -> None: ...


class Writer(Protocol):
    """The one open writer of an ingest; it holds the ref's lock until closed.

    After ``commit`` succeeds or raises, the writer is closed. ``close`` without commit keeps the
    ingest for another writer to go on with.
    """

    def status(self) -> IngestStatus: ...

    def digest(self) -> str:
        """Digest of the bytes written so far."""
        ...

    async def write(self, data: bytes | bytearray | memoryview, /) -> None:
        """Append. The buffer may be reused once this returns, unless it is a read-only view."""
        ...

    async def truncate(self) -> None:
        """Start again at offset 0."""
        ...

    async def commit(self, size: int, expected: str, labels: Labels, /) -> None:
        """Make the blob permanent: durable when this returns. 0 and "" mean: no check.

        Raises FailedPrecondition for a wrong size or digest (the ingest stays), AlreadyExists when
        the store has the blob (the ingest is removed), InvalidArgument for labels.
        """
        ...

    async def close(self) -> None: ...


class ContentStore(Protocol):
    async def info(self, digest: str, /) -> ContentInfo:
        """Raises NotFound ``content digest D``."""
        ...

    async def update(self, info: ContentInfo, fieldpaths: Sequence[str] = (), /) -> ContentInfo:
        """Change labels (``labels`` or ``labels.<k>``; no paths: replace all)."""
        ...

    def walk(self, filters: Sequence[str] = (), /) -> AsyncIterator[ContentInfo]: ...

    async def delete(self, digest: str, /) -> None: ...

    async def open(self, digest: str, /) -> Reader: ...

    async def writer(self, ref: str, /, *, total: int = 0, expected: str = "") -> Writer:
        """Open or resume an ingest.

        Raises Unavailable while another writer holds the ref, AlreadyExists ``content D`` when
        ``expected`` is there already, InvalidArgument without a ref.
        """
        ...

    async def status(self, ref: str, /) -> IngestStatus: ...

    async def list_statuses(self, filters: Sequence[str] = (), /) -> list[IngestStatus]: ...

    async def abort(self, ref: str, /) -> None:
        """Drop an ingest, also one with an open writer. Raises NotFound."""
        ...
