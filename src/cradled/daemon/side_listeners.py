"""Async. The listeners beside the two main ones, each only where it is configured.

    debug      HTTP on a unix socket: stacks, profiles, numbers (``debug`` has the paths)

What they need is imported only then.
"""

from __future__ import annotations

import logging
import os
import socket
from contextlib import AsyncExitStack

from cradled.daemon import builtins, listeners, sections
from cradled.daemon.app import App
from cradled.daemon.config import Config
from cradled.daemon.http1 import Handler, HttpServer
from cradled.plugin.types import Registration

log = logging.getLogger(__name__)


async def serve(config: Config, app: App, stack: AsyncExitStack) -> None:
    """Open all that are configured, for as long as ``stack``. Raises StartError."""
    debug: sections.DebugServer = config.section(builtins.DEBUG_SERVER)
    if debug.address and _enabled(config, builtins.DEBUG_SERVER):
        from cradled.daemon import debug as pages

        path = debug.address.removeprefix("unix://")
        listeners.make_directory(os.path.dirname(path), 0o755, "socket directory")
        sock = listeners.listen(path, uid=debug.uid, gid=debug.gid)
        stack.callback(listeners.remove, sock, path)
        await _serve_http(sock, dict(pages.routes()), stack)


def _enabled(config: Config, registration: Registration) -> bool:
    return registration.uri not in config.disabled_plugins


async def _serve_http(
    sock: socket.socket, routes: dict[str, Handler], stack: AsyncExitStack
) -> None:
    server = HttpServer(routes)
    await server.serve(sock)
    stack.push_async_callback(server.stop)
    log.info("serving HTTP", extra={"fields": {"address": _name(sock)}})


def _name(sock: socket.socket) -> str:
    name = sock.getsockname()
    return name if isinstance(name, str) else f"{name[0]}:{name[1]}"
