"""Async. Waits for the first container that wants to be kept running, and loads who does that.

Most daemons never have one: they pay for a query at the start, and for a look at each container
that is made or changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from cradled.core.events import Envelope
from cradled.core.restart import STATUS
from cradled.core.scope import Scope
from cradled.events import topics
from cradled.events.exchange import Exchange
from cradled.metadata.db import Database

if TYPE_CHECKING:
    from cradled.client.client import Client
    from cradled.daemon.restart import Monitor

log = logging.getLogger(__name__)

_CHANGES = (f'topic=="{topics.CONTAINER_CREATE}"', f'topic=="{topics.CONTAINER_UPDATE}"')


class Gate:
    """Runs the restart monitor while there are containers for it; ``interval`` is in seconds."""

    def __init__(
        self, db: Database, exchange: Exchange, client: Callable[[], Client], interval: float
    ) -> None:
        self._db = db
        self._exchange = exchange
        self._client = client
        self._interval = interval
        self._monitor: Monitor | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a container is about to be started or stopped."""
        return self._monitor is not None and self._monitor.busy

    def start(self) -> None:
        """To be called when the services can be."""
        self._task = asyncio.create_task(self._run(), name="restart-monitor")

    async def aclose(self) -> None:
        """Let go of the containers: who has them next goes on. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            try:
                await self._asked()
                await self._watch()
            except Exception:
                log.exception("the restart monitor failed")
                await asyncio.sleep(self._interval)

    async def _watch(self) -> None:
        from cradled.daemon.restart import Monitor

        self._monitor = Monitor(self._client(), self._interval)
        try:
            await self._monitor.run()
        finally:
            self._monitor = None

    async def _asked(self) -> None:
        """Until some container has the label."""
        changes = self._exchange.subscribe(_CHANGES)
        try:
            if await self._db.any_container_with(STATUS):
                return
            async for envelope in changes:
                if await self._asks(envelope):
                    return
        finally:
            changes.close()

    async def _asks(self, envelope: Envelope) -> bool:
        id = topics.field_reader(envelope.event)(("id",)) or ""
        containers = self._db.scoped(Scope(envelope.namespace)).containers
        return await containers.has_label(id, STATUS)
