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
from typing import TYPE_CHECKING, Any, NamedTuple

from cradled.aio import births
from cradled.daemon import builtins, listeners, logs, notify
from cradled.daemon.app import STOP_GRACE, App
from cradled.daemon.config import Config
from cradled.linux import limits, memory
from cradled.plugin.graph import PluginError
from cradled.rpc.grpc_server import GrpcServer, Limits
from cradled.rpc.ttrpc_server import TtrpcServer
from cradled.version import REVISION, SERVER_VERSION

if TYPE_CHECKING:
    from cradled.daemon.config_check import Problem

log = logging.getLogger(__name__)


class Start(NamedTuple):
    """What the program was started with. ``sockets`` listen already, for gRPC and ttrpc; ``read``
    reads the configuration again; ``exit_idle`` is in seconds, 0 for never; ``began`` is of
    ``time.monotonic``."""

    config: Config
    problems: list[Problem]
    read: Callable[[], tuple[Config, list[Problem]]]
    sockets: tuple[socket.socket, socket.socket]
    exit_idle: float
    began: float


def run(start: Start) -> int:
    """Serve until told to stop; the exit status. Raises StartError."""
    config = start.config
    faulthandler.enable()
    logs.setup(config.debug)
    if start.problems:
        from cradled.daemon import reload

        reload.report(start.problems)
    log.info(
        "starting cradled", extra={"fields": {"revision": REVISION, "version": SERVER_VERSION}}
    )
    if config.temp or config.oom_score or config.cgroup.path:
        from cradled.daemon import process

        process.adjust(config)
    limits.raise_files()
    memory.own_process()
    try:
        _run_loop(_serve(start))
    except PluginError as error:
        log.critical("%s", error)
        return 1
    finally:
        grpc, ttrpc = builtins.endpoints(config)
        listeners.remove(start.sockets[0], grpc.address)
        listeners.remove(start.sockets[1], ttrpc.address)
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


async def _serve(start: Start) -> None:
    loop = asyncio.get_running_loop()
    births.note(loop)
    config = start.config
    async with AsyncExitStack() as stack:
        signals = Signals(loop, start)
        if log.isEnabledFor(logging.DEBUG):
            from cradled.aio.watchdog import Watchdog

            stack.enter_context(Watchdog(loop))
        endpoint = builtins.endpoints(config)[0]
        app = await stack.enter_async_context(App(config, endpoint.address))
        grpc = GrpcServer(app.router, app.guard, Limits(*endpoint.limits))
        ttrpc = TtrpcServer(app.ttrpc_router, app.guard)
        await grpc.serve(start.sockets[0])
        stack.push_async_callback(grpc.stop, STOP_GRACE)
        await ttrpc.serve(start.sockets[1])
        stack.push_async_callback(ttrpc.stop, STOP_GRACE)
        stack.callback(app.drain)
        reloads = [app.reload]
        if builtins.has_side_listeners(config):
            from cradled.daemon import side_listeners

            reloads += await side_listeners.serve(config, app, stack)
        signals.serve(reloads)
        heartbeat = notify.Heartbeat()
        stack.callback(heartbeat.stop)
        notify.notify("READY=1", f"MAINPID={os.getpid()}", f"STATUS=serving {start.config.root}")
        heartbeat.start()
        gc.freeze()
        gc.enable()
        # In the words of the original: whoever waits for it looks for them.
        log.info("containerd successfully booted in %fs", time.monotonic() - start.began)
        if start.exit_idle:
            from cradled.daemon import idle

            await idle.until(app, grpc, signals.stop, start.exit_idle)
        else:
            await signals.stop.wait()
        notify.notify("STOPPING=1", "STATUS=stopping")
        log.info("stopping")


class Signals:
    """SIGTERM and SIGINT end the daemon (``stop``), SIGUSR1 tells what it does, and SIGHUP has it
    read its configuration again, from ``serve`` on."""

    def __init__(self, loop: asyncio.AbstractEventLoop, start: Start) -> None:
        self.stop = asyncio.Event()
        self._loop = loop
        self._start = start
        self._config = start.config
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: None)
        # Not a handler of the loop's: it also runs while some code holds the loop.
        signal.signal(signal.SIGUSR1, lambda number, frame: self._dump())

    def serve(self, reloads: Sequence[Callable[[], None]]) -> None:
        """The daemon is there: what SIGHUP asks for can be done; ``reloads`` are called then."""
        self._loop.add_signal_handler(signal.SIGHUP, self._reload, reloads)

    def _dump(self) -> None:
        from cradled.daemon import stacks

        text, path = stacks.write(os.getpid())
        self._loop.call_soon_threadsafe(
            log.info,
            "=== BEGIN task stack dump ===\n%s\n=== END task stack dump === (%s)",
            text,
            path,
        )

    def _reload(self, reloads: Sequence[Callable[[], None]]) -> None:
        from cradled.daemon import reload

        notify.reloading()
        self._config = reload.reload(self._config, self._start.read)
        for again in reloads:
            again()
        notify.notify("READY=1", f"STATUS=serving {self._config.root}")
