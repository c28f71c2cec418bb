"""Async. Bytes over a named stream, as far as the receiver has granted (services.md section 13).

We grant far more than the original's 64 KiB: a window costs the sender a round trip each time it
runs out, and what arrives is at most one window of memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from cradled.convert import transfer as convert
from cradled.errors import Cancelled
from cradled.streaming.manager import Stream

CHUNK = 32768
"""Most bytes in one message: what receivers are made for."""

WINDOW = 4 << 20
"""Bytes that may be on their way to us."""


async def receive_bytes(stream: Stream) -> AsyncIterator[bytes]:
    """What the client sends, until it ends its side. Raises Cancelled when it is gone."""
    granted = 0
    while True:
        if granted <= WINDOW // 2:
            await stream.send(convert.window_to_any(WINDOW - granted))
            granted = WINDOW
        message = await stream.receive()
        if message is None:
            return
        data = convert.data_from_any(message)
        granted -= len(data)
        if data:
            yield data


async def send_bytes(stream: Stream, chunks: AsyncIterator[bytes]) -> None:
    """Send everything and end the stream; returns when that has ended.

    Raises Cancelled when the client takes no more.
    """
    window = _Window()
    following = asyncio.ensure_future(window.follow(stream))
    try:
        async for chunk in chunks:
            view = memoryview(chunk)
            while view:
                piece = view[: await window.take(min(len(view), CHUNK))]
                await stream.send(convert.data_to_any(bytes(piece)))
                view = view[len(piece) :]
        await stream.close()
        # Until all is on its way the client may go on granting, and must not be held up.
        await asyncio.wait((following,))
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


class _Window:
    """What may be sent. Grants are taken in at once, whether they are needed yet or not."""

    def __init__(self) -> None:
        self._granted = 0
        self._ended = False
        self._changed = asyncio.Event()

    async def follow(self, stream: Stream) -> None:
        try:
            while (message := await stream.receive()) is not None:
                self._granted += convert.window_from_any(message)
                self._changed.set()
        finally:
            self._ended = True
            self._changed.set()

    async def take(self, wanted: int) -> int:
        """At least one byte, at most ``wanted``."""
        while self._granted <= 0:
            if self._ended:
                raise Cancelled("the receiver takes no more")
            self._changed.clear()
            await self._changed.wait()
        taken = min(wanted, self._granted)
        self._granted -= taken
        return taken
