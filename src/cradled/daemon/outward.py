"""Async. One of our snapshotters as a plugin of other daemons, in a process of its own.

What ``[proxy_plugins]`` of any containerd-compatible daemon can name: the Snapshots service over
the bare snapshotter, whose keys are the daemon's.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from contextlib import AsyncExitStack
from typing import Any

from cradled.api import snapshots_pb2 as pb
from cradled.api.health_pb2 import Health
from cradled.api.wellknown_pb2 import Empty
from cradled.core.snapshots import Snapshotter
from cradled.daemon import builtins, listeners, logs
from cradled.daemon.config import Config, ConfigError
from cradled.plugin import graph
from cradled.plugin import types as t
from cradled.rpc.call import Call
from cradled.rpc.grpc_server import GrpcServer
from cradled.rpc.service import Router
from cradled.services.health import HealthService
from cradled.services.snapshots import SnapshotsService

_STOP_GRACE = 5.0  # seconds


class BareSnapshots(SnapshotsService):
    """The service over one snapshotter, whatever namespace calls and what name it has there."""

    def __init__(self, snapshotter: Snapshotter) -> None:
        self._bare = snapshotter

    def _snapshotter(self, call: Call, name: str) -> Snapshotter:
        return self._bare

    async def cleanup(self, call: Call, request: pb.CleanupRequest) -> Empty:
        await self._bare.cleanup()
        return Empty()


def run(config: Config, id: str, sock: socket.socket, address: str) -> int:
    """Serve until SIGTERM or SIGINT. Raises ConfigError for an unknown snapshotter."""
    wanted = [one for one in builtins.REGISTRATIONS if (one.type, one.id) == (t.SNAPSHOTTER, id)]
    if not wanted:
        known = [one.id for one in builtins.REGISTRATIONS if one.type == t.SNAPSHOTTER]
        raise ConfigError(f'no snapshotter "{id}" (one of {", ".join(known)})')
    logs.setup(config.debug)
    try:
        asyncio.run(_serve(config, id, wanted, sock))
    finally:
        listeners.remove(sock, address)
    return 0


async def _serve(config: Config, id: str, wanted: list[Any], sock: socket.socket) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        plugins = await graph.start(
            wanted,
            root=config.root,
            state=config.state,
            stack=stack,
            config_of=config.section,
            properties={},
            required={one.uri for one in wanted},
        )
        router = Router()
        router.add(pb.Snapshots, BareSnapshots(plugins[t.SNAPSHOTTER, id].instance))
        router.add(Health, HealthService())
        server = GrpcServer(router)
        await server.serve(sock)
        stack.push_async_callback(server.stop, _STOP_GRACE)
        await stop.wait()
