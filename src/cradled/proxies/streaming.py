"""Async. Named streams of a server: bytes and progress that accompany another call.

Bytes travel in ``Data`` messages as far as the other side has granted with ``WindowUpdate``; the
end of a stream is the end of the data (reference, services.md section 13).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from cradled.api import streaming_pb2 as pb
from cradled.api.wellknown_pb2 import Any
from cradled.convert import transfer as convert
from cradled.core.scope import Scope
from cradled.core.transfer import Tell
from cradled.errors import Error
from cradled.proxies.scope import metadata
from cradled.rpc.stub import ClientStream, Stub, Transport

CHUNK = 1 << 20
"""Most bytes in one message, where the window allows as much."""

_INIT = pb.StreamInit.DESCRIPTOR.full_name


class ProxyStreams:
    def __init__(self, transport: Transport, scope: Scope) -> None:
        self._stub = Stub(transport, pb.Streaming, metadata(scope))
        self._namespace = scope.namespace

    @asynccontextmanager
    async def open(self, kind: str) -> AsyncIterator[tuple[str, ClientStream]]:
        """A new stream and the name by which another call refers to it."""
        name = f"{kind}-{self._namespace}-{secrets.token_urlsafe(9)}"
        stream: ClientStream = self._stub.stream()
        async with stream:
            init = pb.StreamInit(id=name).SerializeToString()
            await stream.send(Any(type_url=_INIT, value=init))
            if await stream.recv() is None:
                raise Error("the server ended a stream before it began")
            yield name, stream


async def send_bytes(stream: ClientStream, source: AsyncIterator[bytes]) -> None:
    """Send all that ``source`` yields, as fast as the other side takes it.

    Ends early, without an error, when the other side has ended the stream: why is told by the
    call that the stream belongs to.
    """
    window = _Window(stream)
    following = asyncio.ensure_future(window.follow())
    try:
        async for data in source:
            view = memoryview(data)
            while view:
                granted = await window.take(min(len(view), CHUNK))
                if not granted:
                    return
                with suppress(Error):
                    await stream.send(convert.data_to_any(bytes(view[:granted])))
                view = view[granted:]
        with suppress(Error):
            await stream.done()
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def receive_progress(stream: ClientStream, tell: Tell) -> None:
    """Pass on every step until the server ends the stream."""
    with suppress(Error):
        async for message in stream:
            step = convert.progress_from_any(message)
            if step is not None:
                tell(step)


class _Window:
    """How much may be sent; grows by what the other side grants."""

    def __init__(self, stream: ClientStream) -> None:
        self._stream = stream
        self._bytes = 0
        self._ended = False
        self._changed = asyncio.Event()

    async def follow(self) -> None:
        with suppress(Error):
            async for message in self._stream:
                self._bytes += convert.window_from_any(message)
                self._changed.set()
        self._ended = True
        self._changed.set()

    async def take(self, wanted: int) -> int:
        """At most ``wanted`` bytes, at least one; 0 when the other side takes no more at all."""
        while self._bytes <= 0 and not self._ended:
            self._changed.clear()
            await self._changed.wait()
        if self._ended:
            return 0
        granted = min(self._bytes, wanted)
        self._bytes -= granted
        return granted
