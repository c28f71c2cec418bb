"""Async. Serves a router over ttrpc on unix sockets, to processes of our own user only."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING

from cradled import errors
from cradled.aio import listening
from cradled.rpc.call import Call, Peer, split_metadata
from cradled.rpc.service import Encoded, Endpoint, Message, Router, encode, run
from cradled.rpc.status import to_status
from cradled.ttrpc import aio
from cradled.ttrpc.connection import LocalError

if TYPE_CHECKING:
    from cradled.rpc.guard import Guard, Routes

log = logging.getLogger(__name__)


class TtrpcServer:
    """The services of ``router``, on any number of listening sockets.

    A peer whose uid or gid is not ours is disconnected: the socket's mode alone would not keep
    a process out that got hold of a descriptor. A ``guard`` is asked before each call.
    """

    def __init__(self, router: Router, guard: Guard | None = None) -> None:
        self._router = router
        self._guard = guard
        self._listeners: list[asyncio.AbstractServer] = []
        self._connections: set[aio.ServerConnection] = set()
        self.stopping = False

    async def serve(self, sock: socket.socket) -> None:
        """Accept on a listening unix socket, from now until ``stop``; returns at once."""
        self._listeners.append(await listening.serve(self._accept, sock))

    async def stop(self, grace: float) -> None:
        """Stop accepting, give running calls ``grace`` seconds, then close all connections."""
        self.stopping = True
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        calls = [task for connection in self._connections for task in connection.tasks()]
        if calls and grace > 0:
            await asyncio.wait(calls, timeout=grace)
        await asyncio.gather(*(connection.aclose() for connection in list(self._connections)))

    def _accept(self) -> aio.ServerConnection:
        connection = _Connection(self, self._router, self._guard)
        connection.on_close(lambda: self._connections.discard(connection))
        self._connections.add(connection)
        return connection


class _Connection(aio.ServerConnection):
    def __init__(self, server: TtrpcServer, router: Router, guard: Guard | None) -> None:
        super().__init__(self._serve)
        self._server = server
        self._router: Router | Routes = router
        self._routes = None if guard is None else partial(guard.routes, router)
        self._peer: Peer | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        self._peer = Peer.of(sock)
        if self._server.stopping:  # it was accepted in the very last moment
            transport.abort()  # type: ignore[attr-defined]
        elif self._peer is None or self._peer[1:] != (os.getuid(), os.getgid()):
            log.warning("ttrpc: refused %s", self._peer)
            transport.abort()  # type: ignore[attr-defined]
        elif self._routes is not None:
            self._router = self._routes(sock)

    async def _serve(self, call: aio.ServerCall) -> None:
        try:
            endpoint = self._find(call)
            context = self._context(call)
            async with asyncio.timeout_at(context.deadline):
                await self._run(endpoint, context, call)
        except aio.ConnectionClosed:
            pass
        except BaseException as error:
            code, text = to_status(error)
            call.respond(code=code, message=text)
            if not isinstance(error, Exception):
                raise

    async def _run(self, endpoint: Endpoint, context: Call, call: aio.ServerCall) -> None:
        method = endpoint.method
        if not method.server_streaming:

            async def answer(message: Message | Encoded) -> None:
                await call.connection.drain()  # many that end at once go out one by one
                call.respond(encode(message))

            await run(endpoint, context, await _requests(endpoint, call), answer)
            return

        async def send(message: Message | Encoded) -> None:
            try:
                await call.send(encode(message))
            except LocalError as error:  # over the limit
                raise errors.ResourceExhausted(str(error)) from error

        await run(endpoint, context, await _requests(endpoint, call), send)
        call.end()

    def _find(self, call: aio.ServerCall) -> Endpoint:
        request = call.request
        endpoint = self._router.find(f"/{request.service}/{request.method}")
        if endpoint is not None:
            return endpoint
        known = any(service.name == request.service for service in self._router.services())
        raise errors.Unimplemented(
            f"method {request.method}" if known else f"service {request.service}"
        )

    def _context(self, call: aio.ServerCall) -> Call:
        texts, binary = split_metadata(call.request.metadata)
        timeout = call.request.timeout_nano
        deadline = asyncio.get_running_loop().time() + timeout / 1e9 if timeout else None
        return Call("ttrpc", texts, binary, self._peer, deadline)


async def _requests(endpoint: Endpoint, call: aio.ServerCall) -> Message | AsyncIterator[Message]:
    """The one message of a call, or the iterator over them where the client streams."""
    if endpoint.method.client_streaming:
        return _iterate(endpoint, call)
    payload: bytes | None = call.request.payload
    if not payload and call.request.flags:  # the one message may come in a frame of its own
        payload = await call.recv() or b""
    return _parse(endpoint, payload or b"")


async def _iterate(endpoint: Endpoint, call: aio.ServerCall) -> AsyncIterator[Message]:
    if call.request.payload:
        yield _parse(endpoint, call.request.payload)
    while (payload := await call.recv()) is not None:
        yield _parse(endpoint, payload)


def _parse(endpoint: Endpoint, payload: bytes) -> Message:
    try:
        return endpoint.method.request.FromString(payload)
    except (
        Exception
    ) as error:  # protobuf has its own DecodeError, whose home moved between versions
        raise errors.InvalidArgument(f"unmarshal request error: {error}") from error
