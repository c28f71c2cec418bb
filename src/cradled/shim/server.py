"""Async. The shim's ttrpc server: connections of the same user, unary calls, errors as codes."""

from __future__ import annotations

import os

from cradled import errors
from cradled.linux import unix
from cradled.linux.coroutines import Closed, Lock
from cradled.shim import log
from cradled.ttrpc.codec import decode, encode
from cradled.ttrpc.connection import SERVER, Connection, RequestReceived

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable, Mapping
    from typing import Any

    from cradled.linux.coroutines import Loop
    from cradled.ttrpc.codec import Message

    Methods = Mapping[str, Mapping[str, tuple[str, type[Message]]]]

UNKNOWN, INVALID_ARGUMENT, UNIMPLEMENTED = 2, 3, 12

CODES: dict[type, int] = {
    errors.Cancelled: 1,
    errors.InvalidArgument: INVALID_ARGUMENT,
    errors.DeadlineExceeded: 4,
    errors.NotFound: 5,
    errors.AlreadyExists: 6,
    errors.PermissionDenied: 7,
    errors.ResourceExhausted: 8,
    errors.FailedPrecondition: 9,
    errors.Aborted: 10,
    errors.OutOfRange: 11,
    errors.Unimplemented: UNIMPLEMENTED,
    errors.Internal: 13,
    errors.Unavailable: 14,
    errors.DataLoss: 15,
    errors.Unauthenticated: 16,
}
"""As ``cradled.rpc.status`` has them, which a shim cannot afford to import."""


class Server:
    """Serves ``service`` on a listening socket.

    ``methods`` maps the names it has, and the rpcs of each, to a handler's name and the class of
    its request; ``visited`` is called when a client has come, ``left`` when one has gone.
    """

    def __init__(
        self,
        loop: Loop,
        listener: socket,
        methods: Methods,
        service: Any,
        visited: Callable[[], None],
        left: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._methods = methods
        self._service = service
        self._visited = visited
        self._left = left
        self.clients = 0
        listener.setblocking(False)

    async def serve(self) -> None:
        """Accept for ever."""
        while True:
            await self._loop.readable(self._listener.fileno())
            self.admit()

    def admit(self) -> None:
        """Accept who has come until now."""
        while True:
            try:
                fd = unix.accept(self._listener)
            except OSError:
                return
            if unix.peer(fd)[1:] == (os.geteuid(), os.getegid()):
                self.clients += 1
                self._visited()
                self._loop.spawn(self._attend(fd))
            else:
                os.close(fd)

    async def _attend(self, fd: int) -> None:
        await _Client(self._loop, fd, self).serve()
        self.clients -= 1
        self._left()

    async def answer(self, request: RequestReceived) -> tuple[int, str, bytes]:
        """(code, message, payload) for a call."""
        methods = self._methods.get(request.service)
        if methods is None:
            return UNIMPLEMENTED, f"service {request.service}", b""
        method = methods.get(request.method)
        if method is None:
            return UNIMPLEMENTED, f"method {request.method}", b""
        name, kind = method
        try:
            message = decode(kind, request.payload)
        except ValueError as error:
            return INVALID_ARGUMENT, f"unmarshal request error: {error}", b""
        try:
            reply = await getattr(self._service, name)(message)
            return 0, "", b"" if reply is None else encode(reply)
        except Exception as error:
            return *status(error), b""


class _Client:
    """One connection."""

    def __init__(self, loop: Loop, fd: int, server: Server) -> None:
        self._loop = loop
        self._fd = fd
        self._server = server
        self._connection = Connection(SERVER)
        self._writing = Lock()
        self._closed = False

    async def serve(self) -> None:
        """Read to the end; calls that are under way then go on without a reply."""
        try:
            while True:
                await self._loop.readable(self._fd)
                data = os.read(self._fd, 65536)
                if not data:
                    break
                for event in self._connection.receive_data(data):
                    if isinstance(event, RequestReceived):
                        self._loop.spawn(self._call(event))
                await self._flush()
        except (OSError, Closed):
            pass
        if not self._closed:
            self._closed = True
            self._loop.close(self._fd)

    async def _call(self, request: RequestReceived) -> None:
        async with self._writing:
            pass  # while a client does not read its answers, no more are made
        code, message, payload = await self._server.answer(request)
        if self._connection.is_open(request.stream_id):
            self._connection.send_response(request.stream_id, payload, code=code, message=message)
            await self._flush()

    async def _flush(self) -> None:
        """Write what is queued, one at a time; nothing is read from who does not read."""
        async with self._writing:
            try:
                while not self._closed and (data := self._connection.data_to_send()):
                    await self._loop.write(self._fd, data)
            except (OSError, Closed):
                pass  # the reader sees it as well


def status(error: Exception) -> tuple[int, str]:
    """The code and text of an error; one that is not of the tree goes to stderr as well."""
    for kind in type(error).__mro__:
        code = CODES.get(kind)
        if code is not None:
            return code, str(error)
    if not isinstance(error, errors.Error):
        log.trace(error)
    if isinstance(error, OSError) and error.strerror:  # as Go has it, which clients look for
        where = f"{error.filename}: " if error.filename else ""
        return UNKNOWN, where + error.strerror.lower()
    return UNKNOWN, str(error)
