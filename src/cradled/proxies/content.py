"""Async. The content store of a server, as a ``core.content.ContentStore``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

from cradled.api import content_pb2 as pb
from cradled.api.wellknown_pb2 import FieldMask
from cradled.convert import blobs
from cradled.convert import content as convert
from cradled.convert.values import nanoseconds
from cradled.core.content import ContentInfo, IngestStatus
from cradled.core.scope import Scope
from cradled.core.values import Labels
from cradled.errors import Error, FailedPrecondition, Internal
from cradled.proxies.scope import metadata
from cradled.rpc.service import Encoded
from cradled.rpc.stub import ClientStream, Stub, Transport

CHUNK = 1 << 20
"""Bytes of blob in one message."""

# Sent and not yet answered. One message is hashed and written there while the next travels; more
# would only wait, and an in-process peer has no room for them.
_IN_FLIGHT = 2


class ProxyContentStore:
    def __init__(self, transport: Transport, scope: Scope) -> None:
        self._transport = transport
        self._stub = Stub(transport, blobs.CALLED, metadata(scope))

    def bind(self, scope: Scope, /) -> ProxyContentStore:
        """The same on behalf of another scope."""
        return ProxyContentStore(self._transport, scope)

    async def info(self, digest: str, /) -> ContentInfo:
        response = await self._stub.info(pb.InfoRequest(digest=digest))
        return convert.from_proto(response.info)

    async def update(self, info: ContentInfo, fieldpaths: Sequence[str] = (), /) -> ContentInfo:
        request = pb.UpdateRequest(
            info=convert.to_proto(info), update_mask=FieldMask(paths=fieldpaths)
        )
        return convert.from_proto((await self._stub.update(request)).info)

    async def walk(self, filters: Sequence[str] = (), /) -> AsyncIterator[ContentInfo]:
        async for response in self._stub.list(pb.ListContentRequest(filters=filters)):
            for info in response.info:
                yield convert.from_proto(info)

    async def delete(self, digest: str, /) -> None:
        await self._stub.delete(pb.DeleteContentRequest(digest=digest))

    async def open(self, digest: str, /) -> ProxyReader:
        return ProxyReader(self._stub, digest, (await self.info(digest)).size)

    async def read_all(self, digest: str, size: int = 0, /) -> bytes:
        """A whole small blob in one call, without asking for its size before."""
        request = pb.ReadContentRequest(digest=digest, size=size)
        return await _read(self._stub, request)

    async def writer(self, ref: str, /, *, total: int = 0, expected: str = "") -> ProxyWriter:
        writer = ProxyWriter(self._stub.write(), IngestStatus(ref, 0, total, expected))
        await writer.open()
        return writer

    async def status(self, ref: str, /) -> IngestStatus:
        response = await self._stub.status(pb.StatusRequest(ref=ref))
        return convert.status_from_proto(response.status)

    async def list_statuses(self, filters: Sequence[str] = (), /) -> list[IngestStatus]:
        response = await self._stub.list_statuses(pb.ListStatusesRequest(filters=filters))
        return [convert.status_from_proto(status) for status in response.statuses]

    async def abort(self, ref: str, /) -> None:
        await self._stub.abort(pb.AbortRequest(ref=ref))


class ProxyReader:
    """Every read is a call of its own: nothing is held open on the server."""

    def __init__(self, stub: Stub, digest: str, size: int) -> None:
        self._stub = stub
        self._digest = digest
        self.size = size

    def fileno(self) -> int:
        return -1

    async def read(self, offset: int, length: int, /) -> bytes:
        length = min(length, self.size - offset)
        if length <= 0:
            return b""
        request = pb.ReadContentRequest(digest=self._digest, offset=offset, size=length)
        return await _read(self._stub, request)

    def close(self) -> None:
        """Nothing to release."""


class ProxyWriter:
    """One write stream. The server's answers are the state; none is guessed here."""

    def __init__(self, stream: ClientStream, status: IngestStatus) -> None:
        self._stream = stream
        self._status = status
        self._digest = ""
        self._open = True

    async def open(self) -> None:
        """Name the ingest; to be called once, first."""
        status = self._status
        request = pb.WriteContentRequest(
            action=pb.STAT, ref=status.ref, total=status.total, expected=status.expected
        )
        try:
            await self._stream.send(request)
            response = await self._answer()
        except BaseException:
            self._abandon()
            raise
        self._status = IngestStatus(
            status.ref,
            response.offset,
            response.total or status.total,
            status.expected,
            nanoseconds(response.started_at),
            nanoseconds(response.updated_at),
        )

    def status(self) -> IngestStatus:
        return self._status

    def digest(self) -> str:
        return self._digest

    async def write(self, data: bytes | bytearray | memoryview, /) -> None:
        view = memoryview(data)
        offset, in_flight = self._status.offset, 0
        for start in range(0, len(view), CHUNK):
            chunk = view[start : start + CHUNK]
            request = pb.WriteContentRequest(action=pb.WRITE, offset=offset)
            await self._send(Encoded(*blobs.request_parts(request, chunk)))
            offset += len(chunk)
            in_flight += 1
            if in_flight == _IN_FLIGHT:
                await self._answer()
                in_flight -= 1
        for _ in range(in_flight):
            await self._answer()

    async def truncate(self) -> None:
        await self._send(pb.WriteContentRequest(action=pb.WRITE, offset=0))
        await self._answer()

    async def commit(self, size: int, expected: str, labels: Labels, /) -> None:
        request = pb.WriteContentRequest(
            action=pb.COMMIT,
            total=size,
            expected=expected,
            offset=self._status.offset,
            labels=labels,
        )
        try:
            await self._send(request)
            await self._answer()
            await self._stream.done()
            await self._drain()
        finally:
            self._abandon()

    async def close(self) -> None:
        """The ref is free for another writer when this returns."""
        if not self._open:
            return
        try:
            with suppress(Error):  # a stream that broke is closed too
                await self._stream.done()
                await self._drain()
        finally:
            self._abandon()

    def _abandon(self) -> None:
        self._open = False
        self._stream.cancel()

    async def _send(self, request: pb.WriteContentRequest | Encoded) -> None:
        if not self._open:
            raise FailedPrecondition(f"writer of {self._status.ref} is closed")
        await self._stream.send(request)

    async def _answer(self) -> pb.WriteContentResponse:
        try:
            response: pb.WriteContentResponse | None = await self._stream.recv()
        except Error:
            self._open = False
            raise
        if response is None:
            raise Internal("the server ended a write stream without an answer")
        self._digest = response.digest
        self._status = IngestStatus(
            self._status.ref,
            response.offset,
            self._status.total,
            self._status.expected,
            self._status.started_at,
            self._status.updated_at,
        )
        return response

    async def _drain(self) -> None:
        """Until the server has ended the stream; it may repeat its last answer before."""
        while await self._stream.recv() is not None:
            pass


async def _read(stub: Stub, request: pb.ReadContentRequest) -> bytes:
    """All that a read answers with."""
    return b"".join([blobs.data_of(response)[1] async for response in stub.read(request)])
