"""Async. Transfers of a server: it moves and unpacks images, we feed and watch it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from cradled.api import transfer_pb2 as pb
from cradled.api import transfer_types_pb2 as types_pb
from cradled.api.wellknown_pb2 import Any
from cradled.convert import transfer as convert
from cradled.core.scope import Scope
from cradled.core.transfer import ImageDestination, Tell
from cradled.proxies import streaming
from cradled.proxies.scope import metadata
from cradled.proxies.streaming import ProxyStreams
from cradled.rpc.service import Message
from cradled.rpc.stub import Stub, Transport

_LAST_PROGRESS = 5.0  # seconds for progress still on its way when the transfer is done


class ProxyTransfer:
    def __init__(self, transport: Transport, scope: Scope) -> None:
        self._stub = Stub(transport, pb.Transfer, metadata(scope))
        self._streams = ProxyStreams(transport, scope)

    async def import_archive(
        self, archive: AsyncIterator[bytes], image: ImageDestination, /, tell: Tell | None = None
    ) -> None:
        """Store the images of a tar archive (OCI layout or Docker's), compressed or not.

        Raises InvalidArgument for what is no archive of images, NotFound when an image has no
        name, and what reading the archive raises.
        """
        destination = convert.destination_to_proto(image)
        async with AsyncExitStack() as stack:
            name, stream = await stack.enter_async_context(self._streams.open("import"))
            source = types_pb.ImageImportStream(stream=name)
            feed = asyncio.ensure_future(streaming.send_bytes(stream, archive))
            stack.push_async_callback(_end, feed)
            transfer = asyncio.ensure_future(self._transfer(source, destination, tell))
            stack.push_async_callback(_end, transfer)
            await asyncio.wait((feed, transfer), return_when=asyncio.FIRST_COMPLETED)
            if feed.done():
                feed.result()  # the caller's own error, if reading the archive failed
            await transfer

    async def _transfer(self, source: Message, destination: Message, tell: Tell | None) -> None:
        request = pb.TransferRequest(source=_any(source), destination=_any(destination))
        if tell is None:
            await self._stub.transfer(request)
            return
        async with self._streams.open("progress") as (name, stream):
            request.options.progress_stream = name
            watch = asyncio.ensure_future(streaming.receive_progress(stream, tell))
            try:
                await self._stub.transfer(request)
                await asyncio.wait((watch,), timeout=_LAST_PROGRESS)
                if watch.done():
                    watch.result()
            finally:
                await _end(watch)


async def _end(task: asyncio.Future[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _any(message: Message) -> Any:
    return Any(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())
