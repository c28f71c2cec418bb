"""Async. Each call a span, and counted; whatever carries it.

    router = Router(Observer().wrap)

The observer stands between transport and handler, so what never reaches a handler (an unknown
method, a message that cannot be read) is not seen: the interceptors of the original do the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from cradled import spans
from cradled.api.pool import Method
from cradled.measures import Histogram
from cradled.rpc.call import NAMESPACE, Call
from cradled.rpc.service import Batch, Handler, Message
from cradled.rpc.status import Code, code_of

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""The bounds that the original's histogram has."""


class Calls:
    """The calls of one method. ``seconds`` is there where durations are wanted."""

    __slots__ = ("codes", "method", "name", "ok", "received", "seconds", "sent", "started")

    def __init__(self, method: Method) -> None:
        self.method = method
        self.name = method.path[1:]
        self.started = 0
        self.received = 0
        self.sent = 0
        self.ok = 0
        self.codes: dict[Code, int] = {}
        """How many ended in which error."""
        self.seconds: Histogram | None = None

    def failed(self, call: Call, span: spans.span, exc: BaseException) -> None:
        span.close(exc)
        self.timed(span)
        code = code_of(exc)
        if code == Code.CANCELLED and _is_late(call):
            code = Code.DEADLINE_EXCEEDED
        self.codes[code] = self.codes.get(code, 0) + 1

    def timed(self, span: spans.span) -> None:
        if self.seconds is not None:
            self.seconds.observe((span.end - span.start) / 1e9)


class Observer:
    """The calls of a router, by method."""

    def __init__(self) -> None:
        self.methods: list[Calls] = []
        self._timing = False

    def wrap(self, method: Method, handler: Handler) -> Handler:
        """The handler to serve in place of this one."""
        calls = Calls(method)
        self.methods.append(calls)
        if self._timing:
            calls.seconds = Histogram(SECONDS)
        if method.server_streaming:
            return _streaming(calls, handler)
        return _unary(calls, handler)

    def time_calls(self) -> None:
        """Have durations counted, too."""
        self._timing = True
        for calls in self.methods:
            calls.seconds = calls.seconds or Histogram(SECONDS)


def _unary(calls: Calls, handler: Handler) -> Handler:
    client_streaming = calls.method.client_streaming

    async def observed(call: Call, request: Any) -> Message:
        calls.started += 1
        if client_streaming:
            request = _Counted(calls, request)
        else:
            calls.received += 1
        span = _open(calls.name, call)
        try:
            response = await handler(call, request)
        except BaseException as exc:
            calls.failed(call, span, exc)
            raise
        span.close()
        calls.sent += 1
        calls.ok += 1
        if calls.seconds is not None:
            calls.timed(span)
        return response

    return observed


def _streaming(calls: Calls, handler: Handler) -> Handler:
    client_streaming = calls.method.client_streaming

    async def observed(call: Call, request: Any) -> AsyncIterator[Message]:
        calls.started += 1
        if client_streaming:
            request = _Counted(calls, request)
        else:
            calls.received += 1
        span = _open(calls.name, call)
        try:
            async with aclosing(handler(call, request)) as responses:
                async for response in responses:
                    calls.sent += len(response) if type(response) is Batch else 1
                    yield response
        except BaseException as exc:
            calls.failed(call, span, exc)
            raise
        span.close()
        calls.ok += 1
        if calls.seconds is not None:
            calls.timed(span)

    return observed


def _open(name: str, call: Call) -> spans.span:
    if call.transport == "inprocess":  # a step of whatever its caller is doing
        return spans.span(name, namespace=call.metadata.get(NAMESPACE, "")).__enter__()
    return spans.call(name, call.metadata)


def _is_late(call: Call) -> bool:
    return call.deadline is not None and asyncio.get_running_loop().time() >= call.deadline


class _Counted:
    """The requests of a client that streams."""

    __slots__ = ("_calls", "_requests")

    def __init__(self, calls: Calls, requests: AsyncIterator[Message]) -> None:
        self._calls = calls
        self._requests = requests

    def __aiter__(self) -> _Counted:
        return self

    async def __anext__(self) -> Message:
        message = await anext(self._requests)
        self._calls.received += 1
        return message
