"""Async. Run a coroutine at once, and make it a task only if it suspends.

Most handlers answer without waiting for anything. A task for each, and the turn of the loop that
it costs, would be a good part of the price of a call. So a coroutine's first step is taken by
hand. That step must not see the difference: it runs in a context of its own, and
``asyncio.current_task()`` is the task in which the coroutine goes on if it suspends. This host
task exists beforehand, idle; a coroutine that ends in its first step leaves it for the next.
"""

from __future__ import annotations

import asyncio
from asyncio.tasks import _enter_task, _leave_task
from collections.abc import Coroutine, Generator
from contextvars import Context, copy_context
from types import coroutine
from typing import Any


class Starter:
    """Starts coroutines on one loop; ``close`` it when no more are to be started."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._host: _Host | None = None

    def start(self, coro: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        """Run a coroutine until it suspends: its task then, or None if it has ended.

        May only be called from a callback of the loop, not from within a task. What the
        coroutine raises in its first step is raised here.
        """
        host = self._host
        if host is None or host.task.cancelling():
            self._host = host = _Host(self._loop)
        context = copy_context()
        _enter_task(self._loop, host.task)
        try:
            awaited = context.run(coro.send, None)
        except StopIteration:
            return None
        finally:
            _leave_task(self._loop, host.task)
        self._host = None
        host.adopt(coro, awaited, context)
        return host.task

    def close(self) -> None:
        """Let go of the idle host."""
        if self._host is not None:
            self._host.task.cancel()
            self._host = None


class _Host:
    """A task that waits to be given a coroutine which has already taken its first step."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._given: tuple[Coroutine[Any, Any, None], Any, Context] | None = None
        self._wake = loop.create_future()
        run = self._run()
        run.send(None)  # into the ``try`` below: the task may be cancelled before its first turn
        self.task: asyncio.Task[None] = loop.create_task(run)

    def adopt(self, coro: Coroutine[Any, Any, None], awaited: Any, context: Context) -> None:
        self._given = (coro, awaited, context)
        if not self._wake.done():
            self._wake.set_result(None)

    async def _run(self) -> None:
        await self._steps()

    @coroutine
    def _steps(self) -> Generator[Any, Any, None]:
        lost: BaseException | None = None
        try:
            yield
            if self._given is None:
                yield from self._wake
        except asyncio.CancelledError as error:
            if self._given is None:
                raise
            # Cancelled between the first step and now: as a task would, pass it on to what the
            # coroutine awaits, and find it cancelled below. If that has come already, or if it
            # awaits nothing, the coroutine itself must hear of it.
            if self._given[1] is None or not self._given[1].cancel():
                lost = error
        assert self._given is not None
        coro, awaited, context = self._given
        step: Any = coro.send
        while True:
            try:
                if lost is not None:
                    raise lost
                value = yield awaited
                step = coro.send
            except BaseException as error:
                value, step, lost = error, coro.throw, None
            try:
                awaited = context.run(step, value)
            except StopIteration:
                return
