"""Async. All servers of a daemon, to be ended together.

Nothing that happens may fall between two daemons. So first nobody is listened to any more who tells
of events (who gets no answer tells the next daemon), then those who watch get what they are still
to be told, and only then they are cut off.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from cradled.daemon import upgrade
from cradled.daemon.app import STOP_GRACE, App
from cradled.daemon.upgrade import Leave
from cradled.rpc.grpc_server import GrpcServer
from cradled.rpc.ttrpc_server import TtrpcServer


class Servers:
    """Lists, to be added to. ``others`` are what ends further ones."""

    def __init__(self, app: App) -> None:
        self._app = app
        self.grpc: list[GrpcServer] = []
        self.ttrpc: list[TtrpcServer] = []
        self.others: list[Callable[[], Awaitable[None]]] = []

    async def stop(self) -> None:
        """The daemon ends; idempotent."""
        self._app.drain()
        await self._deafen(STOP_GRACE)
        await self._app.part(STOP_GRACE)
        await self._end(STOP_GRACE)

    async def make_way(self) -> Leave:
        """Another daemon is waiting."""
        stopped = time.monotonic_ns()
        self._app.drain()
        settling = (server.settle(upgrade.GRACE) for server in self.grpc)
        await asyncio.gather(self._deafen(upgrade.GRACE), *settling)
        if await self._app.settle(upgrade.WORK):
            await asyncio.sleep(upgrade.ANSWER)  # for who waited for it
        parting = await self._app.part(upgrade.GRACE)
        await self._end(0, upgrade.LAST_WORDS)
        return Leave(stopped, *parting)

    async def _deafen(self, grace: float) -> None:
        await asyncio.gather(self._app.deafen(grace), *(one.stop(grace) for one in self.ttrpc))

    async def _end(self, grace: float, *last_words: float) -> None:
        servers = (server.stop(grace, *last_words) for server in self.grpc)
        await asyncio.gather(*servers, *(stop() for stop in self.others))
        self.grpc.clear()
        self.others.clear()
