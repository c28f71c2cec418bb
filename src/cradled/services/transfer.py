"""Async. Transfers: from what to what, as the messages in the request tell."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any as AnyType

from cradled.api import transfer_pb2 as pb
from cradled.api import transfer_types_pb2 as types_pb
from cradled.api.wellknown_pb2 import Any, Empty
from cradled.convert import transfer as convert
from cradled.core.scope import Scope
from cradled.core.transfer import Progress, Tell
from cradled.errors import Cancelled, NotFound, Unimplemented
from cradled.metadata.db import Database
from cradled.oci import platforms
from cradled.rpc.call import Call
from cradled.streaming.manager import Stream, Streams
from cradled.streaming.windows import receive_bytes, send_bytes
from cradled.transfer.exporter import ExportOptions
from cradled.transfer.service import Transfers

_LEASE_SECONDS = 24 * 3600
_EXPIRES = "containerd.io/gc.expire"

_Handler = Callable[["TransferService", Scope, AnyType, AnyType, Tell], Awaitable[None]]


class TransferService:
    def __init__(self, db: Database, streams: Streams, transfers: Transfers) -> None:
        self._db = db
        self._streams = streams
        self._transfers = transfers

    async def transfer(self, call: Call, request: pb.TransferRequest) -> Empty:
        scope = call.scope()
        source, destination = _known(request.source), _known(request.destination)
        handler = _HANDLERS.get((type(source), type(destination)))
        if handler is None:
            urls = f"{request.source.type_url} to {request.destination.type_url}"
            raise Unimplemented(f"method Transfer not implemented for {urls}")
        async with (
            self._leased(scope) as leased,
            self._progress(scope.namespace, request.options.progress_stream) as tell,
        ):
            await handler(self, leased, source, destination, tell)
        return Empty()

    @asynccontextmanager
    async def _leased(self, scope: Scope) -> AsyncIterator[Scope]:
        """The caller's lease, or one of our own for the length of the transfer."""
        if scope.lease:
            yield scope
            return
        leases = self._db.scoped(scope).leases
        expires = time.gmtime(time.time() + _LEASE_SECONDS)
        labels = {_EXPIRES: time.strftime("%Y-%m-%dT%H:%M:%SZ", expires)}
        lease = await leases.create("", labels)
        try:
            yield replace(scope, lease=lease.id)
        finally:
            with suppress(NotFound):
                await leases.delete(lease.id)

    @asynccontextmanager
    async def _progress(self, namespace: str, name: str) -> AsyncIterator[Tell]:
        """Steps go to the stream of that name, which ends with the transfer."""
        if not name:
            yield lambda _progress: None
            return
        stream = self._streams.get(namespace, name)
        steps: asyncio.Queue[Progress | None] = asyncio.Queue()
        sending = asyncio.ensure_future(_send_steps(stream, steps))
        try:
            yield steps.put_nowait
        finally:
            steps.put_nowait(None)
            await sending

    async def _import(
        self,
        scope: Scope,
        source: types_pb.ImageImportStream,
        destination: types_pb.ImageStore,
        tell: Tell,
    ) -> None:
        stream = self._streams.get(scope.namespace, source.stream)
        image = convert.destination_from_proto(destination)
        stores, chunks = self._db.scoped(scope), receive_bytes(stream)
        try:
            await self._transfers.import_archive(
                stores, chunks, image, tell, compress=source.force_compress
            )
        finally:
            await stream.close()

    async def _export(
        self,
        scope: Scope,
        source: types_pb.ImageStore,
        destination: types_pb.ImageExportStream,
        tell: Tell,
    ) -> None:
        stream = self._streams.get(scope.namespace, destination.stream)
        names = [source.name] if source.name else []
        names += [extra.name for extra in source.extra_references if not extra.is_prefix]
        options = ExportOptions(
            wanted=_wanted(destination),
            compatibility_manifest=not destination.skip_compatibility_manifest,
            non_distributable=not destination.skip_non_distributable,
        )
        stores = self._db.scoped(scope)
        pieces = self._transfers.export_archive(stores, names, options, tell)
        await send_bytes(stream, pieces)

    async def _tag(
        self,
        scope: Scope,
        source: types_pb.ImageStore,
        destination: types_pb.ImageStore,
        _tell: Tell,
    ) -> None:
        named = convert.destination_from_proto(destination)
        await self._transfers.tag(self._db.scoped(scope), source.name, named)

    async def _echo(
        self,
        scope: Scope,
        source: types_pb.ImageImportStream,
        destination: types_pb.ImageExportStream,
        _tell: Tell,
    ) -> None:
        incoming = self._streams.get(scope.namespace, source.stream)
        outgoing = self._streams.get(scope.namespace, destination.stream)
        await send_bytes(outgoing, receive_bytes(incoming))


_HANDLERS: dict[tuple[type, type], _Handler] = {
    (types_pb.ImageImportStream, types_pb.ImageStore): TransferService._import,
    (types_pb.ImageStore, types_pb.ImageExportStream): TransferService._export,
    (types_pb.ImageStore, types_pb.ImageStore): TransferService._tag,
    (types_pb.ImageImportStream, types_pb.ImageExportStream): TransferService._echo,
}
_TYPES = {
    message.DESCRIPTOR.full_name: message
    for message in (types_pb.ImageImportStream, types_pb.ImageExportStream, types_pb.ImageStore)
}


def _known(value: Any) -> AnyType:
    """The message in an Any; None for a type that no transfer takes."""
    message = _TYPES.get(convert.type_name(value))
    return None if message is None else message.FromString(value.value)


def _wanted(destination: types_pb.ImageExportStream) -> tuple[platforms.Platform, ...]:
    if destination.all_platforms:
        return ()
    named = [platforms.parse(convert.platform(one)) for one in destination.platforms]
    return tuple(named or [platforms.default()])


async def _send_steps(stream: Stream, steps: asyncio.Queue[Progress | None]) -> None:
    # A client that no longer listens does not stop its transfer.
    with suppress(Cancelled):
        while (step := await steps.get()) is not None:
            await stream.send(convert.progress_to_any(step))
        await stream.close()
