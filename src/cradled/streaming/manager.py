"""Async. Named streams: a call that carries messages for another call, which knows its name.

The handler of the streaming call opens a stream and passes on what is sent; whoever has been told
the name finds it and speaks to the client. A stream lives as long as its call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

from cradled.errors import AlreadyExists, Cancelled, NotFound, quote

_WAITING = 16


class Stream:
    """One stream as the server's side uses it. Messages are opaque."""

    def __init__(self, incoming: AsyncIterator[Any]) -> None:
        self._incoming = incoming
        self._outgoing: asyncio.Queue[Any] = asyncio.Queue(_WAITING)
        self._waiters: set[asyncio.Task[Any]] = set()
        self._left = False
        self._ended = False

    async def receive(self) -> Any | None:
        """The next message, None once the client has ended its side. Raises Cancelled."""
        if self._ended:
            return None
        with self._until_left():
            message = await anext(self._incoming, None)
        self._ended = message is None
        return message

    async def send(self, message: Any) -> None:
        """Queue a message. Raises Cancelled when the client is gone."""
        with self._until_left():
            await self._outgoing.put(message)

    async def close(self) -> None:
        """End the stream, after all that was sent; one that has ended stays so."""
        with suppress(Cancelled):
            await self.send(None)

    async def sent(self) -> AsyncIterator[Any]:
        """For the handler of the call: what goes to the client, until the stream is closed."""
        while (message := await self._outgoing.get()) is not None:
            yield message

    def leave(self) -> None:
        """For the handler of the call: the client is gone, or the stream was closed."""
        self._left = True
        for task in self._waiters:
            task.cancel()

    @contextmanager
    def _until_left(self) -> Iterator[None]:
        """Waiting in here ends with Cancelled when the stream does.

        The waiting task is cancelled and, unless somebody else did that too, goes on.
        """
        if self._left:
            raise Cancelled("stream is closed")
        task = asyncio.current_task()
        assert task is not None
        self._waiters.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if self._left and not task.uncancel():
                raise Cancelled("stream is closed") from None
            raise
        finally:
            self._waiters.discard(task)


class Streams:
    """All open streams, by namespace and name."""

    def __init__(self) -> None:
        self._streams: dict[tuple[str, str], Stream] = {}

    @asynccontextmanager
    async def opened(
        self, namespace: str, name: str, incoming: AsyncIterator[Any]
    ) -> AsyncIterator[Stream]:
        """A stream, known by its name for the length of a block. Raises AlreadyExists."""
        key = (namespace, name)
        if key in self._streams:
            raise AlreadyExists(f"stream {quote(name)}")
        stream = self._streams[key] = Stream(incoming)
        try:
            yield stream
        finally:
            del self._streams[key]
            stream.leave()

    def get(self, namespace: str, name: str) -> Stream:
        """Raises NotFound."""
        try:
            return self._streams[namespace, name]
        except KeyError:
            raise NotFound(f"stream {quote(name)}") from None
