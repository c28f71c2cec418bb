"""Async. The client's view of a service: its methods as attributes, over any transport."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from cradled.api.pool import Method, Service
from cradled.rpc.service import Message, snake_case

Metadata = Sequence[tuple[str, str]]


class ClientStream(ABC):
    """One call as its client sees it.

    Leaving its ``async with`` block cancels what has not ended. All methods but ``cancel``
    raise ``errors.Error`` with which the call ended, if it did not end well.
    """

    @abstractmethod
    async def send(self, message: Message) -> None:
        """Send a request; waits while the server does not take more."""

    @abstractmethod
    async def done(self) -> None:
        """Say that no request follows."""

    @abstractmethod
    async def recv(self) -> Message | None:
        """The next response; None when the call has ended well."""

    @abstractmethod
    def cancel(self) -> None:
        """Give the call up; no effect once it has ended."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        message = await self.recv()
        if message is None:
            raise StopAsyncIteration
        return message

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()


class Transport(Protocol):
    """Carries calls to one server.

    ``metadata`` values of ``-bin`` keys are given as they travel (base64); ``timeout`` is in
    seconds from now and covers the whole call.
    """

    async def call(
        self,
        method: Method,
        request: Message,
        /,
        *,
        metadata: Metadata = (),
        timeout: float | None = None,
    ) -> Message:
        """Make a unary call; raises ``errors.Error``."""

    def open(
        self, method: Method, /, *, metadata: Metadata = (), timeout: float | None = None
    ) -> ClientStream:
        """Begin a call of any kind."""


class Stub:
    """A service on a transport.

    The rpc ``ListStream`` is the attribute ``list_stream``. Unary: ``await stub.get(request)``;
    server streaming: ``async for x in stub.list(request)``; client streaming and both ways:
    ``stub.write()`` is a ``ClientStream``. All take ``metadata=`` (added to that of the stub)
    and ``timeout=``.
    """

    def __init__(self, transport: Transport, service: Service, metadata: Metadata = ()) -> None:
        self._transport = transport
        self._metadata = tuple(metadata)
        self._methods = {snake_case(name): method for name, method in service.methods.items()}

    def __getattr__(self, name: str) -> Any:
        method = self.__dict__.get("_methods", {}).get(name)
        if method is None:
            raise AttributeError(f"no rpc is called {name!r}")
        function = self._bind(method)
        setattr(self, name, function)
        return function

    def _bind(self, method: Method) -> Any:
        transport, base = self._transport, self._metadata

        async def unary(
            request: Message, *, metadata: Metadata = (), timeout: float | None = None
        ) -> Message:
            return await transport.call(
                method, request, metadata=(*base, *metadata), timeout=timeout
            )

        async def responses(
            request: Message, *, metadata: Metadata = (), timeout: float | None = None
        ) -> AsyncIterator[Message]:
            stream = transport.open(method, metadata=(*base, *metadata), timeout=timeout)
            async with stream:
                await stream.send(request)
                await stream.done()
                async for response in stream:
                    yield response

        def open_stream(*, metadata: Metadata = (), timeout: float | None = None) -> ClientStream:
            return transport.open(method, metadata=(*base, *metadata), timeout=timeout)

        if method.client_streaming:
            return open_stream
        return responses if method.server_streaming else unary
