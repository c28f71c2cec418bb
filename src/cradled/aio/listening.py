"""Async. Servers on sockets that listen already, and whose paths are not the server's to remove."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from typing import Any

BACKLOG = 4096
"""A client that finds it full is refused, it does not wait."""

_KEEP_PATH: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}


async def serve(
    protocol: Callable[[], asyncio.BaseProtocol], sock: socket.socket, **secure: Any
) -> asyncio.AbstractServer:
    """Accept on a unix or TCP socket from now on; ``secure`` is what ``create_server`` takes for
    TLS. The server's end closes the socket."""
    loop = asyncio.get_running_loop()
    if sock.family == socket.AF_UNIX:
        secure = {**secure, **_KEEP_PATH}
        return await loop.create_unix_server(protocol, sock=sock, backlog=BACKLOG, **secure)
    return await loop.create_server(protocol, sock=sock, backlog=BACKLOG, **secure)
