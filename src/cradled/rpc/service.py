"""Pure. From the path of a call to the method that answers it.

A service is a plain object. The rpc ``ListStream`` is answered by its method ``list_stream``:

    async def get(self, call, request): ...            # unary: returns the response
    async def list_stream(self, call, request): ...    # server streaming: yields responses
    async def upload(self, call, requests): ...        # client streaming: ``async for`` requests
    async def write(self, call, requests): ...         # both: iterates requests, yields responses

In place of a message a handler may return or yield ``Encoded``, or yield a ``Batch``. Errors are
raised (``cradled.errors``). A call that the client gave up, or whose deadline passed, is cancelled
as a task is.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

from cradled.api.pool import Method, Service
from cradled.rpc.call import Call

Message = Any  # a protobuf message of cradled.api
Handler = Callable[[Call, Any], Any]
Buffer = bytes | bytearray | memoryview

_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class Encoded:
    """A message that is serialised already; several parts stand for their concatenation.

    Given in place of a response, or sent in place of a request.

    The parts go out as they are, so large ones are not copied together first.
    """

    __slots__ = ("parts",)

    def __init__(self, *parts: Buffer) -> None:
        self.parts = parts

    def __bytes__(self) -> bytes:
        return b"".join(self.parts)


class Batch:
    """Several responses of a stream that are at hand at the same time, each serialised already.

    One object may be yielded to many callers: what a transport makes of it is kept in ``framed``
    and used for all of them.
    """

    __slots__ = ("framed", "messages")

    def __init__(self, messages: Sequence[bytes]) -> None:
        self.messages = messages
        self.framed = b""

    def __len__(self) -> int:
        return len(self.messages)


class Endpoint(NamedTuple):
    """A method and the bound handler that serves it."""

    method: Method
    handler: Handler


class Router:
    """The services of one server.

    May be given services at any time; they are looked up call by call. ``wrap`` makes of a
    method's handler the one that is served.
    """

    def __init__(self, wrap: Callable[[Method, Handler], Handler] | None = None) -> None:
        self._wrap = wrap
        self._endpoints: dict[str, Endpoint] = {}
        self._services: dict[str, Service] = {}

    def add(self, service: Service, implementation: object) -> None:
        """Serve a service; a method that the implementation lacks answers UNIMPLEMENTED."""
        if service.name in self._services:
            raise ValueError(f"service {service.name} is served already")
        self._services[service.name] = service
        for method in service.methods.values():
            handler = getattr(implementation, snake_case(method.name), None)
            if handler is None:
                continue
            if self._wrap is not None:
                handler = self._wrap(method, handler)
            self._endpoints[method.path] = Endpoint(method, handler)

    def find(self, path: str) -> Endpoint | None:
        """What answers ``/package.Service/Method``; None when nothing does."""
        return self._endpoints.get(path)

    def missing(self, path: str) -> str:
        """The text of the UNIMPLEMENTED that a path without an endpoint gets."""
        name, _, method = path.removeprefix("/").rpartition("/")
        service = self._services.get(name)
        if service is None:
            return f"unknown service {name}"
        if method not in service.methods:
            return f"unknown method {method} for service {name}"
        return f"method {method} not implemented"

    def services(self) -> list[Service]:
        """All services, in the order they were added."""
        return list(self._services.values())


def snake_case(name: str) -> str:
    """``ListStream`` -> ``list_stream``, ``CloseIO`` -> ``close_io``."""
    return _WORD.sub("_", name).lower()


def parts_of(message: Message | Encoded) -> tuple[Buffer, ...]:
    """What a message is sent as, in parts that are not to be copied together."""
    if isinstance(message, Encoded):
        return message.parts
    return (message.SerializeToString(),)


def encode(response: Message | Encoded) -> bytes:
    """The bytes of what a handler returned or yielded."""
    if isinstance(response, Encoded):
        return bytes(response)
    return response.SerializeToString()  # type: ignore[no-any-return]


async def run(
    endpoint: Endpoint,
    call: Call,
    request: Message | AsyncIterator[Message],
    send: Callable[[Message | Encoded], Awaitable[None]],
) -> None:
    """Run a handler of any kind to its end; ``send`` is awaited once for each response.

    ``request`` is the one message, or for client-streaming methods the iterator of messages.
    """
    if not endpoint.method.server_streaming:
        await send(await endpoint.handler(call, request))
        return
    async with aclosing(endpoint.handler(call, request)) as responses:
        async for response in responses:
            if type(response) is Batch:
                for message in response.messages:
                    await send(Encoded(message))
            else:
                await send(response)
