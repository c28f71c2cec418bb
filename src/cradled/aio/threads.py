"""Async. Named thread pools: where calls that may block run, so that the loop never does.

``fs`` short work on paths, ``bulk`` hashing and copying, ``mount`` what may hang. Threads start
when there is work for them, at most the pool's size. ``operations`` tells what runs since when.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

from cradled import spans
from cradled.aio import lag
from cradled.measures import Histogram

P = ParamSpec("P")
T = TypeVar("T")

WORTH_TELLING = 0.005
"""Seconds of waiting for a thread that make it a step of its span."""

SIZES = {"fs": 8, "bulk": max(2, len(os.sched_getaffinity(0))), "mount": 4}

_pools: dict[str, _Pool] = {}


class Operation(NamedTuple):
    """A call that a thread is in: its pool, the function's name, its age in seconds, and the span
    that it is done for (empty for none)."""

    pool: str
    name: str
    age: float
    cause: str


class Load(NamedTuple):
    """A pool's threads, the calls that run or wait for one, and how many seconds calls waited."""

    threads: int
    calls: int
    waits: Histogram


async def run(pool: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call ``function`` in a thread of the pool and return what it returns or raise what it raises.

    A call that was begun is always waited for, so what it uses (descriptors, buffers) may be
    released after this returns; only then is a cancellation delivered.
    """
    return await begin(pool, function, *args, **kwargs).result()


def begin(pool: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Call[T]:
    """As ``run``, without waiting yet: the caller goes on and asks for ``result()`` later."""
    call = Call(functools.partial(function, *args, **kwargs), asyncio.get_running_loop())
    _pool(pool).submit(call)
    return call


def operations() -> list[Operation]:
    """What runs now, in all pools."""
    now = time.monotonic()
    running = [(pool.name, call) for pool in _pools.values() for call in list(pool.running)]
    return [Operation(pool, call.name, now - call.started, call.cause) for pool, call in running]


def loads() -> dict[str, Load]:
    """The pools by name; one that had nothing to do yet is not there."""
    return {name: pool.measured() for name, pool in list(_pools.items())}


def close() -> None:
    """End all idle threads and wait for the busy ones; a later ``run`` starts new ones."""
    for name in list(_pools):
        _pools.pop(name).close()


def _pool(name: str) -> _Pool:
    pool = _pools.get(name)
    if pool is None:
        pool = _pools.setdefault(name, _Pool(name, SIZES[name]))
    return pool


class Call(Generic[T]):
    """A function on its way through a pool."""

    __slots__ = (
        "_ended",
        "_error",
        "_function",
        "_loop",
        "_queued",
        "_span",
        "_submitted",
        "_value",
        "_waiter",
        "_waits",
        "claim",
        "finished",
        "started",
    )  # fmt: skip

    def __init__(self, function: functools.partial[T], loop: asyncio.AbstractEventLoop, /) -> None:
        self.claim = threading.Lock()  # held by the one who may decide the call's fate
        self.finished = False
        self.started = 0.0
        self._span = spans.current()
        self._function = function
        self._loop = loop
        self._waiter: asyncio.Future[None] | None = None
        self._value: T | None = None
        self._error: BaseException | None = None

    @property
    def cause(self) -> str:
        """The span that it is done for."""
        return "" if self._span is None else self._span.name

    @property
    def name(self) -> str:
        function = self._function.func
        return getattr(function, "__qualname__", repr(function))

    async def result(self) -> T:
        """What the function returned or raised; one task at a time may ask."""
        cancelled: asyncio.CancelledError | None = None
        while not self.finished:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            except asyncio.CancelledError as error:
                if self.claim.acquire(blocking=False):  # no thread has it yet: withdrawn
                    raise
                cancelled = error
        if cancelled is not None:
            raise cancelled
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    def submitted(self, waits: Histogram, *, queued: bool = True) -> None:
        """It waits for a thread from now on; how long is told to ``waits``.

        ``queued``: for nothing else, so that a long wait is a step of its span.
        """
        self._queued = queued
        self._submitted = time.monotonic()
        self._waits = waits

    def __call__(self) -> None:
        """In a thread of the pool."""
        if not self.claim.acquire(blocking=False):
            return
        self.started = time.monotonic()
        try:
            self._value = self._function()
        except BaseException as error:  # raised where the call was made
            self._error = error

    def wake(self) -> None:
        """In a thread of the pool, after the call."""
        self._ended = time.monotonic()
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        lag.since(self._ended)
        if self.started:
            self._waits.observe(self.started - self._submitted)
            if self._queued and self.started - self._submitted > WORTH_TELLING:
                self._tell_wait()
        self.finished = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _tell_wait(self) -> None:
        if self._span is not None:
            begun, ended = int(self._submitted * 1e9), int(self.started * 1e9)
            spans.record(self._span, "thread.wait", begun, ended, call=self.name)


class Milestone:
    """What a call reaches before its end. Made on the loop; one task may wait for it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] = self._loop.create_future()

    def reach(self) -> None:
        """In a thread: let the waiting task go on."""
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._reached)

    async def passed(self) -> None:
        """Return once it is reached."""
        await self._future

    def _reached(self) -> None:
        if not self._future.done():
            self._future.set_result(None)


class Lane:
    """Calls that run one after the other, in the order they were begun, in threads of a pool.

    The next one runs right after the one before, in the same thread.
    """

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._calls: deque[Call[Any]] = deque()
        self._open = False  # a thread is at it

    def begin(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Call[T]:
        """As the module's ``begin``, for a call that waits for those before it."""
        call = Call(functools.partial(function, *args, **kwargs), asyncio.get_running_loop())
        call.submitted(_pool(self._pool).waits, queued=False)
        with self._lock:
            self._calls.append(call)
            if self._open:
                return call
            self._open = True
        begin(self._pool, self._work)
        return call

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._calls:
                    self._open = False
                    return
                call = self._calls.popleft()
            call()
            call.wake()


class _Pool:
    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self.running: set[Call[Any]] = set()
        self._queue: SimpleQueue[Call[Any] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._load = 0
        self.waits = Histogram()

    def measured(self) -> Load:
        return Load(len(self._threads), self._load, self.waits)

    def submit(self, call: Call[Any]) -> None:
        call.submitted(self.waits)
        with self._lock:
            self._load += 1
            if self._load > len(self._threads) < self.size:
                # Daemonic: a call stuck in the kernel must not keep the process from exiting.
                name = f"cradled-{self.name}-{len(self._threads)}"
                thread = threading.Thread(target=self._work, name=name, daemon=True)
                self._threads.append(thread)
                thread.start()
        self._queue.put(call)

    def close(self) -> None:
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (call := self._queue.get()) is not None:
            self.running.add(call)
            call()
            self.running.discard(call)
            with self._lock:
                self._load -= 1
            call.wake()
            del call  # no reference to arguments or result while idle
