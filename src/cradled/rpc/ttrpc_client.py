"""Async. Calls over ttrpc: the transport that shims and the daemon's event socket speak."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from cradled import errors, spans
from cradled.api.pool import Method
from cradled.rpc.service import Message, encode
from cradled.rpc.status import Code, from_status
from cradled.rpc.stub import ClientStream, Metadata
from cradled.ttrpc import aio
from cradled.ttrpc.connection import LocalError
from cradled.ttrpc.envelope import Response
from cradled.ttrpc.frames import REMOTE_CLOSED, REMOTE_OPEN


class ConnectionLost(errors.Error):
    """The peer is gone; sent as UNKNOWN with the text that Go clients know."""


async def connect(address: str, *, timeout: float | None = None) -> TtrpcChannel:
    """Connect to ``unix:///path``, ``/path``, or an abstract socket's bare name.

    Raises OSError when nothing listens there, TimeoutError after ``timeout`` seconds.
    """
    return TtrpcChannel(await aio.connect(socket_path(address), timeout=timeout))


async def attach(sock: socket.socket) -> TtrpcChannel:
    """Be the client on a connected socket, which belongs to the channel from now on."""
    return TtrpcChannel(await aio.attach(sock))


def socket_path(address: str) -> str:
    """What to connect to for an address as shims give it (abstract ones start with a NUL)."""
    scheme, separator, path = address.partition("://")
    if separator:
        if scheme != "unix":
            raise errors.Unimplemented(f"address {address}")
        return path
    return address if address.startswith("/") else "\0" + address


class TtrpcChannel:
    """A connection to one ttrpc server."""

    def __init__(self, client: aio.Client) -> None:
        self._client = client

    @property
    def is_closed(self) -> bool:
        return self._client.is_closed

    def on_close(self, callback: Callable[[], object]) -> None:
        """Call back, on the loop, once the connection has ended (soon if it has already)."""
        self._client.on_close(callback)

    async def call(
        self,
        method: Method,
        request: Message,
        /,
        *,
        metadata: Metadata = (),
        timeout: float | None = None,
    ) -> Message:
        """Make a unary call; raises ``errors.Error``, ``ConnectionLost`` when the peer is gone."""
        try:
            response = await self._client.call(
                _service(method),
                method.name,
                encode(request),
                metadata=(*metadata, *spans.outgoing()),
                timeout=timeout,
            )
        except aio.ConnectionClosed as error:
            raise ConnectionLost(str(error)) from error
        except TimeoutError as error:
            raise errors.DeadlineExceeded from error
        except LocalError as error:
            raise errors.ResourceExhausted(str(error)) from error
        return _message(method, response)

    def open(
        self, method: Method, /, *, metadata: Metadata = (), timeout: float | None = None
    ) -> ClientStream:
        return _Stream(self._client, method, (*metadata, *spans.outgoing()), timeout)

    async def aclose(self) -> None:
        await self._client.aclose()


class _Stream(ClientStream):
    """A call that starts with its first message, for ttrpc sends that one with the request."""

    def __init__(
        self, client: aio.Client, method: Method, metadata: Metadata, timeout: float | None
    ) -> None:
        self._client = client
        self._method = method
        self._metadata = metadata
        self._timeout = timeout
        self._deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        self._finished = False
        self._stream = self._begin(b"", REMOTE_OPEN) if method.client_streaming else None

    async def send(self, message: Message) -> None:
        if self._stream is None:
            flags = REMOTE_CLOSED if self._method.server_streaming else 0
            self._stream = self._begin(encode(message), flags)
            return
        try:
            await self._stream.send(encode(message))
        except aio.ConnectionClosed as error:
            raise ConnectionLost(str(error)) from error
        except LocalError as error:
            raise errors.ResourceExhausted(str(error)) from error

    async def done(self) -> None:
        if self._stream is not None:
            self._stream.end()

    async def recv(self) -> Message | None:
        if self._stream is None:
            raise errors.FailedPrecondition("no request was sent")
        if self._finished:
            return None
        try:
            async with asyncio.timeout_at(self._deadline):
                payload = await self._stream.recv()
        except aio.ConnectionClosed as error:
            raise ConnectionLost(str(error)) from error
        except TimeoutError as error:
            raise errors.DeadlineExceeded from error
        if payload is not None:
            return _parse(self._method, payload)
        return self._end(self._stream.answer)

    def cancel(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def _begin(self, payload: bytes, flags: int) -> aio.ClientStream:
        try:
            return self._client.open(
                _service(self._method),
                self._method.name,
                payload,
                flags=flags,
                metadata=self._metadata,
                timeout=self._timeout,
            )
        except aio.ConnectionClosed as error:
            raise ConnectionLost(str(error)) from error
        except LocalError as error:
            raise errors.ResourceExhausted(str(error)) from error

    def _end(self, answer: Response | None) -> Message | None:
        """The last message, where the end came with one."""
        self.cancel()
        if answer is None:
            self._finished = True
            return None
        message = _message(self._method, answer)
        self._finished = True
        if self._method.server_streaming and not answer.payload:
            return None
        return message


def _service(method: Method) -> str:
    return method.path[1:].rpartition("/")[0]


def _message(method: Method, response: Response) -> Message:
    if response.code != Code.OK:
        raise from_status(response.code, response.message)
    return _parse(method, response.payload)


def _parse(method: Method, payload: bytes) -> Message:
    try:
        return method.response.FromString(payload)
    except (
        Exception
    ) as error:  # protobuf has its own DecodeError, whose home moved between versions
        raise errors.Internal(f"bad response of {method.path}: {error}") from error
