"""Async. Named thread pools: where calls that may block run, so that the loop never does.

``fs`` short work on paths, ``bulk`` hashing and copying, ``mount`` what may hang. Threads start
when there is work for them, at most the pool's size. ``operations`` tells what runs since when.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, NamedTuple, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

SIZES = {"fs": 8, "bulk": max(2, len(os.sched_getaffinity(0))), "mount": 4}

_pools: dict[str, _Pool] = {}


class Operation(NamedTuple):
    """A call that a thread is in: its pool, the function's name, its age in seconds."""

    pool: str
    name: str
    age: float


async def run(pool: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call ``function`` in a thread of the pool and return what it returns or raise what it raises.

    A call that was begun is always waited for, so what it uses (descriptors, buffers) may be
    released after this returns; only then is a cancellation delivered.
    """
    job = _Job(function, args, kwargs, asyncio.get_running_loop())
    _pool(pool).submit(job)
    cancelled: asyncio.CancelledError | None = None
    while not job.finished:
        job.waiter = job.loop.create_future()
        try:
            await job.waiter
        except asyncio.CancelledError as error:
            if job.claim.acquire(blocking=False):  # no thread has it yet: withdrawn
                raise
            cancelled = error
    if cancelled is not None:
        raise cancelled
    if job.error is not None:
        raise job.error
    return job.result  # type: ignore[no-any-return]


def operations() -> list[Operation]:
    """What runs now, in all pools."""
    now = time.monotonic()
    running = [(pool.name, job) for pool in _pools.values() for job in list(pool.running)]
    return [Operation(pool, job.name, now - job.started) for pool, job in running]


def close() -> None:
    """End all idle threads and wait for the busy ones; a later ``run`` starts new ones."""
    for name in list(_pools):
        _pools.pop(name).close()


def _pool(name: str) -> _Pool:
    pool = _pools.get(name)
    if pool is None:
        pool = _pools.setdefault(name, _Pool(name, SIZES[name]))
    return pool


class _Job:
    __slots__ = (
        "args", "claim", "error", "finished", "function", "kwargs", "loop", "result", "started",
        "waiter",
    )  # fmt: skip

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.loop = loop
        self.claim = threading.Lock()  # held by the one who may decide the job's fate
        self.waiter: asyncio.Future[None] | None = None
        self.finished = False
        self.started = 0.0
        self.result: Any = None
        self.error: BaseException | None = None

    @property
    def name(self) -> str:
        return getattr(self.function, "__qualname__", repr(self.function))

    def __call__(self) -> None:
        self.started = time.monotonic()
        try:
            self.result = self.function(*self.args, **self.kwargs)
        except BaseException as error:  # raised where the job was submitted
            self.error = error

    def finish(self) -> None:
        """On the loop's thread: wake who waits."""
        self.finished = True
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class _Pool:
    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self.running: set[_Job] = set()
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._load = 0

    def submit(self, job: _Job) -> None:
        with self._lock:
            self._load += 1
            if self._load > len(self._threads) < self.size:
                # Daemonic: a call stuck in the kernel must not keep the process from exiting.
                name = f"cradled-{self.name}-{len(self._threads)}"
                thread = threading.Thread(target=self._work, name=name, daemon=True)
                self._threads.append(thread)
                thread.start()
        self._queue.put(job)

    def close(self) -> None:
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            if job.claim.acquire(blocking=False):
                self.running.add(job)
                job()
                self.running.discard(job)
            with self._lock:
                self._load -= 1
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
                job.loop.call_soon_threadsafe(job.finish)
            del job  # no reference to arguments or result while idle
