"""Async. A small HTTP/1.1 responder for what operators and Prometheus read: GET and HEAD only.

Every connection has one request and is closed after the answer, or when the client closes its side:
then nobody waits for what is being made. What a client can cost is bounded:
the size of its request, the time it may take to send it and to read the answer, and how many there
may be at once; beyond that they wait in the socket's queue or are hung up on.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import NamedTuple, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from cradled.aio import listening

log = logging.getLogger(__name__)

HEAD_BYTES = 8 << 10
HEAD_SECONDS = 10.0
REPLY_SECONDS = 60.0
"""How long a client may take to read an answer."""

CONNECTIONS = 64
_PARAMETERS = 32
_TEXT = "text/plain; charset=utf-8"


class HttpError(Exception):
    """The answer is a refusal."""

    def __init__(self, status: HTTPStatus, text: str = "") -> None:
        super().__init__(text or status.phrase)
        self.status = status


class Request(NamedTuple):
    """``path`` is decoded, ``query`` has the last value of each parameter."""

    method: str
    path: str
    query: Mapping[str, str]


class Response(NamedTuple):
    body: bytes
    content_type: str = _TEXT
    status: HTTPStatus = HTTPStatus.OK


Handler = Callable[[Request], Awaitable[Response]]


def parse(head: bytes) -> Request:
    """A request without its body, up to and with the empty line. Raises HttpError."""
    line, _, fields = head.partition(b"\n")
    try:
        words = line.rstrip(b"\r").decode("ascii").split(" ")
    except UnicodeDecodeError:
        raise HttpError(HTTPStatus.BAD_REQUEST) from None
    if len(words) != 3 or not all(words):
        raise HttpError(HTTPStatus.BAD_REQUEST)
    method, target, version = words
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise HttpError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
    _check_fields(fields)
    if method not in ("GET", "HEAD"):
        raise HttpError(HTTPStatus.METHOD_NOT_ALLOWED)
    try:
        parts = urlsplit(target)
        query = dict(parse_qsl(parts.query, keep_blank_values=True, max_num_fields=_PARAMETERS))
        return Request(method, unquote(parts.path), query)
    except ValueError:
        raise HttpError(HTTPStatus.BAD_REQUEST) from None


def _check_fields(fields: bytes) -> None:
    for line in fields.split(b"\n"):
        name, colon, _ = line.rstrip(b"\r").partition(b":")
        if name and (not colon or name != name.strip()):
            raise HttpError(HTTPStatus.BAD_REQUEST)


def head_of(response: Response) -> bytes:
    """Status line and header fields."""
    lines = [
        f"HTTP/1.1 {response.status.value} {response.status.phrase}",
        f"Content-Type: {response.content_type}",
        f"Content-Length: {len(response.body)}",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
    ]
    if response.status is HTTPStatus.METHOD_NOT_ALLOWED:
        lines.append("Allow: GET, HEAD")
    return "\r\n".join([*lines, "", ""]).encode()


def end_of_head(data: bytes | bytearray) -> int:
    """Where a request's body begins, -1 when that has not come yet."""
    found = [data.find(mark) + len(mark) for mark in (b"\r\n\r\n", b"\n\n") if mark in data]
    return min(found, default=-1)


class HttpServer:
    """Answers by ``routes``, handlers by path; a path that ends in ``/`` is for all below it that
    have none of their own."""

    def __init__(self, routes: Mapping[str, Handler]) -> None:
        self._routes = routes
        self._server: asyncio.AbstractServer | None = None
        self.connections: set[_Connection] = set()

    async def serve(self, sock: socket.socket) -> None:
        """Answer on a listening socket, from now until ``stop``."""
        self._server = await listening.serve(lambda: _Connection(self), sock)

    async def stop(self) -> None:
        """Close the socket and hang up."""
        if self._server is not None:
            self._server.close()
        tasks = [task for one in list(self.connections) if (task := one.abort()) is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def answer(self, request: Request) -> Response:
        """Never raises; what a handler raises is an answer too."""
        handler = self._routes.get(request.path)
        if handler is None:
            handler = self._routes.get(request.path.rpartition("/")[0] + "/")
        if handler is None:
            return refusal(HttpError(HTTPStatus.NOT_FOUND))
        try:
            return await handler(request)
        except HttpError as error:
            return refusal(error)
        except Exception as error:
            log.exception("cannot answer %s", request.path)
            return refusal(HttpError(HTTPStatus.INTERNAL_SERVER_ERROR, str(error)))


def refusal(error: HttpError) -> Response:
    return Response(f"{error}\n".encode(), status=error.status)


class _Connection(asyncio.Protocol):
    """One client and its one request."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._head = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast("asyncio.Transport", transport)  # uvloop's is none
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(HEAD_SECONDS, self._too_slow)
        if len(self._server.connections) >= CONNECTIONS:
            transport.abort()
            return
        self._server.connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self._task is not None or self._answered:
            return  # a body, which GET has no use for, or requests that nobody promised to answer
        self._head += data
        end = end_of_head(self._head)
        if end > HEAD_BYTES or (end < 0 and len(self._head) > HEAD_BYTES):
            self._write(refusal(HttpError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)), False)
            return
        if end < 0:
            return
        try:
            request = parse(bytes(self._head[:end]))
        except HttpError as error:
            self._write(refusal(error), False)
            return
        self._timer.cancel()
        self._task = asyncio.ensure_future(self._answer(request))

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._server.connections.discard(self)
        if self._task is not None:
            self._task.cancel()

    def abort(self) -> asyncio.Task[None] | None:
        """Hang up; the task that was about to answer, if there is one."""
        self._transport.abort()
        return self._task

    async def _answer(self, request: Request) -> None:
        response = await self._server.answer(request)
        self._task = None
        self._write(response, request.method == "HEAD")

    def _write(self, response: Response, head_only: bool) -> None:
        self._answered = True
        self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(REPLY_SECONDS, self._transport.abort)
        self._transport.write(head_of(response) + (b"" if head_only else response.body))
        self._transport.close()

    def _too_slow(self) -> None:
        self._write(refusal(HttpError(HTTPStatus.REQUEST_TIMEOUT)), False)
