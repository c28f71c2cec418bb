"""Async. One lock for each key that somebody holds or waits for; idle keys cost nothing.

``held`` tells, of all of them, who holds what since when, and who waits for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import Any, Generic, NamedTuple, TypeVar
from weakref import WeakSet

from cradled import spans
from cradled.measures import Histogram

K = TypeVar("K", bound=Hashable)

WAITS = Histogram()
"""Seconds that holders waited before they had the lock."""

_all: WeakSet[KeyedLock[Any]] = WeakSet()


class Held(NamedTuple):
    """A lock that is held: its name, key and holder, for how many seconds, and since how many
    seconds each of those waits who wait for it."""

    lock: str
    key: str
    holder: str
    age: float
    waiting: tuple[float, ...]


class KeyedLock(Generic[K]):
    """``async with locks(key)``: first come, first served for each key. ``name`` is for reports."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._turns: dict[K, _Turn] = {}
        _all.add(self)

    @asynccontextmanager
    async def __call__(self, key: K) -> AsyncIterator[None]:
        turn = self._turns.get(key)
        if turn is None:
            turn = self._turns[key] = _Turn()
        turn.users += 1
        try:
            await turn.take(self.name)
            try:
                yield
            finally:
                turn.lock.release()
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[key]

    def __len__(self) -> int:
        """Keys that are held or waited for."""
        return len(self._turns)

    def held(self) -> list[Held]:
        now = time.monotonic()
        return [
            Held(
                self.name,
                str(key),
                turn.holder,
                now - turn.since,
                tuple(now - since for since in turn.waiting),
            )
            for key, turn in list(self._turns.items())
            if turn.lock.locked()
        ]


def held() -> list[Held]:
    """All locks that are held now, the longest held first."""
    found = [one for locks in list(_all) for one in locks.held()]
    return sorted(found, key=lambda one: -one.age)


class _Turn:
    """The lock of one key."""

    __slots__ = ("holder", "lock", "since", "users", "waiting")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0
        self.holder = ""
        self.since = 0.0
        self.waiting: list[float] = []

    async def take(self, name: str) -> None:
        asked = time.monotonic()
        span = spans.current() if self.lock.locked() else None
        self.waiting.append(asked)
        try:
            await self.lock.acquire()
        finally:
            self.waiting.remove(asked)
        self.since = time.monotonic()
        self.holder = _name()
        WAITS.observe(self.since - asked)
        if span is not None:
            begun, ended = int(asked * 1e9), int(self.since * 1e9)
            spans.record(span, "lock.wait", begun, ended, lock=name)


def _name() -> str:
    """Who runs now: the open span's name, or else the task's."""
    span = spans.current()
    if span is not None:
        return span.name
    task = asyncio.current_task()
    return task.get_name() if task is not None else ""
