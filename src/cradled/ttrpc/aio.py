"""Async. ttrpc over asyncio: a client, and the server side of one connection.

Payloads are bytes here; messages, services and errors belong to ``cradled.rpc``. Writing is
bounded by the transport's high-water mark: ``send`` and ``call`` wait, and a server does not read
from a client that does not read its replies (a client always reads, or both would wait for each
other). Streamed messages that nobody takes stop the reading as well.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

from cradled.ttrpc.connection import (
    CLIENT,
    OK,
    SERVER,
    Connection,
    DataReceived,
    RequestReceived,
    ResponseReceived,
    StreamAborted,
)
from cradled.ttrpc.envelope import Response
from cradled.ttrpc.frames import REMOTE_OPEN

# Bytes of streamed messages that may wait to be taken before reading stops.
_HIGH_WATER = 1 << 20
_OVERHEAD = 64  # of each of them: empty ones count too


class ConnectionClosed(Exception):
    """The connection ended before the call did."""

    def __init__(self, text: str = "ttrpc: closed") -> None:
        super().__init__(text)


class _Shell(asyncio.Protocol):
    """What both roles share: flushing what the core has queued, and back pressure."""

    def __init__(self, role: int) -> None:
        self.core = Connection(role)
        self._serving = role == SERVER
        self.transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._closed = self._loop.create_future()
        self._writable = asyncio.Event()
        self._writable.set()
        self._receiving = False
        self._paused = False
        self._queued = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio's.
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self._writable.set()
        if not self._closed.done():
            self._closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._receiving = True
        try:
            for event in self.core.receive_data(data):
                self.handle(event)
        finally:
            self._receiving = False
        self.flush()
        if self.core.derailed and self.transport is not None:
            self.transport.abort()

    def handle(self, event: Any) -> None:
        raise NotImplementedError

    def flush(self) -> None:
        """Write what is queued; while a read is handled, once at its end."""
        if self.transport is not None and not self._receiving:
            data = self.core.data_to_send()
            if data:
                self.transport.write(data)

    async def drain(self) -> None:
        """Wait until the peer has read enough of what was written. Raises ConnectionClosed."""
        while not self._writable.is_set():  # it may be full again when it is our turn
            await self._writable.wait()
        if self.transport is None:
            raise ConnectionClosed

    def pause_writing(self) -> None:
        self._writable.clear()
        self._pace()

    def resume_writing(self) -> None:
        self._writable.set()
        self._pace()

    def queued(self, messages: int, size: int) -> None:
        """Count messages and their bytes that wait to be taken (negative: were taken)."""
        self._queued += size + _OVERHEAD * messages
        self._pace()

    def _pace(self) -> None:
        pause = self._queued > _HIGH_WATER or (self._serving and not self._writable.is_set())
        if self.transport is None or self.transport.is_closing() or pause == self._paused:
            return
        self._paused = pause
        if pause:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    @property
    def is_closed(self) -> bool:
        return self.transport is None

    def on_close(self, callback: Callable[[], object]) -> None:
        """Call back, on the loop, once the connection has ended (at once if it has)."""
        self._closed.add_done_callback(lambda _: callback())

    async def aclose(self) -> None:
        """Close; what was written but not yet read by the peer may be lost."""
        if self.transport is not None:
            self.transport.abort()
        await asyncio.shield(self._closed)


class _Inbox:
    """Messages of one stream that wait to be taken, and how it ended."""

    def __init__(self, shell: _Shell) -> None:
        self._shell = shell
        self._waiting: deque[bytes] = deque()
        self._arrived = asyncio.Event()
        self._ended = False
        self._error: Exception | None = None

    def put(self, payload: bytes) -> None:
        self._waiting.append(payload)
        self._shell.queued(1, len(payload))
        self._arrived.set()

    def end(self, error: Exception | None = None) -> None:
        self._ended = True
        self._error = self._error or error
        self._arrived.set()

    def discard(self) -> None:
        """Nobody takes what waits any more."""
        self._shell.queued(-len(self._waiting), -sum(map(len, self._waiting)))
        self._waiting.clear()

    async def get(self) -> bytes | None:
        """The next message; None at the end."""
        while not self._waiting:
            if self._ended:
                if self._error is not None:
                    raise self._error
                return None
            self._arrived.clear()
            await self._arrived.wait()
        payload = self._waiting.popleft()
        self._shell.queued(-1, -len(payload))
        return payload


class Client(_Shell):
    """The client side of a connection; calls may overlap."""

    def __init__(self) -> None:
        super().__init__(CLIENT)
        self._calls: dict[int, asyncio.Future[Response]] = {}
        self._streams: dict[int, ClientStream] = {}

    async def call(
        self,
        service: str,
        method: str,
        payload: bytes,
        *,
        metadata: Sequence[tuple[str, str]] = (),
        timeout: float | None = None,
    ) -> Response:
        """Make a unary call; the response may carry an error code.

        Raises ConnectionClosed, TimeoutError after ``timeout`` seconds, LocalError for a request
        over the limit.
        """
        async with asyncio.timeout(timeout):
            await self.drain()
            stream_id = self.core.send_request(
                service, method, payload, timeout_nano=_nanoseconds(timeout), metadata=metadata
            )
            answer: asyncio.Future[Response] = self._loop.create_future()
            self._calls[stream_id] = answer
            self.flush()
            try:
                return await answer
            finally:
                del self._calls[stream_id]
                self.core.forget(stream_id)

    def open(
        self,
        service: str,
        method: str,
        payload: bytes = b"",
        *,
        flags: int,
        metadata: Sequence[tuple[str, str]] = (),
        timeout: float | None = None,
    ) -> ClientStream:
        """Begin a call of any kind; with the flag ``REMOTE_OPEN`` messages of ours follow.

        The timeout is only told to the server. Raises ConnectionClosed, LocalError.
        """
        if self.transport is None:
            raise ConnectionClosed
        stream_id = self.core.send_request(
            service,
            method,
            payload,
            timeout_nano=_nanoseconds(timeout),
            metadata=metadata,
            flags=flags,
        )
        stream = self._streams[stream_id] = ClientStream(self, stream_id)
        self.flush()
        return stream

    def handle(self, event: ResponseReceived | DataReceived) -> None:
        answer = self._calls.get(event.stream_id)
        if answer is None:
            stream = self._streams.get(event.stream_id)
            if stream is not None:
                stream.handle(event)
        elif not answer.done():
            if isinstance(event, ResponseReceived):
                answer.set_result(Response(event.payload, event.code, event.message))
            else:
                answer.set_exception(ConnectionClosed("ttrpc: data where a response belongs"))

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(ConnectionClosed())
        for stream in self._streams.values():
            stream.inbox.end(ConnectionClosed())

    def release(self, stream_id: int) -> None:
        """Drop a stream, finished or not."""
        self.core.forget(stream_id)
        stream = self._streams.pop(stream_id, None)
        if stream is not None:
            stream.inbox.discard()
            stream.inbox.end(ConnectionClosed("ttrpc: stream closed"))


class ClientStream:
    """A call in progress: ``recv`` gives streamed messages.

    After their end, ``answer`` is the response, if the call ended with one.
    """

    def __init__(self, client: Client, stream_id: int) -> None:
        self._client = client
        self._id = stream_id
        self.inbox = _Inbox(client)
        self.answer: Response | None = None

    async def send(self, payload: bytes) -> None:
        """Send a message. Raises ConnectionClosed when the call has ended."""
        if not self._client.core.is_open(self._id):
            raise ConnectionClosed("ttrpc: stream closed")
        self._client.core.send_data(self._id, payload)
        self._client.flush()
        await self._client.drain()

    def end(self) -> None:
        """Say that we send no more."""
        if self._client.core.is_open(self._id):
            self._client.core.end_stream(self._id)
            self._client.flush()

    async def recv(self) -> bytes | None:
        """The next message, None at the end; look at ``answer`` then. Raises ConnectionClosed."""
        return await self.inbox.get()

    def close(self) -> None:
        """Drop the call, finished or not."""
        self._client.release(self._id)

    def handle(self, event: ResponseReceived | DataReceived) -> None:
        if isinstance(event, ResponseReceived):
            self.answer = Response(event.payload, event.code, event.message)
            self.inbox.end()
            return
        if event.payload is not None:
            self.inbox.put(event.payload)
        if event.end:
            self.inbox.end()


class ServerCall:
    """A peer's call, as its handler sees it. It must end it by ``respond`` or ``end``."""

    def __init__(self, shell: ServerConnection, request: RequestReceived) -> None:
        self.connection = shell
        self.request = request
        self.inbox = _Inbox(shell)
        if not request.flags & REMOTE_OPEN:
            self.inbox.end()

    async def recv(self) -> bytes | None:
        """The next message of a client that streams, None when it sends no more."""
        return await self.inbox.get()

    async def send(self, payload: bytes) -> None:
        """Stream a message. Raises ConnectionClosed."""
        self.connection.core.send_data(self.request.stream_id, payload)
        self.connection.flush()
        await self.connection.drain()

    def end(self) -> None:
        """End a call whose results are streamed."""
        if self.connection.core.is_open(self.request.stream_id):
            self.connection.core.end_stream(self.request.stream_id)
            self.connection.flush()

    def respond(self, payload: bytes = b"", *, code: int = OK, message: str = "") -> None:
        """End the call with a result or an error; nothing happens when it has ended already."""
        if self.connection.core.is_open(self.request.stream_id):
            self.connection.core.send_response(
                self.request.stream_id, payload, code=code, message=message
            )
            self.connection.flush()


Handler = Callable[[ServerCall], Coroutine[Any, Any, None]]


class ServerConnection(_Shell):
    """The server side of a connection: a task of ``handler`` for each call.

    Tasks are cancelled when the connection ends. ``handler`` must not raise.
    """

    def __init__(self, handler: Handler) -> None:
        super().__init__(SERVER)
        self._handler = handler
        self._calls: dict[int, ServerCall] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def handle(self, event: RequestReceived | DataReceived | StreamAborted) -> None:
        if isinstance(event, RequestReceived):
            self._start(event)
            return
        call = self._calls.get(event.stream_id)
        if call is None:
            return
        if isinstance(event, StreamAborted):
            self._tasks[event.stream_id].cancel()
            return
        if event.payload is not None:
            call.inbox.put(event.payload)
        if event.end:
            call.inbox.end()

    def tasks(self) -> list[asyncio.Task[None]]:
        """The handlers that run now."""
        return list(self._tasks.values())

    def _start(self, event: RequestReceived) -> None:
        call = ServerCall(self, event)
        task = self._loop.create_task(self._handler(call))
        self._calls[event.stream_id] = call
        self._tasks[event.stream_id] = task
        task.add_done_callback(lambda _: self._finished(event.stream_id))

    def _finished(self, stream_id: int) -> None:
        self._calls.pop(stream_id).inbox.discard()
        del self._tasks[stream_id]

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        for task in self._tasks.values():
            task.cancel()

    async def aclose(self) -> None:
        """Close, and wait for the handlers to end."""
        await super().aclose()
        if self._tasks:
            await asyncio.wait(self.tasks())


async def connect(path: str, *, timeout: float | None = None) -> Client:
    """Connect to a unix socket (a NUL in front: abstract). Raises OSError, TimeoutError."""
    async with asyncio.timeout(timeout):
        loop = asyncio.get_running_loop()
        _, client = await loop.create_unix_connection(Client, path)
        return client


async def attach(sock: socket.socket) -> Client:
    """Be the client on a connected socket, which is owned by the result from now on."""
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    _, client = await loop.create_connection(Client, sock=sock)
    return client


def _nanoseconds(seconds: float | None) -> int:
    return 0 if seconds is None else max(1, int(seconds * 1e9))
