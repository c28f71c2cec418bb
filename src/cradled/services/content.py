"""Async. Content: infos, reads in 1 MiB chunks, and the write stream.

The write stream is one writer's life: the first message names the ingest, each following one is
STAT, WRITE or COMMIT. COMMIT ends the stream; a client that closes its side without COMMIT leaves
the ingest to be resumed. The reference's section 6 tells every text.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from cradled import digest as digests
from cradled.api import content_pb2 as pb
from cradled.api.wellknown_pb2 import Empty
from cradled.convert import blobs
from cradled.convert import content as convert
from cradled.convert.encoded import varint
from cradled.convert.values import timestamp_or_never
from cradled.core.content import ContentStore, Writer
from cradled.errors import AlreadyExists, Error, InvalidArgument, NotFound, OutOfRange, quote
from cradled.metadata.db import Database
from cradled.rpc.call import Call
from cradled.rpc.service import Encoded

PAGE = 100
"""Infos in one message of List."""

CHUNK = 1 << 20
"""Bytes of blob in one message of Read."""


class ContentService:
    def __init__(self, db: Database) -> None:
        self._db = db

    def _store(self, call: Call) -> ContentStore:
        return self._db.scoped(call.scope()).content

    async def info(self, call: Call, request: pb.InfoRequest) -> pb.InfoResponse:
        _check(request.digest, f"{quote(request.digest)} failed validation")
        info = await self._store(call).info(request.digest)
        return pb.InfoResponse(info=convert.to_proto(info))

    async def update(self, call: Call, request: pb.UpdateRequest) -> pb.UpdateResponse:
        info = convert.from_proto(request.info)
        _check(info.digest, f"{quote(info.digest)} failed validation")
        updated = await self._store(call).update(info, list(request.update_mask.paths))
        return pb.UpdateResponse(info=convert.to_proto(updated))

    async def list(
        self, call: Call, request: pb.ListContentRequest
    ) -> AsyncIterator[pb.ListContentResponse]:
        page: list[pb.Info] = []
        async for info in self._store(call).walk(list(request.filters)):
            page.append(convert.to_proto(info))
            if len(page) == PAGE:
                yield pb.ListContentResponse(info=page)
                page = []
        if page:
            yield pb.ListContentResponse(info=page)

    async def delete(self, call: Call, request: pb.DeleteContentRequest) -> Empty:
        _check(request.digest, digests.fault(request.digest))
        await self._store(call).delete(request.digest)
        return Empty()

    async def read(self, call: Call, request: pb.ReadContentRequest) -> AsyncIterator[Encoded]:
        _check(request.digest, f"{request.digest}: {digests.fault(request.digest)}")
        reader = await self._store(call).open(request.digest)
        try:
            start = max(request.offset, 0)
            if start > reader.size:
                text = f"read past object length {reader.size} bytes"
                raise OutOfRange(text, verbatim=True)
            left = reader.size - start
            if 0 < request.size < left:
                left = request.size
            sent = 0
            while left > 0:
                data = await reader.read(start + sent, min(left, CHUNK))
                if not data:
                    break
                yield _read_response(sent, data)
                sent += len(data)
                left -= len(data)
        finally:
            reader.close()

    async def status(self, call: Call, request: pb.StatusRequest) -> pb.StatusResponse:
        ref = request.ref
        try:
            status = await self._store(call).status(ref)
        except Error as error:
            raise type(error)(f"could not get status for ref {quote(ref)}: {error}") from error
        return pb.StatusResponse(status=convert.status_to_proto(status))

    async def list_statuses(
        self, call: Call, request: pb.ListStatusesRequest
    ) -> pb.ListStatusesResponse:
        found = await self._store(call).list_statuses(list(request.filters))
        return pb.ListStatusesResponse(statuses=map(convert.status_to_proto, found))

    async def abort(self, call: Call, request: pb.AbortRequest) -> Empty:
        await self._store(call).abort(request.ref)
        return Empty()

    async def write(
        self, call: Call, requests: AsyncIterator[pb.WriteContentRequest | blobs.Carrier]
    ) -> AsyncIterator[pb.WriteContentResponse]:
        store = self._store(call)
        received = await anext(requests, None)
        if received is None:
            raise Error("EOF")
        first, data = blobs.data_of(received)
        if not first.ref:
            raise InvalidArgument("first message must have a reference", verbatim=True)
        writer = await store.writer(first.ref, total=first.total, expected=first.expected)
        session = _WriteSession(store, writer, first)
        try:
            yield await session.handle(first, data)
            if first.action == pb.COMMIT:
                return
            async for received in requests:
                request, data = blobs.data_of(received)
                yield await session.handle(request, data)
                if request.action == pb.COMMIT:
                    return
        finally:
            await writer.close()


class _WriteSession:
    """What a write stream remembers between its messages.

    As in the original one reply is filled further with each message: times and total, once told
    by a STAT, stay in the replies after it.
    """

    def __init__(self, store: ContentStore, writer: Writer, first: pb.WriteContentRequest) -> None:
        self._store = store
        self._writer = writer
        self._ref = first.ref
        self._total = first.total
        self._expected = first.expected
        self._reply = pb.WriteContentResponse()

    async def handle(
        self, request: pb.WriteContentRequest, data: blobs.Buffer
    ) -> pb.WriteContentResponse:
        if request.total > 0:
            self._total = request.total
        if request.expected:
            self._expected = request.expected
        if self._expected:
            await self._stop_if_present()
        reply = self._reply
        reply.action = request.action
        reply.offset = self._writer.status().offset
        if request.action == pb.STAT:
            self._stat()
        elif request.action in (pb.WRITE, pb.COMMIT):
            await self._append(request.offset, data)
            if request.action == pb.COMMIT:
                await self._writer.commit(self._total, self._expected, dict(request.labels))
            reply.digest = self._writer.digest()
        answer = pb.WriteContentResponse()
        answer.CopyFrom(reply)
        return answer

    async def _stop_if_present(self) -> None:
        """Somebody else has brought the blob meanwhile: nothing is left to be written."""
        try:
            await self._store.info(self._expected)
        except NotFound:
            return
        await self._writer.close()
        await self._store.abort(self._ref)
        text = f"blob with expected digest {self._expected} exists"
        raise AlreadyExists(text, verbatim=True)

    def _stat(self) -> None:
        status = self._writer.status()
        self._reply.started_at.CopyFrom(timestamp_or_never(status.started_at))
        self._reply.updated_at.CopyFrom(timestamp_or_never(status.updated_at))
        self._reply.total = self._total
        self._reply.digest = self._writer.digest()

    async def _append(self, offset: int, data: blobs.Buffer) -> None:
        """Offset 0 with data present means: start again."""
        reply = self._reply
        if offset > 0 and offset != reply.offset:
            text = f"write @{offset} must occur at current offset {reply.offset}"
            raise OutOfRange(text, verbatim=True)
        if offset == 0 and reply.offset > 0:
            await self._writer.truncate()
            reply.offset = 0
        if data:
            await self._writer.write(data)
            reply.offset += len(data)


def _check(digest: str, text: str) -> None:
    """Raises InvalidArgument with ``text`` for what is no digest."""
    if digests.fault(digest):
        raise InvalidArgument(text)


def _read_response(offset: int, data: bytes) -> Encoded:
    """A ReadContentResponse that carries the data uncopied."""
    head = b"\x08" + varint(offset) if offset else b""
    return Encoded(head + b"\x12" + varint(len(data)), data)
