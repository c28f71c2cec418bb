"""Async. The daemon's life between its sockets and its end."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from cradled.core.scope import Scope
from cradled.core.tasks import Status
from cradled.daemon import builtins, listeners, logs
from cradled.daemon.app import STOP_GRACE, App
from cradled.daemon.config import Config
from cradled.daemon.notify import notify
from cradled.linux import memory
from cradled.plugin import types as t
from cradled.plugin.graph import PluginError
from cradled.rpc.grpc_server import GrpcServer
from cradled.rpc.ttrpc_server import TtrpcServer
from cradled.version import REVISION, SERVER_VERSION

if TYPE_CHECKING:
    from cradled.daemon.config_check import Problem

log = logging.getLogger(__name__)

_IDLE_CHECK = 5.0
"""Seconds between looks at whether anybody is there."""


def run(
    config: Config,
    problems: Sequence[Problem],
    sockets: tuple[socket.socket, socket.socket],
    exit_idle: float,
) -> int:
    """Serve on the two listening sockets (gRPC, ttrpc) until told to stop; the exit status."""
    logs.setup(config.debug.level, config.debug.format)
    for problem in problems:
        log.warning(problem.text, extra={"fields": problem.fields})
    log.info(
        "starting cradled", extra={"fields": {"revision": REVISION, "version": SERVER_VERSION}}
    )
    faulthandler.register(signal.SIGUSR1)
    if config.temp:
        os.environ["TMPDIR"] = config.temp
    _adjust_oom_score(config.oom_score)
    memory.own_process()
    try:
        _run_loop(_serve(config, sockets, exit_idle))
    except PluginError as error:
        log.critical("%s", error)
        return 1
    finally:
        grpc, ttrpc = builtins.endpoints(config)
        listeners.remove(sockets[0], grpc.address)
        listeners.remove(sockets[1], ttrpc.address)
    return 0


def _run_loop(main: Coroutine[Any, Any, None]) -> None:
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    try:
        import uvloop
    except ImportError:
        log.debug("uvloop is not there, using asyncio's own loop")
    else:
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)


async def _serve(
    config: Config, sockets: tuple[socket.socket, socket.socket], exit_idle: float
) -> None:
    began = time.monotonic()
    stop = _stop_on_signals()
    address = builtins.endpoints(config)[0].address
    async with AsyncExitStack() as stack:
        if log.isEnabledFor(logging.DEBUG):
            from cradled.aio.watchdog import Watchdog

            stack.enter_context(Watchdog(asyncio.get_running_loop()))
        app = await stack.enter_async_context(App(config, address))
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, app.reload)
        grpc, ttrpc = GrpcServer(app.router, app.guard), TtrpcServer(app.ttrpc_router, app.guard)
        await grpc.serve(sockets[0])
        stack.push_async_callback(grpc.stop, STOP_GRACE)
        await ttrpc.serve(sockets[1])
        stack.push_async_callback(ttrpc.stop, STOP_GRACE)
        notify("READY=1")
        gc.freeze()
        gc.enable()
        log.info("cradled successfully booted in %fs", time.monotonic() - began)
        if exit_idle:
            await _until_idle(app, grpc, stop, exit_idle)
        else:
            await stop.wait()
        notify("STOPPING=1")
        log.info("stopping")


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def _until_idle(app: App, grpc: GrpcServer, stop: asyncio.Event, seconds: float) -> None:
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
            async with asyncio.timeout(min(left, _IDLE_CHECK)):
                await stop.wait()
        except TimeoutError:
            continue


async def _something_runs(app: App) -> bool:
    db, tasks = app.get(t.METADATA, "bolt"), app.get(t.RUNTIME, "task")
    for namespace, _ in await db.namespaces.list():
        for process in await tasks.list(Scope(namespace)):
            if process.status != Status.STOPPED:
                return True
    return False


def _adjust_oom_score(score: int) -> None:
    """Lowering it takes a capability that not every host gives: try, and say so."""
    if not score:
        return
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write(str(score))
    except OSError as error:
        log.warning("cannot set oom_score %d for pid %d", score, os.getpid(), exc_info=error)
