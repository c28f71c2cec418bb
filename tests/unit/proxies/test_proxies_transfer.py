"""Feeding and watching a transfer: the real streams, a transfer that does what a test wants."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from cradled.api import transfer_pb2, transfer_types_pb2
from cradled.api.wellknown_pb2 import Empty
from cradled.convert import transfer as convert
from cradled.core.scope import Scope
from cradled.core.transfer import ExtraReference, ImageDestination, Progress, Unpack
from cradled.errors import InvalidArgument
from cradled.proxies.transfer import ProxyTransfer
from cradled.rpc.call import Call
from cradled.rpc.stub import Transport
from cradled.streaming.manager import Stream
from cradled.streaming.windows import receive_bytes

Act = Callable[[Stream, Stream | None, Any], Awaitable[None]]


class _Transfers:
    """Looks the streams up and hands them to ``act``."""

    def __init__(self, backend: SimpleNamespace) -> None:
        self._streams = backend.streams
        self.act: Act | None = None

    async def transfer(self, call: Call, request: transfer_pb2.TransferRequest) -> Empty:
        namespace = call.scope().namespace
        source = transfer_types_pb2.ImageImportStream.FromString(request.source.value)
        image = transfer_types_pb2.ImageStore.FromString(request.destination.value)
        named = request.options.progress_stream
        progress = self._streams.get(namespace, named) if named else None
        assert self.act is not None
        await self.act(
            self._streams.get(namespace, source.stream),
            progress,
            convert.destination_from_proto(image),
        )
        if progress is not None:
            await progress.close()
        return Empty()


@pytest.fixture
def transfers(backend: SimpleNamespace) -> _Transfers:
    made = _Transfers(backend)
    backend.router.add(transfer_pb2.Transfer, made)
    return made


@pytest.fixture
def proxy(transport: Transport) -> ProxyTransfer:
    return ProxyTransfer(transport, Scope("test"))


async def pieces(total: int, size: int = 300_000) -> AsyncIterator[bytes]:
    for start in range(0, total, size):
        yield bytes([start // size % 256]) * min(size, total - start)


async def test_every_byte_arrives(proxy: ProxyTransfer, transfers: _Transfers) -> None:
    total = 12 << 20  # several windows
    received = hashlib.sha256()
    destinations = []

    async def act(stream: Stream, progress: Stream | None, image: Any) -> None:
        destinations.append(image)
        async for data in receive_bytes(stream):
            received.update(data)

    transfers.act = act
    image = ImageDestination(
        name="n",
        labels={"a": "b"},
        platforms=("linux/arm/v7",),
        extra_references=(ExtraReference("p", is_prefix=True, allow_overwrite=True),),
        unpacks=(Unpack("linux/amd64", "overlayfs"),),
    )
    await proxy.import_archive(pieces(total), image)
    expected = hashlib.sha256()
    async for piece in pieces(total):
        expected.update(piece)
    assert received.digest() == expected.digest()
    assert destinations == [image]


async def test_a_sender_keeps_to_its_window(proxy: ProxyTransfer, transfers: _Transfers) -> None:
    sizes: list[int] = []

    async def act(stream: Stream, progress: Stream | None, image: Any) -> None:
        for grant in (10, 1, 300):
            await stream.send(convert.window_to_any(grant))
            left = grant
            while left:
                message = await stream.receive()
                sizes.append(len(convert.data_from_any(message)))
                left -= sizes[-1]
                assert left >= 0
        await stream.send(convert.window_to_any(1 << 20))
        while await stream.receive() is not None:
            pass

    transfers.act = act
    await proxy.import_archive(pieces(1000, 1000), ImageDestination())
    assert sum(sizes) == 311


async def test_steps_are_told_in_order(proxy: ProxyTransfer, transfers: _Transfers) -> None:
    steps = [Progress("Importing"), Progress("saved", "i", ("p",), 3, 4), Progress("Completed")]

    async def act(stream: Stream, progress: Stream | None, image: Any) -> None:
        assert progress is not None
        for step in steps:
            await progress.send(convert.progress_to_any(step))

    transfers.act = act
    told: list[Progress] = []
    await proxy.import_archive(pieces(10), ImageDestination(), told.append)
    assert told == steps


async def test_the_servers_error_ends_it(proxy: ProxyTransfer, transfers: _Transfers) -> None:
    async def act(stream: Stream, progress: Stream | None, image: Any) -> None:
        async for _ in receive_bytes(stream):
            await stream.close()
            raise InvalidArgument("unrecognized image format", verbatim=True)

    transfers.act = act
    with pytest.raises(InvalidArgument, match="unrecognized image format"):
        await proxy.import_archive(pieces(100 << 20), ImageDestination(), lambda step: None)


async def test_what_reading_raises_ends_it(proxy: ProxyTransfer, transfers: _Transfers) -> None:
    cut_off = asyncio.Event()

    async def act(stream: Stream, progress: Stream | None, image: Any) -> None:
        try:
            async for _ in receive_bytes(stream):
                pass
        finally:
            cut_off.set()

    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise OSError("disk on fire")

    transfers.act = act
    with pytest.raises(OSError, match="disk on fire"):
        await proxy.import_archive(broken(), ImageDestination())
    await cut_off.wait()
