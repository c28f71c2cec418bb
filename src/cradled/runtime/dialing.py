"""Async. Connections to shims: any address and both protocols, with the same ways to end.

    unix:///path, /path     a socket in the file system
    text without a scheme   an abstract one
    vsock://<cid>:<port>    of a virtual machine
    hvsock:///path:<port>   the same by way of a monitor's socket: CONNECT <port>, OK

A shim that is gone raises ``ConnectionLost`` whatever it spoke.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from cradled import errors
from cradled.api.pool import Method
from cradled.rpc import ttrpc_client
from cradled.rpc.stub import Metadata
from cradled.rpc.ttrpc_client import ConnectionLost
from cradled.runtime.bootstrap import Bootstrap

if TYPE_CHECKING:
    from cradled.rpc.grpc_client import GrpcChannel

LIMITS = {"ttrpc": 100.0, "grpc": 10.0}
"""Seconds that a shim that was just started may take to let us in."""

LATE_SECONDS = 5.0
"""How long its socket may be missing."""

_AGAIN_SECONDS = 0.01
_LONGEST_ANSWER = 256  # of a virtual machine's monitor


class Channel(Protocol):
    """A connection to a shim."""

    async def call(
        self,
        method: Method,
        request: Any,
        /,
        *,
        metadata: Metadata = (),
        timeout: float | None = None,
    ) -> Any: ...

    def on_close(self, callback: Callable[[], object], /) -> None: ...

    async def aclose(self) -> None: ...


async def connect(
    bootstrap: Bootstrap, *, timeout: float | None = None, late: float = 0.0
) -> Channel:
    """Connect within ``timeout`` seconds; the socket may be missing for ``late`` seconds.

    Raises OSError when nobody is there, TimeoutError, Unavailable for one that hangs up,
    InvalidArgument for no address.
    """
    async with asyncio.timeout(timeout):
        sock = await dial(bootstrap.address, late=late)
        try:
            if bootstrap.protocol == "grpc":
                from cradled.rpc import grpc_client

                return _GrpcShim(await grpc_client.attach(sock))
            return await ttrpc_client.attach(sock)
        except BaseException:
            sock.close()
            raise


async def dial(address: str, *, late: float = 0.0) -> socket.socket:
    """A connected socket. Raises OSError, InvalidArgument for what is no address."""
    scheme, separator, rest = address.partition("://")
    try:
        if scheme == "vsock" and separator:
            cid, _, port = rest.partition(":")
            return await _vsock(int(cid), int(port))
        if scheme == "hvsock" and separator:
            path, _, port = rest.rpartition(":")
            return await _hvsock(path, int(port), late)
    except ValueError:
        raise errors.InvalidArgument(f"shim address {address!r}") from None
    try:
        path = ttrpc_client.socket_path(address)
    except errors.Unimplemented:
        raise errors.InvalidArgument(f"shim address {address!r}") from None
    return await _unix(path, late)


async def _unix(path: str, late: float) -> socket.socket:
    """A listener with too many at its door lets us in when it can."""
    loop = asyncio.get_running_loop()
    until = loop.time() + late
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect(path)
            return sock
        except BlockingIOError:
            sock.close()
        except FileNotFoundError:
            sock.close()
            if loop.time() >= until:
                raise
        except BaseException:
            sock.close()
            raise
        await asyncio.sleep(_AGAIN_SECONDS)


async def _vsock(cid: int, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        await asyncio.get_running_loop().sock_connect(sock, (cid, port))
    except BaseException:
        sock.close()
        raise
    return sock


async def _hvsock(path: str, port: int, late: float) -> socket.socket:
    loop = asyncio.get_running_loop()
    sock = await _unix(path, late)
    try:
        await loop.sock_sendall(sock, f"CONNECT {port}\n".encode())
        answer = b""
        while not answer.endswith(b"\n") and len(answer) < _LONGEST_ANSWER:
            byte = await loop.sock_recv(sock, 1)  # what follows is the shim's
            if not byte:
                break
            answer += byte
        if b"OK" not in answer or not answer.endswith(b"\n"):
            raise ConnectionRefusedError(f"{path}: port {port}: {answer!r}")
    except BaseException:
        sock.close()
        raise
    return sock


class _GrpcShim:
    """A channel that loses its connection as one of ttrpc does."""

    def __init__(self, channel: GrpcChannel) -> None:
        self._channel = channel
        self.on_close = channel.on_close
        self.aclose = channel.aclose

    async def call(
        self,
        method: Method,
        request: Any,
        /,
        *,
        metadata: Metadata = (),
        timeout: float | None = None,
    ) -> Any:
        try:
            return await self._channel.call(method, request, metadata=metadata, timeout=timeout)
        except (errors.Unavailable, errors.Cancelled) as error:
            if not self._channel.is_closed:
                raise
            raise ConnectionLost("ttrpc: closed") from error  # the words that clients know
