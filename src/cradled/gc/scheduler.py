"""Async. Runs garbage collections: on demand, and when the policy says so."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from cradled.gc.mark import Marker
from cradled.gc.policy import Config, Policy
from cradled.measures import Histogram
from cradled.metadata.db import Database
from cradled.metadata.gc import Collection, Stats
from cradled.spans import span, traced

_log = logging.getLogger(__name__)


class Scheduler:
    """``collect`` works at any time; ``start`` makes collections happen by themselves."""

    def __init__(self, db: Database, config: Config | None = None) -> None:
        self._db = db
        self.seconds = Histogram()
        """What collections took."""
        self.failures = 0
        self._config = config or Config()
        self._policy = Policy(self._config, asyncio.get_running_loop().time())
        self._turn = asyncio.Lock()
        self._begun = 0
        self._last = Stats()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        db.engine.watcher = self._watch

    async def collect(self) -> Stats:
        """One whole collection that begins after this call; callers at the same time share one."""
        begun = self._begun
        if self._config.schedule_delay:
            await asyncio.sleep(self._config.schedule_delay)
        async with self._turn:
            if self._begun == begun:
                self._begun += 1
                self._last = await self._collect()
            return self._last

    def start(self) -> None:
        """Begin collecting by the policy, the first time after its startup delay."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="gc-scheduler")

    async def aclose(self) -> None:
        """Stop; a collection under way is broken off. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._db.engine.watcher = None

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            due = self._policy.due
            wait = None if due is None else max(due - loop.time(), 0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()
                continue
            try:
                await self.collect()
            except Exception:
                _log.exception("garbage collection failed")
                self.failures += 1
                self._policy.failed(loop.time())

    @traced("gc")
    async def _collect(self) -> Stats:
        loop = asyncio.get_running_loop()
        start = loop.time()
        self._policy.started()
        collection = self._db.collection()
        try:
            with span("gc.load"):
                await collection.load()
            stats = await _mark_and_sweep(collection)
        finally:
            collection.close()
        with span("gc.clean"):
            await collection.clean()
        stats.seconds = loop.time() - start
        self.seconds.observe(stats.seconds)
        self._policy.ended(stats.seconds, loop.time())
        self._expires(collection.next_expiry)
        return stats

    def _watch(self, mutations: int, deletions: int, expiry: int | None) -> None:
        due = self._policy.due
        self._policy.changed(mutations, deletions, asyncio.get_running_loop().time())
        self._expires(expiry)
        if self._policy.due != due:
            self._changed.set()

    def _expires(self, at: int | None) -> None:
        """Something expires then, in nanoseconds since the epoch; None: nothing does."""
        if at is not None:
            left = (at - time.time_ns()) / 1e9
            self._policy.expires(asyncio.get_running_loop().time() + left)


async def _mark_and_sweep(collection: Collection) -> Stats:
    marker = Marker(collection.successors)
    marker.shade(collection.roots)
    with span("gc.mark"):
        for _ in marker.steps():
            await asyncio.sleep(0)
    with span("gc.sweep"):
        return await collection.sweep(marker.marked, marker.mark_on)
