"""Async. gRPC over HTTP/2 to one server: the client's shell around ``http2.connection``.

All calls of a channel share one connection. When the server closes it or asks to go away, the
calls it will still answer go on, and the next call makes a new connection; a call that was lost
raises Unavailable and is not repeated.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self, cast

from cradled import errors, spans
from cradled.api.pool import Method
from cradled.http2.frames import ErrorCode
from cradled.http2.hpack import Field
from cradled.http2.streams import (
    DataReceived,
    Event,
    GoneAway,
    HeadersReceived,
    Stream,
    StreamReset,
)
from cradled.rpc import grpc_wire
from cradled.rpc.grpc_connection import GrpcConnection, wake
from cradled.rpc.grpc_wire import MessageReader, ResponseHead
from cradled.rpc.service import Message, parts_of
from cradled.rpc.status import Code, from_status
from cradled.rpc.stub import ClientStream, Metadata

_REMEMBERED = 256  # heads
_REASON = 200  # characters of what a server says when it hangs up
_UNIQUE = frozenset({"traceparent", "tracestate", "baggage"})  # metadata that no two calls share


async def connect(address: str) -> GrpcChannel:
    """A channel to the server at a unix socket's path, with or without ``unix://``.

    Raises Unavailable when nobody listens there.
    """
    channel = GrpcChannel(address.removeprefix("unix://"))
    await channel.connected()
    return channel


async def attach(sock: socket.socket) -> GrpcChannel:
    """Be the client on a connected socket, which belongs to the channel from now on.

    Returns once the server has said that it speaks HTTP/2; raises Unavailable when it hangs up
    instead. A channel whose connection is lost stays so.
    """
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    _, connection = await loop.create_connection(ClientConnection, sock=sock)
    channel = GrpcChannel("", connection)
    try:
        await connection.greeted()
    except BaseException:
        await channel.aclose()
        raise
    return channel


class GrpcChannel:
    """A transport to the server at an address; close it, or use it as a context manager.

    Without a ``path`` it is as good as the ``connection`` that it is given.
    """

    def __init__(self, path: str, connection: ClientConnection | None = None) -> None:
        self._path = path
        self._connection = connection
        self._connecting = asyncio.Lock()
        self._closed = False
        self._heads: dict[tuple[str, Metadata], tuple[Field, ...]] = {}

    async def call(
        self,
        method: Method,
        request: Message,
        /,
        *,
        metadata: Metadata = (),
        timeout: float | None = None,
    ) -> Message:
        stream = self.open(method, metadata=metadata, timeout=timeout)
        try:
            await stream.send_only(request)
            response = await stream.recv()
            if response is None or await stream.recv() is not None:
                raise errors.Internal(f"{method.path} did not answer with one message")
            return response
        finally:
            stream.cancel()

    def open(
        self, method: Method, /, *, metadata: Metadata = (), timeout: float | None = None
    ) -> GrpcStream:
        return GrpcStream(self, method, (*metadata, *spans.outgoing()), timeout)

    @property
    def is_closed(self) -> bool:
        """Whether there is no connection now."""
        return self._connection is None or self._connection.lost.done()

    def on_close(self, callback: Callable[[], object]) -> None:
        """Call back, on the loop, once the connection there is now has ended."""
        if self._connection is not None:
            self._connection.lost.add_done_callback(lambda _: callback())

    async def aclose(self) -> None:
        """Cancel the calls under way and hang up."""
        self._closed = True
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
            await connection.lost

    def drop(self, reason: str) -> None:
        """Give the connection up, the calls under way with it: they raise Unavailable. The next
        call makes a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort(reason)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def ready(self) -> ClientConnection | None:
        """A connection that takes a call now."""
        connection = self._connection
        return connection if connection is not None and connection.http2.can_open else None

    async def connected(self) -> ClientConnection:
        """A connection that took a call when it was asked; raises Unavailable."""
        while (connection := self.ready()) is None:
            if self._closed:
                raise errors.Cancelled("the channel is closed")
            if self._connection is not None and self._connection.http2.usable:
                await self._connection.room()
            else:
                async with self._connecting:
                    await self._connect()
        return connection

    def head(self, path: str, metadata: Metadata) -> tuple[Field, ...]:
        """The fields of a request's head that others of this channel are likely to share."""
        key = (path, tuple(metadata))
        head = self._heads.get(key)
        if head is None:
            if len(self._heads) >= _REMEMBERED:
                self._heads.clear()
            shared = [pair for pair in metadata if pair[0] not in _UNIQUE]
            self._heads[key] = head = (*grpc_wire.request_fields(path, "localhost", shared),)
        return head

    async def _connect(self) -> None:
        if self._connection is not None:
            if self._connection.http2.usable:
                return  # somebody else was faster
            self._connection.retire()
        if not self._path:
            raise errors.Unavailable("the connection was lost")
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_unix_connection(ClientConnection, self._path)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise errors.Unavailable(f"dial unix {self._path}: {reason}") from error
        self._connection = connection
        if self._closed:
            await self.aclose()


class GrpcStream(ClientStream):
    """A call over a channel. It reaches the server with the first ``send`` or ``done``."""

    def __init__(
        self, channel: GrpcChannel, method: Method, metadata: Metadata, timeout: float | None
    ) -> None:
        self.initial_metadata: dict[str, str] = {}
        self.trailing_metadata: dict[str, str] = {}
        self.trailing_binary: dict[str, bytes] = {}
        self._channel = channel
        self._method = method
        self._metadata = metadata
        self._loop = asyncio.get_running_loop()
        self._deadline = None if timeout is None else self._loop.time() + timeout
        self._timer: asyncio.TimerHandle | None = None
        if self._deadline is not None:
            self._timer = self._loop.call_at(self._deadline, self._expire)
        self._connection: ClientConnection | None = None
        self._stream: Stream | None = None
        self.reader: MessageReader | None = None
        self._messages: deque[Message] = deque()
        self._unreleased = 0
        self._ended = False
        self._error: errors.Error | None = None
        self._waiter: asyncio.Future[None] | None = None  # of recv
        self._connecting: asyncio.Task[ClientConnection] | None = None

    async def send(self, message: Message) -> None:
        await self._send(message, end=False)

    async def send_only(self, message: Message) -> None:
        """Send the one request there is: ``send`` and ``done`` in one frame."""
        await self._send(message, end=True)

    async def done(self) -> None:
        stream = self._stream or await self._open()
        if self._connection is not None and not stream.ending:
            self._connection.http2.send_data(stream, b"", True)
            self._connection.flush_soon()

    async def recv(self) -> Message | None:
        if self._stream is None and not self._ended:
            await self._open()
        while not self._messages:
            self._raise_error()
            if self._ended:
                return None
            self._waiter = self._loop.create_future()
            await self._waiter
            self._waiter = None
        message = self._messages.popleft()
        self._release()
        return message

    def cancel(self) -> None:
        self._give_up(errors.Cancelled())

    async def _send(self, message: Message, end: bool) -> None:
        stream = self._stream or await self._open()
        self._raise_error()
        if stream.ending:
            raise errors.FailedPrecondition("the call takes no more requests")
        connection = cast("ClientConnection", self._connection)
        connection.send_message(stream, *parts_of(message), end=end)
        await connection.drained(stream)
        self._raise_error()

    async def _open(self) -> Stream:
        """Begin the call, as soon as there is a connection for it."""
        while (connection := self._channel.ready()) is None and not self._ended:
            if self._connecting is None:
                self._connecting = self._loop.create_task(self._channel.connected())
            await asyncio.wait((self._connecting,))  # there may be others who wait for it
            if self._connecting is not None and not self._ended:
                self._connecting.result()
            self._connecting = None
        self._raise_error()
        if self._stream is None and connection is not None:
            self._connection = connection
            self._stream = connection.open(self._head(connection), self)
        assert self._stream is not None
        return self._stream

    def _head(self, connection: ClientConnection) -> bytes:
        block = connection.http2.encode(self._channel.head(self._method.path, self._metadata))
        unique = [pair for pair in self._metadata if pair[0] in _UNIQUE]
        left = None if self._deadline is None else self._deadline - self._loop.time()
        return block + grpc_wire.unique_block(unique, left) if unique or left is not None else block

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    # What the connection tells

    def head_received(self, head: ResponseHead, ended: bool) -> None:
        """Headers or trailers came."""
        if head.http_status[:1] == "1":
            return
        if self.reader is None and not ended and head.code is None:
            self.initial_metadata = head.metadata
            self.reader = MessageReader(self._method.response.FromString, head.encoding)
            return
        self.trailing_metadata, self.trailing_binary = head.metadata, head.binary
        if head.code is None:
            self._give_up(errors.Internal("server closed the stream without sending trailers"))
        elif head.code == Code.OK:
            self._end(None)
        else:
            self._end(from_status(head.code, head.text, head.details))

    def data_received(self, data: memoryview, ended: bool) -> None:
        """Data came."""
        try:
            if self.reader is None:
                raise errors.Internal("data before headers")
            self._messages.extend(self.reader.feed(data))
            self._unreleased += len(data)
        except errors.Error as error:
            self._give_up(error)
            return
        if ended:
            self._give_up(errors.Internal("server closed the stream without sending trailers"))
        self._release()
        if self._messages:
            wake(self._waiter)

    def broken(self, error: errors.Error) -> None:
        """The stream was reset, or the connection is lost."""
        self._end(error)

    # The end

    def _expire(self) -> None:
        self._give_up(errors.DeadlineExceeded())

    def _give_up(self, error: errors.Error) -> None:
        if not self._ended:
            self._messages.clear()
            self._end(error)

    def _end(self, error: errors.Error | None) -> None:
        if self._ended:
            return
        self._ended = True
        self._error = error
        if self._timer is not None:
            self._timer.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._stream is not None and self._connection is not None:
            self._stream.context = None
            self._connection.reset(self._stream)  # unless both sides have ended it
        wake(self._waiter)

    def _release(self) -> None:
        if len(self._messages) <= 1 and self._connection is not None and self._stream is not None:
            self._connection.release(self._stream, self._unreleased)
            self._unreleased = 0


class ClientConnection(GrpcConnection):
    """One connection; the ``context`` of its streams are the calls."""

    def __init__(self) -> None:
        super().__init__(server=False, interpret=ResponseHead)
        self.lost: asyncio.Future[None] = self.loop.create_future()
        self._retired = False
        self.lost_text = "the connection was lost"
        self._waiting: deque[asyncio.Future[None]] = deque()  # for a stream to end
        self._greeting: asyncio.Future[None] | None = None

    def handle(self, event: Event) -> None:
        if type(event) is GoneAway:
            self._retired = True  # Go's server waits for us to hang up
            if event.code:
                reason = event.text[:_REASON] or f"error code {event.code}"
                self.lost_text = f"the connection was lost: {reason}"
            self._admit(len(self._waiting))
            return
        call: GrpcStream | None = event.stream.context  # type: ignore[union-attr]
        if call is None:
            return
        if type(event) is DataReceived:
            call.data_received(event.data, event.ended)
        elif type(event) is HeadersReceived:
            call.head_received(event.head, event.ended)
        elif type(event) is StreamReset:
            call.broken(_reset_error(event.code))

    def reader(self, stream: Stream) -> MessageReader | None:
        call: GrpcStream | None = stream.context
        return None if call is None else call.reader

    def handled(self) -> None:
        """Streams may have ended: see to what that makes possible."""
        if self._waiting:
            self._admit(self.http2.max_streams - len(self.http2.streams))
        if self._greeting is not None and self.http2.settled:
            wake(self._greeting)
        if self._retired and not self.http2.streams:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for stream in list(self.http2.streams.values()):
            if stream.context is not None:
                stream.context.broken(errors.Unavailable(self.lost_text))
        self._admit(len(self._waiting))
        wake(self._greeting)
        self.lost.set_result(None)

    async def greeted(self) -> None:
        """Wait for the server's first words. Raises Unavailable when it hangs up."""
        if not (self.http2.settled or self.lost.done()):
            self._greeting = self.loop.create_future()
            await self._greeting
            self._greeting = None
        if not self.http2.settled:
            raise errors.Unavailable(self.lost_text)

    def open(self, block: bytes, call: GrpcStream) -> Stream:
        """Begin a stream."""
        stream = self.http2.open(block)
        stream.context = call
        self.flush_soon()
        return stream

    def reset(self, stream: Stream) -> None:
        """Tell the server that nobody waits for a call any more."""
        self.http2.reset(stream, ErrorCode.CANCEL)
        if self.http2.outbox:
            self.flush_soon()
        self.handled()

    async def room(self) -> None:
        """Wait until a stream has ended, or the connection."""
        waiter = self.loop.create_future()
        self._waiting.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            self.handled()  # it may have been this one's turn
            raise

    def retire(self) -> None:
        """Hang up when the calls under way have ended."""
        self._retired = True
        self.handled()

    def close(self) -> None:
        """Hang up."""
        self.http2.close()
        self.flush()
        self.transport.close()

    def abort(self, reason: str) -> None:
        """Hang up without a word, for a reason that those who wait are told."""
        self.lost_text = reason
        self.transport.abort()

    def _admit(self, count: int) -> None:
        while count > 0 and self._waiting:
            wake(self._waiting.popleft())
            count -= 1


def _reset_error(code: int) -> errors.Error:
    """The error of a stream that the server reset."""
    if code == ErrorCode.REFUSED_STREAM:
        return errors.Unavailable("the server takes no new calls")
    if code == ErrorCode.CANCEL:
        return errors.Cancelled()
    if code == ErrorCode.ENHANCE_YOUR_CALM:
        return errors.ResourceExhausted("stream reset by the server")
    return errors.Internal(f"stream reset by the server, error code {code}")
