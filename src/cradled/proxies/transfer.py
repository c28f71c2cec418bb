"""Async. Transfers of a server: it moves and unpacks images, we feed and watch it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from cradled.api import transfer_pb2 as pb
from cradled.api import transfer_types_pb2 as types_pb
from cradled.api.types_pb2 import Platform
from cradled.api.wellknown_pb2 import Any
from cradled.core.scope import Scope
from cradled.proxies import streaming
from cradled.proxies.scope import metadata
from cradled.proxies.streaming import ProxyStreams
from cradled.rpc.service import Message
from cradled.rpc.stub import Stub, Transport

_LAST_PROGRESS = 5.0  # seconds for progress still on its way when the transfer is done


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of a transfer; ``done`` and ``total`` are bytes, 0 when they mean nothing."""

    event: str
    name: str = ""
    parents: Sequence[str] = ()
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class Unpack:
    """What is unpacked on the way: images for this platform, into this snapshotter."""

    snapshotter: str
    os: str
    architecture: str
    variant: str = ""


class ProxyTransfer:
    def __init__(self, transport: Transport, scope: Scope) -> None:
        self._stub = Stub(transport, pb.Transfer, metadata(scope))
        self._streams = ProxyStreams(transport, scope)

    async def import_archive(
        self,
        archive: AsyncIterator[bytes],
        /,
        *,
        prefix: str,
        unpack: Unpack | None = None,
        name: str = "",
        tell: Callable[[Progress], None] | None = None,
    ) -> None:
        """Store the images of a tar archive (OCI layout or Docker's), compressed or not.

        Images are called what the archive calls them; where that is only a tag, ``prefix`` is put
        before it. ``name`` names what the archive gives no name. Raises InvalidArgument for what
        is no archive of images, NotFound when an image has no name.
        """
        destination = types_pb.ImageStore(
            name=name,
            extra_references=[
                types_pb.ImageReference(name=prefix, is_prefix=True, allow_overwrite=True)
            ],
            unpacks=[_unpack_to_proto(unpack)] if unpack else (),
        )
        async with AsyncExitStack() as stack:
            stream_name, stream = await stack.enter_async_context(self._streams.open("import"))
            source = types_pb.ImageImportStream(stream=stream_name)
            feed = asyncio.ensure_future(streaming.send_bytes(stream, archive))
            stack.push_async_callback(_end, feed)
            transfer = asyncio.ensure_future(self._transfer(source, destination, tell))
            stack.push_async_callback(_end, transfer)
            await asyncio.wait((feed, transfer), return_when=asyncio.FIRST_COMPLETED)
            if feed.done():
                feed.result()  # the caller's own error, if reading the archive failed
            await transfer

    async def _transfer(
        self, source: Message, destination: Message, tell: Callable[[Progress], None] | None
    ) -> None:
        request = pb.TransferRequest(source=_any(source), destination=_any(destination))
        if tell is None:
            await self._stub.transfer(request)
            return
        async with self._streams.open("progress") as (name, stream):
            request.options.progress_stream = name
            follow = streaming.receive_progress(stream, lambda p: tell(_progress(p)))
            watch = asyncio.ensure_future(follow)
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


def _unpack_to_proto(unpack: Unpack) -> types_pb.UnpackConfiguration:
    platform = Platform(os=unpack.os, architecture=unpack.architecture, variant=unpack.variant)
    return types_pb.UnpackConfiguration(platform=platform, snapshotter=unpack.snapshotter)


def _progress(message: types_pb.Progress) -> Progress:
    parents = tuple(message.parents)
    return Progress(message.event, message.name, parents, message.progress, message.total)
