"""Async. gRPC over HTTP/2 for a router: the server's shell around ``http2.connection``.

One object for a connection, one (``_Exchange``) for a call. The way of a unary call that has
nothing to wait for is: bytes read, message parsed, handler run by hand (``eager``), reply
written with all others of the same read. A call that waits becomes a task; then it has a timer if
it has a deadline, and it is cancelled when the client resets it, goes away, or time runs out.

Back-pressure: a handler that streams waits while the client's windows or its socket are full.
Requests are taken from the client no faster than the handler reads them, but for what two
messages and a window hold.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from cradled import errors
from cradled.http2.streams import DataReceived, Event, HeadersReceived, Stream, StreamReset
from cradled.rpc import grpc_wire
from cradled.rpc.call import Call, Peer
from cradled.rpc.eager import Starter
from cradled.rpc.grpc_connection import GrpcConnection, too_large, wake
from cradled.rpc.grpc_wire import MAX_MESSAGE, PREFIX, MessageReader, RequestHead
from cradled.rpc.service import Batch, Encoded, Endpoint, Message, Router, encode
from cradled.rpc.status import Code, to_status

if TYPE_CHECKING:
    from cradled.rpc.guard import Guard, Routes

_BACKLOG = 4096
_LAST_WORDS = 1.0  # seconds for a client to read what we said before we hung up


class GrpcServer:
    """Serves the services of a router on any number of sockets; a ``guard`` is asked first."""

    def __init__(self, router: Router, guard: Guard | None = None) -> None:
        self.router = router
        self.guard = guard
        self.stopping = False
        self.starter: Starter | None = None
        self._servers: list[asyncio.AbstractServer] = []
        self._connections: set[_ServerConnection] = set()

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    async def serve(self, sock: socket.socket) -> None:
        """Accept connections on a listening socket, from now until ``stop``."""
        loop = asyncio.get_running_loop()
        self.starter = self.starter or Starter(loop)
        make = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
        self._servers.append(await make(self._connected, sock=sock, backlog=_BACKLOG))

    async def stop(self, grace: float) -> None:
        """Take no more calls, wait up to ``grace`` seconds for those under way, cancel the rest.

        All sockets are closed and all handlers have ended when it returns.
        """
        for server in self._servers:
            server.close()
        for connection in self._connections:
            connection.drain()
        await self._all("idle", grace)
        self.stopping = True
        for connection in self._connections:
            connection.shut()
        if not await self._all("gone", _LAST_WORDS):
            for connection in self._connections:
                connection.abort()
            await self._all("gone", None)
        if self.starter is not None:
            self.starter.close()

    def _connected(self) -> _ServerConnection:
        return _ServerConnection(self, self._connections)

    async def _all(self, event: str, timeout: float | None) -> bool:
        """Wait for an event of all connections; False if that takes too long."""
        try:
            async with asyncio.timeout(timeout):
                for connection in list(self._connections):
                    await getattr(connection, event).wait()
        except TimeoutError:
            return False
        return True


class _Exchange:
    """A call that is being served."""

    __slots__ = (
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
        self.requests: _Requests | None = None  # of a client-streaming method
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.headers_sent = False
        self.expired = False
        self.over = False  # answered, or nobody listens


class _ServerConnection(GrpcConnection):
    """One client."""

    def __init__(self, server: GrpcServer, connections: set[_ServerConnection]) -> None:
        assert server.starter is not None
        super().__init__(server=True, interpret=grpc_wire.request_head)
        self._server = server
        self._connections = connections
        self._starter = server.starter
        self._router: Router | Routes = server.router
        self._peer: Peer | None = None
        self._running: set[_Exchange] = set()  # those that have become tasks
        self._shutting = False
        self._lost = False
        self.idle = asyncio.Event()  # no calls under way
        self.gone = asyncio.Event()  # no calls, and the socket is closed
        self.idle.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        sock = transport.get_extra_info("socket")
        self._peer = Peer.of(sock)
        if self._server.guard is not None:
            self._router = self._server.guard.routes(self._server.router, sock)
        self._connections.add(self)
        super().connection_made(transport)

    def handle(self, event: Event) -> None:
        if type(event) is DataReceived:
            self._received(event.stream, event.data, event.ended)
        elif type(event) is HeadersReceived:
            self._begin(event.stream, event.head, event.ended)
        elif type(event) is StreamReset:
            self._abandon(event.stream.context)

    def reader(self, stream: Stream) -> MessageReader | None:
        exchange: _Exchange | None = stream.context
        return None if exchange is None else exchange.reader

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self.http2.close()
        for stream in list(self.http2.streams.values()):
            self._abandon(stream.context)
        for exchange in list(self._running):
            self._abandon(exchange)
        self._settle()

    def drain(self) -> None:
        """Ask the client to open no more calls."""
        self.http2.drain()
        self.flush()

    def shut(self) -> None:
        """Cancel what is under way, say so, and hang up."""
        self._shutting = True
        for exchange in list(self._running):
            assert exchange.task is not None
            exchange.task.cancel()
        self._settle()

    def abort(self) -> None:
        """Hang up on a client that does not read what we say."""
        self.transport.abort()

    def _settle(self) -> None:
        if self._running:
            return
        self.idle.set()
        if self._lost:
            self._connections.discard(self)
            self.gone.set()
        elif self._shutting:
            self.http2.close()
            self.flush()
            self.transport.close()

    # A call begins

    def _begin(self, stream: Stream, head: RequestHead, ended: bool) -> None:
        if stream.reset:  # in the same breath
            return
        if head.refusal:
            self.http2.send_headers(stream, grpc_wire.refusal_block(head.refusal), end=True)
            return
        endpoint = self._router.find(head.path)
        if endpoint is None:
            self._end(stream, Code.UNIMPLEMENTED, self._router.missing(head.path))
            return
        deadline = None if head.timeout is None else self.loop.time() + head.timeout
        call = Call("grpc", head.metadata, head.binary, self._peer, deadline)
        stream.context = exchange = _Exchange(stream, head, endpoint, call)
        if endpoint.method.client_streaming:
            exchange.requests = requests = _Requests(self, stream)
            self._start(exchange, requests)
        if ended:
            self._received(stream, memoryview(b""), True)

    def _received(self, stream: Stream, data: memoryview, ended: bool) -> None:
        exchange: _Exchange | None = stream.context
        if exchange is None or exchange.over or stream.reset:
            return
        try:
            if exchange.requests is not None:
                exchange.requests.add(self._messages(exchange, data), len(data), ended)
            elif exchange.task is None:
                self._received_request(exchange, data, ended)
        except errors.Error as error:
            self._break_off(exchange, error)

    def _received_request(self, exchange: _Exchange, data: memoryview, ended: bool) -> None:
        """Data of a call that has one request, and has not had it yet."""
        if exchange.reader is None and len(data) >= PREFIX.size:
            compressed, size = PREFIX.unpack_from(data)
            if size == len(data) - PREFIX.size and not compressed and size <= MAX_MESSAGE:
                parse = exchange.endpoint.method.request.FromString
                self._start(exchange, grpc_wire.parsed(parse, data[PREFIX.size :]))
                return
        messages = self._messages(exchange, data)
        self.release(exchange.stream, len(data))
        if messages:
            self._start(exchange, messages[0])
        elif ended:
            raise errors.Internal("grpc: the call ended without a request")

    def _messages(self, exchange: _Exchange, data: memoryview) -> list[Message]:
        if exchange.reader is None:
            parse = exchange.endpoint.method.request.FromString
            exchange.reader = MessageReader(parse, exchange.head.encoding)
        return exchange.reader.feed(data)

    def _start(self, exchange: _Exchange, request: Any) -> None:
        deadline = exchange.call.deadline
        if deadline is not None and deadline <= self.loop.time():
            exchange.expired = True
            self._fail(exchange, asyncio.CancelledError())
            return
        task = self._starter.start(self._run(exchange, request))
        if task is None:
            return
        exchange.task = task
        self._running.add(exchange)
        self.idle.clear()
        if deadline is not None:
            exchange.timer = self.loop.call_at(deadline, self._expire, exchange)

    # The handler runs

    async def _run(self, exchange: _Exchange, request: Any) -> None:
        endpoint = exchange.endpoint
        try:
            if endpoint.method.server_streaming:
                await self._stream(exchange, endpoint.handler(exchange.call, request))
            else:
                self._reply(exchange, await endpoint.handler(exchange.call, request))
        except (Exception, asyncio.CancelledError) as exc:
            self._fail(exchange, exc)
        if exchange.task is not None:
            self._running.discard(exchange)
            if exchange.timer is not None:
                exchange.timer.cancel()
            exchange.task = None
            self._settle()

    def _reply(self, exchange: _Exchange, response: Message | Encoded) -> None:
        """Answer a call that has one response."""
        if exchange.over:
            return
        exchange.over = True
        body = encode(response)
        if len(body) > MAX_MESSAGE:
            exchange.over = False
            raise too_large(len(body))
        call = exchange.call
        headers, trailers = grpc_wire.RESPONSE, grpc_wire.TRAILERS_OK
        if call.initial_metadata:
            headers = grpc_wire.response_block(call.initial_metadata)
        if call.trailing_metadata:
            trailers = grpc_wire.trailers_block(0, "", call.trailing_metadata, True)
        stream = exchange.stream
        self.http2.send_reply(stream, headers, PREFIX.pack(0, len(body)), body, trailers)
        stream.context = None
        self.flush_soon()

    async def _stream(self, exchange: _Exchange, responses: Any) -> None:
        """Answer a call with a stream of responses."""
        async with aclosing(responses):
            async for response in responses:
                if exchange.over:
                    return
                self._send_headers(exchange)
                if type(response) is Batch:
                    self.send_batch(exchange.stream, response)
                else:
                    parts = response.parts if type(response) is Encoded else (encode(response),)
                    self.send_message(exchange.stream, *parts)
                await self.drained(exchange.stream)
        if not exchange.over:
            self._send_headers(exchange)
            self._finish(exchange, Code.OK, "")

    def _send_headers(self, exchange: _Exchange) -> None:
        if not exchange.headers_sent:
            exchange.headers_sent = True
            metadata = exchange.call.initial_metadata
            block = grpc_wire.response_block(metadata) if metadata else grpc_wire.RESPONSE
            self.http2.send_headers(exchange.stream, block)

    # A call ends

    def _fail(self, exchange: _Exchange, exc: BaseException) -> None:
        """The handler raised."""
        code, text = to_status(exc)
        if code == Code.CANCELLED and exchange.expired:
            code, text = Code.DEADLINE_EXCEEDED, errors.DeadlineExceeded.text
        elif code == Code.CANCELLED and self._server.stopping:
            code, text = to_status(errors.Unavailable("the server is stopping"))
        if not exchange.over:
            self._finish(exchange, code, text)

    def _finish(self, exchange: _Exchange, code: int, text: str) -> None:
        exchange.over = True
        metadata = exchange.call.trailing_metadata
        block = grpc_wire.trailers_block(code, text, metadata, exchange.headers_sent)
        self.http2.send_headers(exchange.stream, block, end=True)
        exchange.stream.context = None
        self.flush_soon()

    def _end(self, stream: Stream, code: int, text: str) -> None:
        """Refuse a call that no handler has seen."""
        block = grpc_wire.trailers_block(code, text, (), headers_sent=False)
        self.http2.send_headers(stream, block, end=True)

    def _break_off(self, exchange: _Exchange, error: errors.Error) -> None:
        """The client sent what cannot be read."""
        self._finish(exchange, *to_status(error))
        self._abandon(exchange)

    def _expire(self, exchange: _Exchange) -> None:
        exchange.expired = True
        if exchange.task is not None:
            exchange.task.cancel()

    def _abandon(self, exchange: _Exchange | None) -> None:
        """Nobody waits for the call any more."""
        if exchange is not None:
            exchange.over = True
            exchange.stream.context = None
            if exchange.task is not None:
                exchange.task.cancel()


class _Requests:
    """The requests of a client-streaming call, for its handler to iterate."""

    def __init__(self, connection: _ServerConnection, stream: Stream) -> None:
        self._connection = connection
        self._stream = stream
        self._queue: deque[Message] = deque()
        self._unreleased = 0
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None

    def add(self, messages: list[Message], size: int, ended: bool) -> None:
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
        return message

    def _release(self) -> None:
        if len(self._queue) <= 1:
            self._connection.release(self._stream, self._unreleased)
            self._unreleased = 0
