"""Async. The shim's event loop: native coroutines on epoll, one thread, nothing imported.

``await loop.readable(fd)``, ``loop.sleep(seconds)``, a ``Future``, a ``Lock``; ``loop.spawn`` runs
a coroutine beside the others. There is no cancellation: who waits on a descriptor is woken with
``Closed`` when ``loop.close(fd)`` closes it, and a wait with a limit is ``loop.within``.

Descriptors are armed for one event at a time (EPOLLONESHOT), so an idle one costs nothing.
"""

from __future__ import annotations

import os
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLONESHOT, EPOLLOUT, EPOLLPRI, epoll
from time import monotonic

from cradled.linux.aside import Call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator
    from typing import Any

_FAILED = EPOLLERR | EPOLLHUP
# The slots of a descriptor's waiters: what each waits for, and what wakes it.
_INTEREST = (EPOLLIN, EPOLLOUT, EPOLLPRI)
_READ, _WRITE, _URGENT = range(3)


class Closed(Exception):
    """The descriptor that was waited on was closed by this process."""


class Future:
    """A result that comes once; any number may await it."""

    __slots__ = ("_callbacks", "_error", "_value", "done")

    def __init__(self) -> None:
        self.done = False
        self._value: Any = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[Future], None]] = []

    def set(self, value: Any = None) -> None:
        """Deliver; a second delivery is ignored."""
        if not self.done:
            self._value = value
            self._finish()

    def fail(self, error: BaseException) -> None:
        """Deliver an exception."""
        if not self.done:
            self._error = error
            self._finish()

    def revoke(self, error: BaseException) -> None:
        """Deliver an exception, also to who was woken but has not run yet."""
        self._error = error
        self.fail(error)

    def then(self, callback: Callable[[Future], None]) -> None:
        """Call ``callback`` with this future when it is done; at once if it is."""
        if self.done:
            callback(self)
        else:
            self._callbacks.append(callback)

    def _finish(self) -> None:
        self.done = True
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)

    def __await__(self) -> Generator[Future, None, Any]:
        if not self.done:
            yield self
        if self._error is not None:
            raise self._error
        return self._value


class Task(Future):
    """A running coroutine; its result is the coroutine's."""

    __slots__ = ("_coroutine", "_loop")

    def __init__(self, loop: Loop, coroutine: Coroutine[Future, None, Any]) -> None:
        super().__init__()
        self._loop = loop
        self._coroutine = coroutine
        loop.ready.append(self)

    def step(self) -> None:
        """Run to the next thing it waits for."""
        try:
            awaited = self._coroutine.send(None)
        except StopIteration as stop:
            self.set(stop.value)
        except Exception as error:
            if not self._callbacks:
                self._loop.report(error)
            self.fail(error)
        else:
            awaited.then(self._wake)

    def _wake(self, _: Future) -> None:
        self._loop.ready.append(self)


class Lock:
    """Held by one at a time, in the order asked for: ``async with lock``."""

    __slots__ = ("_held", "_last")

    def __init__(self) -> None:
        self._last: Future | None = None
        self._held = Future()

    async def __aenter__(self) -> None:
        previous, mine = self._last, Future()
        self._last = mine
        if previous is not None:
            await previous
        self._held = mine

    async def __aexit__(self, *_: object) -> None:
        self._held.set()


class Loop:
    """Runs tasks until ``stop``. ``report`` is told of what fails though nobody awaits it."""

    def __init__(self, report: Callable[[BaseException], None]) -> None:
        self.report = report
        self.ready: list[Task] = []
        self._epoll = epoll()
        self._waiters: dict[int, list[Future | None]] = {}
        self._timers: list[tuple[float, Future]] = []
        self._stopped = False

    def spawn(self, coroutine: Coroutine[Future, None, Any]) -> Task:
        """Run beside the others. An exception nobody awaits is reported."""
        return Task(self, coroutine)

    def stop(self) -> None:
        """Make ``run`` return after the current round."""
        self._stopped = True

    def run(self) -> None:
        """Run until ``stop``."""
        while not self._stopped:
            while self.ready:
                tasks, self.ready = self.ready, []
                for task in tasks:
                    task.step()
            if not self._stopped:
                self._wait()

    def readable(self, fd: int) -> Future:
        """Done when a read would not block, which end of file and errors are too."""
        return self._arm(fd, _READ)

    def writable(self, fd: int) -> Future:
        """Done when a write would not block."""
        return self._arm(fd, _WRITE)

    def urgent(self, fd: int) -> Future:
        """Done when the descriptor has exceptional news (POLLPRI)."""
        return self._arm(fd, _URGENT)

    def close(self, fd: int) -> None:
        """Close a descriptor; whoever waits on it gets ``Closed``."""
        waiters = self._waiters.pop(fd, None)
        if waiters is not None:
            self._epoll.unregister(fd)
            for waiter in waiters:
                if waiter is not None:
                    waiter.revoke(Closed())
        os.close(fd)

    async def write(self, fd: int, data: bytes) -> None:
        """Write all of it to a non-blocking descriptor. Raises OSError, Closed."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:
                await self.writable(fd)

    async def aside(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call what may block in a thread (``linux.aside``); its result, or what it raises."""
        call = Call(function, *args)
        try:
            await self.readable(call.done)
        finally:
            self.close(call.done)
        return call.result()

    def sleep(self, seconds: float) -> Future:
        """Done after that time."""
        future = Future()
        self._timers.append((monotonic() + seconds, future))
        return future

    async def within(self, future: Future, seconds: float) -> bool:
        """Wait for a future, but no longer; whether it is done."""
        if not future.done:
            either = self.sleep(seconds)
            future.then(either.set)
            await either
            self._timers = [timer for timer in self._timers if timer[1] is not either]
        return future.done

    def _arm(self, fd: int, slot: int) -> Future:
        future = Future()
        waiters = self._waiters.get(fd)
        try:
            if waiters is None:
                self._waiters[fd] = waiters = [None, None, None]
                waiters[slot] = future
                self._epoll.register(fd, _INTEREST[slot] | EPOLLONESHOT)
            else:
                waiters[slot] = future
                self._rearm(fd, waiters)
        except PermissionError:  # a regular file: never blocks
            del self._waiters[fd]
            future.set()
        except OSError:  # of the next descriptor of that number this must not be known
            del self._waiters[fd]
            raise
        return future

    def _rearm(self, fd: int, waiters: list[Future | None]) -> None:
        events = EPOLLONESHOT
        for interest, waiter in zip(_INTEREST, waiters, strict=True):
            if waiter is not None and not waiter.done:
                events |= interest
        self._epoll.modify(fd, events)

    def _wait(self) -> None:
        timeout = -1.0
        if self._timers:
            timeout = max(0.0, min(when for when, _ in self._timers) - monotonic())
        for fd, events in self._epoll.poll(timeout):
            self._dispatch(fd, events)
        if self._timers:
            now = monotonic()
            due = [timer for timer in self._timers if timer[0] <= now]
            if due:
                self._timers = [timer for timer in self._timers if timer[0] > now]
                for _, future in due:
                    future.set()

    def _dispatch(self, fd: int, events: int) -> None:
        waiters = self._waiters.get(fd)
        if waiters is None:
            return
        left = False
        for slot, interest in enumerate(_INTEREST):
            waiter = waiters[slot]
            if waiter is None or waiter.done:  # who was woken is kept, for close to reach
                continue
            if events & (interest | _FAILED):
                waiter.set()
            else:
                left = True
        if left:
            self._rearm(fd, waiters)
