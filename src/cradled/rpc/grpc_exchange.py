"""Async. A call as a gRPC server keeps it while it is served."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from cradled.http2.streams import Stream
from cradled.rpc.call import Call
from cradled.rpc.grpc_connection import wake
from cradled.rpc.grpc_request import RequestHead
from cradled.rpc.grpc_wire import Account, MessageReader, parsed
from cradled.rpc.service import Endpoint, Message

_TINY = 256  # bytes; as an object such a message takes many times as much


class Exchange:
    """A call that is being served."""

    __slots__ = (
        "abandoned",
        "call",
        "endpoint",
        "expired",
        "head",
        "headers_sent",
        "over",
        "reader",
        "requests",
        "stream",
        "task",
        "timer",
    )

    def __init__(self, stream: Stream, head: RequestHead, endpoint: Endpoint, call: Call) -> None:
        self.stream = stream
        self.head = head
        self.endpoint = endpoint
        self.call = call
        self.reader: MessageReader | None = None
        self.requests: Requests | None = None  # of a client-streaming method
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.headers_sent = False
        self.expired = False
        self.abandoned = False  # cancelled while its handler was running
        self.over = False  # answered, or nobody listens

    def messages(self, data: memoryview, account: Account) -> list[Any]:
        """What data completes: messages, or what ``Requests`` takes for them."""
        if self.reader is None:
            parse = self.endpoint.method.request.FromString
            if self.requests is not None:
                parse = partial(_parsed_unless_tiny, parse)
            self.reader = MessageReader(parse, self.head.encoding, account)
        return self.reader.feed(data)

    def end(self) -> None:
        """Nothing is to come of the call any more."""
        self.over = True
        self.stream.context = None
        if self.reader is not None:
            self.reader.close()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Requests:
    """The requests of a client-streaming call, for its handler to iterate.

    ``release`` gives bytes back to the client. Tiny messages wait as bytes.
    """

    def __init__(self, endpoint: Endpoint, release: Callable[[int], None]) -> None:
        self._parse = endpoint.method.request.FromString
        self._give_back = release
        self._queue: deque[Message | bytes] = deque()
        self._unreleased = 0
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None

    def add(self, messages: list[Message | bytes], size: int, ended: bool) -> None:
        """Messages came, in ``size`` bytes of data."""
        self._queue.extend(messages)
        self._ended = ended
        self._unreleased += size
        self._release()
        if messages or ended:
            wake(self._waiter)

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        while not self._queue:
            if self._ended:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
            self._waiter = None
        message = self._queue.popleft()
        self._release()
        return parsed(self._parse, message) if type(message) is bytes else message

    def _release(self) -> None:
        if len(self._queue) <= 1:
            self._give_back(self._unreleased)
            self._unreleased = 0


def _parsed_unless_tiny(parse: Callable[[Any], Any], body: Any) -> Any:
    return bytes(body) if len(body) < _TINY else parse(body)
