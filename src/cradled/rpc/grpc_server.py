"""Async. gRPC over HTTP/2 for a router: the server's shell around ``http2.connection``.

One object for a connection, one (``Exchange``) for a call. The way of a unary call that has
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
import time
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from cradled import errors
from cradled.aio import listening
from cradled.http2.frames import ErrorCode
from cradled.http2.streams import DataReceived, Event, HeadersReceived, Stream, StreamReset
from cradled.rpc import grpc_request, grpc_wire
from cradled.rpc.call import Call, Peer
from cradled.rpc.eager import Starter
from cradled.rpc.grpc_connection import BUSY, LAST_WORDS, GrpcConnection, too_large
from cradled.rpc.grpc_exchange import Exchange, Requests
from cradled.rpc.grpc_request import RequestHead
from cradled.rpc.grpc_wire import MAX_MESSAGE, PREFIX, MessageReader
from cradled.rpc.service import Batch, Encoded, Message, Router, encode, parts_of
from cradled.rpc.status import Code, packed, to_status

if TYPE_CHECKING:
    from ssl import SSLContext

    from cradled.rpc.guard import Guard, Routes

_HANDSHAKE = 10.0  # seconds for a client to agree on how to speak TLS
_HEARING = 0.01  # seconds for clients to hear it, of those that answer at once
_LAST_CALL = 1.0  # seconds for a client to hear that we are about to stop
_PREFACE = 20.0  # seconds for a client to say that it speaks HTTP/2
_ABANDONED = 1024  # handlers of calls that a client gave up; beyond, it has to wait for them
_UNREAD = 256 << 20  # bytes of responses that wait for a client to read them


class Limits(NamedTuple):
    """The largest message either way, in bytes."""

    receive: int = MAX_MESSAGE
    send: int = MAX_MESSAGE


_LIMITS = Limits()


class Tls(NamedTuple):
    """What a listener asks of clients; ``client`` is the common name that their certificates must
    have, empty for any."""

    context: SSLContext
    client: str = ""


class GrpcServer:
    """Serves the services of a router on any number of sockets; a ``guard`` is asked first."""

    def __init__(
        self, router: Router, guard: Guard | None = None, limits: Limits = _LIMITS
    ) -> None:
        self.router = router
        self.guard = guard
        self.limits = limits
        self.refusing = False
        self.stopping = False
        self.starter: Starter | None = None
        self._servers: list[asyncio.AbstractServer] = []
        self._connections: set[_ServerConnection] = set()

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    async def serve(self, sock: socket.socket, tls: Tls | None = None) -> None:
        """Accept connections on a listening socket, from now until ``stop``; with ``tls`` only
        those that speak it."""
        loop = asyncio.get_running_loop()
        self.starter = self.starter or Starter(loop)
        secure: dict[str, Any] = {}
        if tls is not None:
            secure = {"ssl": tls.context, "ssl_handshake_timeout": _HANDSHAKE}
        connected = partial(_ServerConnection, self, self._connections, tls)
        self._servers.append(await listening.serve(connected, sock, **secure))

    async def settle(self, grace: float) -> None:
        """Take no more calls, and wait until those under way have had ``grace`` seconds since they
        began. ``stop`` is to follow; until then answers are still sent."""
        self._refuse()
        await self._all("idle", _HEARING)
        begun = time.monotonic_ns() - int(grace * 1e9)
        recent = [task for one in self._connections for task in one.begun_since(begun)]
        if recent:
            await asyncio.wait(recent, timeout=grace)

    async def stop(self, grace: float, last_words: float = LAST_WORDS) -> None:
        """Take no more calls, wait up to ``grace`` seconds for those under way, cancel the rest.

        Clients get ``last_words`` seconds to read what they are told. All sockets are closed and
        all handlers have ended when it returns.
        """
        self._refuse()
        await self._all("idle", grace)
        self.stopping = True
        for connection in self._connections:
            connection.shut()
        if not await self._all("gone", last_words):
            for connection in self._connections:
                connection.abort()
            await self._all("gone", None)
        if self.starter is not None:
            self.starter.close()

    def _refuse(self) -> None:
        self.refusing = True
        for server in self._servers:
            server.close()
        self._servers.clear()
        for connection in self._connections:
            connection.drain()

    async def _all(self, event: str, timeout: float | None) -> bool:
        """Wait for an event of all connections; False if that takes too long."""
        try:
            async with asyncio.timeout(timeout):
                for connection in list(self._connections):
                    await getattr(connection, event).wait()
        except TimeoutError:
            return False
        return True


class _ServerConnection(GrpcConnection):
    """One client."""

    def __init__(
        self, server: GrpcServer, connections: set[_ServerConnection], tls: Tls | None
    ) -> None:
        assert server.starter is not None
        super().__init__(server=True, interpret=grpc_request.request_head)
        self._server = server
        self.account.limit, self.max_send = server.limits
        self._connections = connections
        self._tls = tls
        self._starter = server.starter
        self._router: Router | Routes = server.router
        self._peer: Peer | None = None
        self._running: set[Exchange] = set()  # those that have become tasks
        self._waiting: list[Exchange] = []  # with a deadline, but without a request so far
        self._abandoned = 0  # of those running
        self._timers: list[asyncio.TimerHandle] = []
        self._draining = False
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
        self._timers = [self.loop.call_later(_PREFACE, self._expect)]
        super().connection_made(transport)
        if self._tls is not None and not _is_named(transport, self._tls.client):
            self.abort()
        elif self._server.refusing:  # it was accepted in the very last moment
            self.drain()
            if self._server.stopping:
                self.shut()

    def handle(self, event: Event) -> None:
        if type(event) is DataReceived:
            self._received(event.stream, event.data, event.ended)
        elif type(event) is HeadersReceived:
            self._begin(event.stream, event.head, event.ended)
        elif type(event) is StreamReset:
            self._abandon(event.stream.context)

    def handled(self) -> None:
        """A call whose request has not come yet can run out of time too."""
        if self.http2.closed:
            self._abandon_all()
        if self._draining:
            self._settle()
        if not self._waiting:
            return
        for exchange in self._waiting:
            if exchange.task is None and not exchange.over:
                assert exchange.call.deadline is not None
                deadline = exchange.call.deadline
                exchange.timer = self.loop.call_at(deadline, self._expire, exchange)
        self._waiting.clear()

    def _expect(self) -> None:
        if not self.http2.settled:
            self.abort()

    def reader(self, stream: Stream) -> MessageReader | None:
        exchange: Exchange | None = stream.context
        return None if exchange is None else exchange.reader

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        super().connection_lost(exc)
        for timer in self._timers:
            timer.cancel()
        self._abandon_all()
        self._settle()

    def drain(self) -> None:
        """Ask the client to open no more calls; it is idle when those it has opened have ended."""
        self._draining = True
        self.http2.drain()
        self.flush()
        self._timers.append(self.loop.call_later(_LAST_CALL, self._refuse_more))
        self._settle()

    def begun_since(self, moment: int) -> list[asyncio.Task[None]]:
        """The calls that began after ``moment`` (of ``time.monotonic_ns``) and are under way."""
        running = [one for one in self._running if getattr(one.call, "start", moment) >= moment]
        return [one.task for one in running if one.task is not None]

    def _refuse_more(self) -> None:
        self.http2.refuse()
        self.flush()
        self._settle()

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

    def _abandon_all(self) -> None:
        for stream in list(self.http2.streams.values()):
            self._abandon(stream.context)
        for exchange in list(self._running):
            self._abandon(exchange)

    def _settle(self) -> None:
        if self._running:
            return
        ended = self.http2.refusing and not self.http2.streams
        if ended or self._lost or self._shutting or not self._draining:
            self.idle.set()
        else:
            self.idle.clear()
        if self._lost:
            self._connections.discard(self)
            self.gone.set()
        elif self._shutting:
            self.http2.close()
            self.flush()
            self.hang_up()

    # A call begins

    def _begin(self, stream: Stream, head: RequestHead, ended: bool) -> None:
        if stream.reset:  # in the same breath
            return
        if not head.served:
            self._refuse(stream, head)
            return
        endpoint = self._router.find(head.path)
        if endpoint is None:
            text = self._router.missing(head.path)
            block = grpc_wire.response_block((), head.content_type)
            block += grpc_wire.trailers_block(Code.UNIMPLEMENTED, text, (), headers_sent=True)
            self.http2.send_headers(stream, block, end=True)
            return
        deadline = None if head.timeout is None else self.loop.time() + head.timeout
        call = Call("grpc", head.metadata, head.binary, self._peer, deadline)
        stream.context = exchange = Exchange(stream, head, endpoint, call)
        if endpoint.method.client_streaming:
            release = partial(self.release, stream)
            exchange.requests = requests = Requests(endpoint, release)
            self._start(exchange, requests)
        elif deadline is not None:
            self._waiting.append(exchange)
        if ended:
            self._received(stream, memoryview(b""), True)

    def _refuse(self, stream: Stream, head: RequestHead) -> None:
        if head.refusal:
            self.http2.send_headers(stream, head.refusal, end=True)
        else:
            self.http2.reject(stream, ErrorCode.PROTOCOL_ERROR)

    def _received(self, stream: Stream, data: memoryview, ended: bool) -> None:
        exchange: Exchange | None = stream.context
        if exchange is None or exchange.over or stream.reset:
            return
        try:
            if exchange.requests is not None:
                exchange.requests.add(exchange.messages(data, self.account), len(data), ended)
            elif exchange.task is None:
                self._received_request(exchange, data, ended)
        except errors.Error as error:
            self._break_off(exchange, error)

    def _received_request(self, exchange: Exchange, data: memoryview, ended: bool) -> None:
        """Data of a call that has one request, and has not had it yet."""
        if exchange.reader is None and len(data) >= PREFIX.size:
            compressed, size = PREFIX.unpack_from(data)
            if size == len(data) - PREFIX.size and not compressed and size <= self.account.limit:
                parse = exchange.endpoint.method.request.FromString
                self._start(exchange, grpc_wire.parsed(parse, data[PREFIX.size :]))
                return
        messages = exchange.messages(data, self.account)
        self.release(exchange.stream, len(data))
        if messages:
            self._start(exchange, messages[0])
        elif ended:
            raise errors.Internal("grpc: the call ended without a request", verbatim=True)

    def _start(self, exchange: Exchange, request: Any) -> None:
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
        if deadline is not None and exchange.timer is None:
            exchange.timer = self.loop.call_at(deadline, self._expire, exchange)

    # The handler runs

    async def _run(self, exchange: Exchange, request: Any) -> None:
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
            exchange.task = None
            if exchange.abandoned:
                self._abandoned -= 1
                if self._abandoned <= _ABANDONED // 2:
                    self.unhold(BUSY)
            self._settle()

    def _reply(self, exchange: Exchange, response: Message | Encoded) -> None:
        """Answer a call that has one response."""
        if exchange.over:
            return
        body = encode(response)
        if len(body) + self.http2.outbox.queued > self.max_send:
            self._check_room(len(body))
        call = exchange.call
        headers, trailers = grpc_wire.RESPONSE, grpc_wire.TRAILERS_OK
        if call.initial_metadata or exchange.head.content_type:
            headers = self._response(exchange)
        if call.trailing_metadata:
            trailers = grpc_wire.trailers_block(0, "", call.trailing_metadata, headers_sent=True)
        prefix = PREFIX.pack(0, len(body))
        self.http2.send_reply(exchange.stream, headers, prefix, body, trailers)
        exchange.end()
        self.flush_soon()

    def _check_room(self, size: int) -> None:
        """A response that big can be sent, now or when the client reads; else raises."""
        if size > self.max_send:
            raise too_large(size, self.max_send)
        if self.http2.outbox.queued + size > _UNREAD:
            text = "grpc: too many responses wait to be read on this connection"
            raise errors.ResourceExhausted(text, verbatim=True)

    def _response(self, exchange: Exchange) -> bytes:
        """The header block of a response."""
        return grpc_wire.response_block(exchange.call.initial_metadata, exchange.head.content_type)

    async def _stream(self, exchange: Exchange, responses: Any) -> None:
        """Answer a call with a stream of responses."""
        async with aclosing(responses):
            async for response in responses:
                if exchange.over:
                    return
                self._send_headers(exchange)
                if type(response) is Batch:
                    self.send_batch(exchange.stream, response)
                else:
                    parts = parts_of(response)
                    self._check_room(sum(map(len, parts)))
                    self.send_message(exchange.stream, *parts)
                await self.drained(exchange.stream)
        if not exchange.over:
            self._send_headers(exchange)
            self._finish(exchange, Code.OK, "")

    def _send_headers(self, exchange: Exchange) -> None:
        if not exchange.headers_sent:
            exchange.headers_sent = True
            self.http2.send_headers(exchange.stream, self._response(exchange))

    # A call ends

    def _fail(self, exchange: Exchange, exc: BaseException) -> None:
        """The handler raised."""
        code, text = to_status(exc)
        if code == Code.CANCELLED and exchange.expired:
            code, text = Code.DEADLINE_EXCEEDED, errors.DeadlineExceeded.text
        elif code == Code.CANCELLED and self._server.stopping:
            code, text = to_status(errors.Unavailable("the server is stopping"))
        if not exchange.over:
            self._finish(exchange, code, text, packed(exc))

    def _finish(self, exchange: Exchange, code: int, text: str, details: bytes = b"") -> None:
        metadata = exchange.call.trailing_metadata
        text, details = grpc_wire.fitted(text, details, self.http2.peer_headers_limit)
        block = grpc_wire.trailers_block(code, text, metadata, True, details)
        if not exchange.headers_sent:
            block = self._response(exchange) + block
        self.http2.send_headers(exchange.stream, block, end=True)
        exchange.end()
        self.flush_soon()

    def _break_off(self, exchange: Exchange, error: errors.Error) -> None:
        """The client sent what cannot be read."""
        self._finish(exchange, *to_status(error))
        self._abandon(exchange)

    def _expire(self, exchange: Exchange) -> None:
        exchange.expired = True
        if exchange.task is not None:
            exchange.task.cancel()
        elif not exchange.over:
            self._fail(exchange, asyncio.CancelledError())

    def _abandon(self, exchange: Exchange | None) -> None:
        """Nobody waits for the call any more."""
        if exchange is None:
            return
        exchange.end()
        if exchange.task is not None and not exchange.abandoned:
            exchange.task.cancel()
            exchange.abandoned = True
            self._abandoned += 1
            if self._abandoned > _ABANDONED:
                self.hold(BUSY)


def _is_named(transport: asyncio.BaseTransport, name: str) -> bool:
    """Whether the peer's certificate has a common name; any peer has the empty one."""
    certificate = transport.get_extra_info("peercert") or {}
    fields = [field for part in certificate.get("subject", ()) for field in part]
    return not name or ("commonName", name) in fields
