"""Async. Calls to a router of this same process: no socket, no bytes, the same errors.

Messages are handed over as they are; neither side may change one after it has passed it on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from cradled import errors
from cradled.api.pool import Method
from cradled.rpc.call import Call, split_metadata
from cradled.rpc.service import Encoded, Endpoint, Message, Router, run
from cradled.rpc.status import from_status, to_status
from cradled.rpc.stub import ClientStream, Metadata

_END = object()


class InProcess:
    """A transport to the services of a router."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def call(
        self,
        method: Method,
        request: Message,
        /,
        *,
        metadata: Metadata = (),
        timeout: float | None = None,
    ) -> Message:
        endpoint = self._find(method)
        call = _call(metadata, timeout)
        request = _decoded(endpoint.method.request, request)
        try:
            async with asyncio.timeout_at(call.deadline):
                return _decoded(method.response, await endpoint.handler(call, request))
        except errors.Error:
            raise
        except Exception as exc:
            raise from_status(*to_status(exc)) from exc

    def open(
        self, method: Method, /, *, metadata: Metadata = (), timeout: float | None = None
    ) -> ClientStream:
        return _Stream(self._find(method), method.response, _call(metadata, timeout))

    def _find(self, method: Method) -> Endpoint:
        endpoint = self._router.find(method.path)
        if endpoint is None:
            raise errors.Unimplemented(self._router.missing(method.path))
        return endpoint


class _Stream(ClientStream):
    """Two queues of one message each and the task that runs the handler between them."""

    def __init__(self, endpoint: Endpoint, response: Any, call: Call) -> None:
        self._method = endpoint.method
        self._response = response  # what the client takes responses for
        self._requests: asyncio.Queue[Message] = asyncio.Queue(1)
        self._responses: asyncio.Queue[Message] = asyncio.Queue(1)
        self._ended = False
        self._error: errors.Error | None = None
        self._task = asyncio.get_running_loop().create_task(self._run(endpoint, call))
        self._task.add_done_callback(self._finish)

    async def send(self, message: Message) -> None:
        if self._ended:
            raise self._error or errors.FailedPrecondition("the call has ended")
        await self._put(_decoded(self._method.request, message))

    async def done(self) -> None:
        if not self._ended:
            await self._put(_END)

    async def recv(self) -> Message | None:
        response = _END if self._ended and self._responses.empty() else await self._responses.get()
        if response is not _END:
            return _decoded(self._response, response)
        if self._error is not None:
            raise self._error
        return None

    def cancel(self) -> None:
        self._task.cancel()

    async def _put(self, item: object) -> None:
        """Queue a request; given up when the handler ends without reading it."""
        put = asyncio.ensure_future(self._requests.put(item))
        try:
            await asyncio.wait((put, self._task), return_when=asyncio.FIRST_COMPLETED)
        finally:
            put.cancel()

    async def _run(self, endpoint: Endpoint, call: Call) -> None:
        async with asyncio.timeout_at(call.deadline):
            requests = self._iterate()
            request = requests if self._method.client_streaming else await anext(requests)
            await run(endpoint, call, request, self._responses.put)

    def _finish(self, task: asyncio.Task[None]) -> None:
        exc = asyncio.CancelledError() if task.cancelled() else task.exception()
        if exc is not None:
            self._error = exc if isinstance(exc, errors.Error) else from_status(*to_status(exc))
        self._ended = True
        if self._responses.empty():
            self._responses.put_nowait(_END)

    async def _iterate(self) -> AsyncIterator[Message]:
        while (request := await self._requests.get()) is not _END:
            yield request


def _call(metadata: Metadata, timeout: float | None) -> Call:
    deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
    texts, binary = split_metadata(metadata)
    return Call("inprocess", texts, binary, None, deadline)


def _decoded(kind: Any, message: Message) -> Message:
    """A message of a class, also if it is given as bytes."""
    if type(message) is Encoded:
        return kind.FromString(bytes(message))
    return message
