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

Span = spans.span | spans.Call

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""The bounds that the original's histogram has."""


class Calls:
    """The calls of one method. ``seconds`` is there where durations are wanted."""

    __slots__ = ("codes", "method", "name", "ok", "requests", "responses", "seconds", "started")

    def __init__(self, method: Method) -> None:
        self.method = method
        self.name = method.path[1:]
        self.started = 0
        self.ok = 0
        self.requests = 0
        """Of a client that streams."""
        self.responses = 0
        """Of a stream."""
        self.codes: dict[Code, int] = {}
        """How many ended in which error."""
        self.seconds: Histogram | None = None

    @property
    def received(self) -> int:
        """Requests of all calls."""
        return self.requests if self.method.client_streaming else self.started

    @property
    def sent(self) -> int:
        """Responses of all calls."""
        return self.responses if self.method.server_streaming else self.ok

    def succeeded(self, span: Span) -> None:
        self._close(span, None)
        self.ok += 1

    def failed(self, call: Call, span: Span, exc: BaseException) -> None:
        self._close(span, exc)
        code = code_of(exc)
        if code == Code.CANCELLED and _is_late(call):
            code = Code.DEADLINE_EXCEEDED
        self.codes[code] = self.codes.get(code, 0) + 1

    def _close(self, span: Span, exc: BaseException | None) -> None:
        span.close(exc)
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
        if method.client_streaming:
            handler = _counting(calls, handler)
        if method.server_streaming:
            return _streaming(calls, handler)
        return _unary(calls, handler)

    def time_calls(self) -> None:
        """Have durations counted, too."""
        self._timing = True
        for calls in self.methods:
            calls.seconds = calls.seconds or Histogram(SECONDS)


def _counting(calls: Calls, handler: Handler) -> Handler:
    return lambda call, requests: handler(call, _Counted(calls, requests))


def _unary(calls: Calls, handler: Handler) -> Handler:
    name = calls.name

    async def observed(call: Call, request: Any) -> Message:
        calls.started += 1
        span = _open(name, call)
        try:
            response = await handler(call, request)
        except BaseException as exc:
            calls.failed(call, span, exc)
            raise
        calls.succeeded(span)
        return response

    return observed


def _streaming(calls: Calls, handler: Handler) -> Handler:
    name = calls.name

    async def observed(call: Call, request: Any) -> AsyncIterator[Message]:
        calls.started += 1
        span = _open(name, call)
        try:
            async with aclosing(handler(call, request)) as responses:
                async for response in responses:
                    calls.responses += len(response) if type(response) is Batch else 1
                    yield response
        except BaseException as exc:
            calls.failed(call, span, exc)
            raise
        calls.succeeded(span)

    return observed


def _open(name: str, call: Call) -> Span:
    if call.transport == "inprocess":  # a step of whatever its caller is doing
        return spans.span(name, namespace=call.metadata.get(NAMESPACE, "")).__enter__()
    call.open(name)
    return call


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
        self._calls.requests += 1
        return message
