"""Async. A daemon that was started for whoever asked first stops when nobody needs it any more."""

from __future__ import annotations

import asyncio
import logging
import time

from cradled.core.scope import Scope
from cradled.core.tasks import Status
from cradled.daemon.app import App
from cradled.plugin import types as t
from cradled.rpc.grpc_server import GrpcServer

log = logging.getLogger(__name__)

_CHECK = 5.0
"""Seconds between looks at whether anybody is there."""


async def until(app: App, grpc: GrpcServer, stop: asyncio.Event, seconds: float) -> None:
    """Until told to stop, or nobody was connected and nothing ran for so many seconds."""
    idle_since = time.monotonic()
    while not stop.is_set():
        now = time.monotonic()
        if grpc.connections or await _something_runs(app):
            idle_since = now
        left = idle_since + seconds - now
        if left <= 0:
            log.info("idle for %g s", seconds)
            return
        try:
            async with asyncio.timeout(min(left, _CHECK)):
                await stop.wait()
        except TimeoutError:
            continue


async def _something_runs(app: App) -> bool:
    restarts = app.plugins.get((t.CONTAINER_MONITOR, "restart"))
    if restarts is not None and restarts.error is None and restarts.instance.busy:
        return True
    db, tasks = app.get(t.METADATA, "bolt"), app.get(t.RUNTIME, "task")
    for namespace, _ in await db.namespaces.list():
        for process in await tasks.list(Scope(namespace)):
            if process.status != Status.STOPPED:
                return True
    return False
