"""Async. The daemon's life between its sockets and its end."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import logging
import os
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from cradled.aio import births
from cradled.daemon import builtins, logs, notify
from cradled.daemon.app import App
from cradled.daemon.config import Config
from cradled.daemon.listeners import Sockets
from cradled.daemon.servers import Servers
from cradled.daemon.upgrade import Leave, Upgrades
from cradled.events.exchange import Parting
from cradled.linux import limits, memory
from cradled.plugin.graph import PluginError
from cradled.rpc.grpc_server import GrpcServer, Limits
from cradled.rpc.ttrpc_server import TtrpcServer
from cradled.version import REVISION, SERVER_VERSION

if TYPE_CHECKING:
    from cradled.daemon.config_check import Problem
    from cradled.daemon.successor import Successor

log = logging.getLogger(__name__)


class Start(NamedTuple):
    """What the program was started with. ``sockets`` listen already, for gRPC and ttrpc; ``locks``
    are on root and state; ``read`` reads the configuration again; ``exit_idle`` is in seconds, 0
    for never; ``began`` is of ``time.monotonic``; ``heir`` is this one where it takes over,
    and ``leave`` is how the one before left."""

    config: Config
    problems: list[Problem]
    read: Callable[[], tuple[Config, list[Problem]]]
    sockets: Sockets
    locks: tuple[int, int]
    exit_idle: float
    began: float
    heir: Successor | None = None
    leave: Leave | None = None


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
        if start.heir is not None:
            start.heir.fail(str(error))
        return 1
    finally:
        if start.heir is None or start.heir.is_owner:
            start.sockets.close()
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
    """Until told to stop, or until another daemon has taken over."""
    loop = asyncio.get_running_loop()
    births.note(loop)
    signals = Signals(loop, start)
    heir = start.heir
    leave = None
    if heir is not None:
        leave = await heir.turn(signals.stop)
        if leave is None:
            return
    upgrades = Upgrades(start.config, start.sockets, start.locks, signals.leave.set)
    if heir is None:
        upgrades.settle()
    while not signals.stop.is_set():
        signals.leave.clear()
        leave = await _live(start._replace(leave=leave), signals, upgrades, heir)
        if leave is None or await upgrades.hand_over(leave, signals.stop):
            return
        heir, start = None, start._replace(began=time.monotonic())


async def _live(
    start: Start, signals: Signals, upgrades: Upgrades, heir: Successor | None
) -> Leave | None:
    """Serve until told to leave; if that is for another daemon, what it is to know."""
    async with AsyncExitStack() as stack:
        if log.isEnabledFor(logging.DEBUG):
            from cradled.aio.watchdog import Watchdog

            stack.enter_context(Watchdog(asyncio.get_running_loop()))
        servers, app, reloads = await _open(start, upgrades, stack)
        start.sockets.close_unclaimed()
        if heir is not None:
            if not await heir.confirm(signals.stop):
                log.error("the daemon before did not hand over to the end")
                return None
            upgrades.settle(heir.outcome)
        signals.serve([app.reload, *reloads], upgrades.begin_by_signal)
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

            await idle.until(app, servers.grpc[0], signals.leave, start.exit_idle)
        else:
            await signals.leave.wait()
        if upgrades.due and not signals.stop.is_set():
            notify.notify("STATUS=handing over")
            log.info("handing over")
            return await servers.make_way()
        notify.notify("STOPPING=1", "STATUS=stopping")
        log.info("stopping")
        await upgrades.aclose()
        start.sockets.close()
    return None


async def _open(
    start: Start, upgrades: Upgrades, stack: AsyncExitStack
) -> tuple[Servers, App, Sequence[Callable[[], None]]]:
    """All that is served, and what a reload has to call beside the app."""
    config, sockets = start.config, start.sockets
    parted = None if start.leave is None else Parting(*start.leave[1:])
    endpoint, ttrpc_endpoint = builtins.endpoints(config)
    app = await stack.enter_async_context(App(config, endpoint.address, sockets, upgrades, parted))
    servers = Servers(app)
    stack.push_async_callback(servers.stop)
    grpc = GrpcServer(app.router, app.guard, Limits(*endpoint.limits))
    await grpc.serve(sockets.duplicate(endpoint.address))
    servers.grpc.append(grpc)
    ttrpc = TtrpcServer(app.ttrpc_router, app.guard)
    await ttrpc.serve(sockets.duplicate(ttrpc_endpoint.address))
    servers.ttrpc.append(ttrpc)
    if not builtins.has_side_listeners(config):
        return servers, app, ()
    from cradled.daemon import side_listeners

    host = side_listeners.Host(app, sockets, servers, stack)
    return servers, app, await side_listeners.serve(config, host)


class Signals:
    """SIGTERM and SIGINT end the daemon (``stop``), SIGUSR1 tells what it does. From ``serve`` on,
    SIGHUP has it read its configuration again, and SIGUSR2 upgrade. ``leave`` is set when it is to
    let go, by the end or for an upgrade."""

    def __init__(self, loop: asyncio.AbstractEventLoop, start: Start) -> None:
        self.stop = asyncio.Event()
        self.leave = asyncio.Event()
        self._loop = loop
        self._start = start
        self._config = start.config
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        for number in (signal.SIGHUP, signal.SIGUSR2):
            loop.add_signal_handler(number, lambda: None)
        # Not a handler of the loop's: it also runs while some code holds the loop.
        signal.signal(signal.SIGUSR1, lambda number, frame: self._dump())

    def serve(self, reloads: Sequence[Callable[[], None]], upgrade: Callable[[], None]) -> None:
        """The daemon is there: what SIGHUP asks for can be done, which calls ``reloads``, and what
        SIGUSR2 does."""
        self._loop.add_signal_handler(signal.SIGHUP, self._reload, reloads)
        self._loop.add_signal_handler(signal.SIGUSR2, upgrade)

    def _stop(self) -> None:
        self.stop.set()
        self.leave.set()

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
