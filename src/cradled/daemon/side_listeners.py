"""Async. The listeners beside the two main ones, each only where it is configured.

    grpc-tcp   gRPC over TCP, with TLS if it has a certificate; only services that are meant for it
    debug      HTTP on a unix socket: stacks, profiles, numbers (``debug`` has the paths)
    metrics    HTTP on TCP: /v1/metrics (and /metrics) for Prometheus

What they need is imported only then.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, NamedTuple

from cradled.daemon import builtins, listeners, sections
from cradled.daemon.app import App
from cradled.daemon.config import Config
from cradled.daemon.http1 import Handler, HttpServer, Request, Response
from cradled.daemon.listeners import Sockets, StartError
from cradled.daemon.servers import Servers
from cradled.plugin.types import Registration
from cradled.rpc.grpc_server import GrpcServer, Limits, Tls

log = logging.getLogger(__name__)


class Host(NamedTuple):
    """What listeners are opened on; ``servers`` ends what they serve."""

    app: App
    sockets: Sockets
    servers: Servers
    stack: AsyncExitStack


async def serve(config: Config, host: Host) -> list[Callable[[], None]]:
    """Open all that are configured; what a reload has to call. Raises StartError."""
    reloads: list[Callable[[], None]] = []
    tcp: sections.TcpServer | None = _wanted(config, builtins.TCP_SERVER)
    if tcp is not None:
        reloads.append(await _serve_tcp(tcp, host))
    debug: sections.DebugServer | None = _wanted(config, builtins.DEBUG_SERVER)
    if debug is not None:
        await _serve_debug(debug, host)
    metrics: sections.MetricsServer | None = _wanted(config, builtins.METRICS_SERVER)
    if metrics is not None:
        histogram = config.section(builtins.GRPC_METRICS).grpc_histogram
        await _serve_metrics(metrics.address, histogram, host)
    return reloads


def _wanted(config: Config, registration: Registration) -> Any:
    """A listener's section; None where it has no address or is disabled."""
    section = config.section(registration)
    disabled = registration.uri in config.disabled_plugins
    return section if section.address and not disabled else None


async def _serve_tcp(config: sections.TcpServer, host: Host) -> Callable[[], None]:
    tls = tls_of(config)
    host.sockets.open_tcp(config.address)
    sock = host.sockets.duplicate(config.address)
    host.stack.callback(sock.close)
    if tls is None and not ipaddress.ip_address(sock.getsockname()[0]).is_loopback:
        log.warning("gRPC is served over TCP without TLS", extra={"fields": {"at": _name(sock)}})
    server = GrpcServer(host.app.over_tcp(), host.app.guard, Limits(*config.limits))
    await server.serve(sock, tls)
    host.servers.grpc.append(server)
    log.info("serving gRPC over TCP", extra={"fields": {"address": _name(sock)}})
    return partial(_renew, tls, config)


def _renew(tls: Tls | None, config: sections.TcpServer) -> None:
    """Take certificate and key that were renewed, for those who connect from now on."""
    if tls is None:
        return
    try:
        tls_of(config)  # both or none: a certificate must not lose its key
        tls.context.load_cert_chain(config.tls_cert, config.tls_key or None)
    except (StartError, OSError) as error:
        log.error("the certificate stays as it was: %s", error)


def tls_of(config: sections.TcpServer) -> Tls | None:
    """None where no certificate is configured. Raises StartError."""
    if not (config.tls_cert or config.tls_key):
        if config.tls_ca or config.tls_common_name:
            raise StartError("grpc-tcp: tls_ca and tls_common_name need tls_cert and tls_key")
        return None
    if config.tls_common_name and not config.tls_ca:
        raise StartError("grpc-tcp: tls_common_name needs tls_ca")
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key or None)
        if config.tls_ca:
            context.load_verify_locations(config.tls_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:  # an ssl.SSLError is one
        raise StartError(f"grpc-tcp: cannot use the TLS files: {error}") from error
    return Tls(context, config.tls_common_name)


async def _serve_debug(config: sections.DebugServer, host: Host) -> None:
    from cradled.daemon import debug

    path = config.address.removeprefix("unix://")
    listeners.make_directory(os.path.dirname(path), 0o755, "socket directory")
    host.sockets.open(path, uid=config.uid, gid=config.gid)
    await _serve_http(path, dict(debug.routes()), host)


async def _serve_metrics(address: str, histogram: bool, host: Host) -> None:
    from cradled.daemon.exposition import CONTENT_TYPE
    from cradled.daemon.metrics import Metrics

    host.sockets.open_tcp(address)
    metrics = host.stack.enter_context(Metrics(host.app, histogram=histogram))

    async def page(request: Request) -> Response:
        return Response(await metrics.render(), CONTENT_TYPE)

    await _serve_http(address, {"/v1/metrics": page, "/metrics": page}, host)


async def _serve_http(address: str, routes: dict[str, Handler], host: Host) -> None:
    sock = host.sockets.duplicate(address)
    host.stack.callback(sock.close)
    server = HttpServer(routes)
    await server.serve(sock)
    host.servers.others.append(server.stop)
    log.info("serving HTTP", extra={"fields": {"address": _name(sock)}})


def _name(sock: socket.socket) -> str:
    name = sock.getsockname()
    return name if isinstance(name, str) else f"{name[0]}:{name[1]}"
