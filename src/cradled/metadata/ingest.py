"""Async. The writer that a namespaced content store hands out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol

from cradled import digest as digests
from cradled.core.content import IngestStatus, Writer
from cradled.core.values import Labels
from cradled.errors import FailedPrecondition, quote
from cradled.spans import traced


class Store(Protocol):
    """What a writer needs of its store."""

    async def adopt(
        self, ref: str, digest: str, size: int, labels: Labels, writer: Writer | None, /
    ) -> None: ...

    async def copy_blob(self, digest: str, writer: Writer, /) -> None: ...

    def release(self, ref: str, /) -> None: ...


class NamespacedWriter:
    """Implements ``core.content.Writer``.

    ``backend`` is None for content that the backend has: the writer begins complete, there is
    nothing to be written. Whoever writes nevertheless gets an ordinary writer, made by
    ``open_backend``, that has the bytes already.
    """

    def __init__(
        self,
        store: Store,
        status: IngestStatus,
        backend: Writer | None,
        open_backend: Callable[[], Awaitable[Writer]],
    ) -> None:
        self._store = store
        self._status = status
        self._backend = backend
        self._open_backend = open_backend
        self._closed = False

    def status(self) -> IngestStatus:
        if self._backend is None:
            return self._status
        found = self._backend.status()
        return replace(found, ref=self._status.ref, expected=self._status.expected)

    def digest(self) -> str:
        return self._status.expected if self._backend is None else self._backend.digest()

    async def write(self, data: bytes | bytearray | memoryview, /) -> None:
        self._check_open()
        if self._backend is None:
            self._backend = await self._open_backend()
            await self._store.copy_blob(self._status.expected, self._backend)
        await self._backend.write(data)

    async def truncate(self) -> None:
        self._check_open()
        if self._backend is None:
            self._backend = await self._open_backend()
        else:
            await self._backend.truncate()

    @traced("content.commit")
    async def commit(self, size: int, expected: str, labels: Labels, /) -> None:
        self._check_open()
        ref, offset = self._status.ref, self.status().offset
        try:
            if size and size != offset:
                text = f"{quote(ref)} failed size validation: {offset} != {size}"
                raise FailedPrecondition(text)
            digest = self.digest()
            if expected:
                algorithm, _ = digests.split(expected)
                if expected != digest and digest.startswith(f"{algorithm}:"):
                    raise FailedPrecondition(
                        f"unexpected commit digest {digest}, expected {expected}"
                    )
            await self._store.adopt(ref, expected or digest, offset, labels, self._backend)
        finally:
            await self.close()

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            if self._backend is not None:
                await self._backend.close()
        finally:
            self._store.release(self._status.ref)

    def _check_open(self) -> None:
        if self._closed:
            raise FailedPrecondition(f"writer of {self._status.ref} is closed")
