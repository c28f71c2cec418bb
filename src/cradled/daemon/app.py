"""Async. The daemon without its public listeners: what the program and the library both run.

Start: plugins in the order of the graph (stores, journal, metadata, engines, services), then the
socket on which shims tell their events. Stop is the reverse; containers and their shims go on, and
whoever owns root and state next finds them.

    <state>/events.sock    0600; ttrpc; where every shim of this state reports, whoever owns it
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from cradled.daemon import late
from cradled.daemon.builtins import OVER_TCP, REGISTRATIONS, proxies
from cradled.daemon.config import Config
from cradled.daemon.listeners import Sockets
from cradled.plugin import graph
from cradled.plugin import types as t
from cradled.plugin.types import Plugin
from cradled.rpc.observe import Observer
from cradled.rpc.service import Router
from cradled.rpc.ttrpc_server import TtrpcServer

if TYPE_CHECKING:
    from cradled.client.client import Client
    from cradled.core.access import Policy
    from cradled.daemon.upgrade import Upgrades
    from cradled.events.exchange import Parting
    from cradled.rpc.guard import Guard

log = logging.getLogger(__name__)

STOP_GRACE = 0.5
"""Seconds that calls under way are given when the daemon stops."""

REQUIRED = (
    f"{t.FORKED}.workers",
    f"{t.EVENT}.exchange",
    f"{t.METADATA}.bolt",
    f"{t.RUNTIME}.task",
)
"""Without these there is nothing to serve: their failure stops the start."""


class App:
    """Enter it to run; the caller owns root and state (``listeners.hold``) all the while.

    ``router`` has the gRPC services, whose calls ``observer`` counts, ``ttrpc_router`` those for
    shims. ``guard`` is what public listeners must ask before each call, where a policy is
    configured. ``sockets`` are the owner's, whose they remain; without, the app has its own.
    ``upgrades`` is what clients can have this daemon do, if it is one; ``parted`` is where those of
    the one before were.
    """

    def __init__(
        self,
        config: Config,
        grpc_address: str = "",
        sockets: Sockets | None = None,
        upgrades: Upgrades | None = None,
        parted: Parting | None = None,
    ) -> None:
        self._config = config
        self._stack = AsyncExitStack()
        self._sockets = sockets
        self._events: TtrpcServer | None = None
        self._properties: dict[str, Any] = {
            "grpc_address": grpc_address,
            "ttrpc_address": f"{config.state}/events.sock",
            "debug": "true" if config.debug.level in ("trace", "debug") else "false",
            "stream_processors": config.stream_processors,
            "sections": config.plugins,
            "timeout": config.timeout,
            "client": self.client,
            "upgrades": upgrades,
            "parted": parted,
        }
        self.observer = Observer()
        self.router = Router(self.observer.wrap)
        self.ttrpc_router = Router(Observer().wrap)
        self.guard: Guard | None = None
        self.plugins: Mapping[tuple[str, str], Plugin] = {}
        self._policies: Sequence[Policy] = ()

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    def get(self, type: str, id: str) -> Any:
        """The instance of a plugin. Raises LookupError when it is not there."""
        plugin = self.plugins[type, id]
        if plugin.error is not None:
            raise LookupError(f"no plugin {type}.{id}: {plugin.error}")
        return plugin.instance

    def client(self) -> Client:
        """A client in this process, which no policy restrains."""
        from pathlib import Path

        from cradled.client.client import Client
        from cradled.rpc.inprocess import InProcess

        return Client(InProcess(self.router), fifo_dir=Path(self._config.state, "fifo"))

    def reload(self) -> None:
        """Read again what can be changed while the daemon runs: policies."""
        if self._policies:
            from cradled.daemon import policy

            policy.reload(self._policies)

    def over_tcp(self) -> Router:
        """The services that may be served over TCP as well."""
        router = Router(self.observer.wrap)
        self._route(t.GRPC, router, OVER_TCP)
        return router

    def drain(self) -> None:
        """Tell who watches the daemon's health that it stops; to be called before servers do."""
        health = self.plugins.get((t.GRPC, "healthcheck"))
        for _, service in health.instance or () if health else ():
            if service.made is not None:
                service.made.stop()

    async def deafen(self, grace: float) -> None:
        """Let shims tell nothing any more; those that are telling get ``grace`` seconds."""
        if self._events is not None:
            await self._events.stop(grace)

    async def settle(self, seconds: float) -> bool:
        """Wait, so long at the most, until no container is being made or taken apart; whether one
        was."""
        busy: bool = await self.get(t.RUNTIME, "task").settle(seconds)
        return busy

    async def part(self, seconds: float) -> Parting:
        """Have subscribers told, within so many seconds, what was published, and no more."""
        parting: Parting = await self.get(t.EVENT, "exchange").part(seconds)
        return parting

    async def _start(self) -> None:
        config = self._config
        path = self._properties["ttrpc_address"]
        sockets = self._sockets
        if sockets is None:
            sockets = Sockets()
            self._stack.callback(sockets.close)
        sockets.open(path, mode=0o600, uid=os.geteuid(), gid=os.getegid())
        events = sockets.duplicate(path)
        self._stack.callback(events.close)
        self.plugins = await graph.start(
            [*REGISTRATIONS, *proxies(config)],
            root=config.root,
            state=config.state,
            stack=self._stack,
            config_of=config.section,
            properties=self._properties,
            disabled=config.disabled_plugins,
            required={*REQUIRED, *config.required_plugins},
        )
        self._guard()
        self._route(t.GRPC, self.router)
        self._route(t.TTRPC, self.ttrpc_router)
        self._events = TtrpcServer(self.ttrpc_router)
        await self._events.serve(events)
        self._stack.push_async_callback(self._events.stop, STOP_GRACE)
        self.get(t.GC, "scheduler").start()
        restarts = self.plugins.get((t.CONTAINER_MONITOR, "restart"))
        if restarts is not None and restarts.error is None:
            restarts.instance.start()

    def _guard(self) -> None:
        """Raises PluginError where a policy is configured and cannot be used."""
        found = [p for (type, _), p in self.plugins.items() if type == t.POLICY and not p.skipped]
        for plugin in found:
            if plugin.error is not None:
                raise graph.PluginError(f"{plugin.registration.uri}: {plugin.error}")
        if found:
            from cradled.daemon import policy

            self._policies = [plugin.instance for plugin in found]
            self.guard = policy.guard(self._policies, self.get(t.EVENT, "exchange"))

    def _route(self, type: str, router: Router, ids: Collection[str] | None = None) -> None:
        """Have a router serve all plugins of a type, or those of ``ids``."""
        for (found, id), plugin in self.plugins.items():
            wanted = found == type and (ids is None or id in ids)
            if wanted and plugin.instance is not None:
                for service, implementation in plugin.instance:
                    late.add(router, service, implementation)
