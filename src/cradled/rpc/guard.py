"""Async. Policies stand between a connection and the services: each call is asked about first.

A guarded connection looks its methods up in ``Routes`` instead of the router, so a server without
a guard pays nothing. Denied calls never reach a handler.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

from cradled.api.pool import Service
from cradled.core.access import Access, Policy, Verdict
from cradled.errors import PermissionDenied
from cradled.linux import peer
from cradled.rpc.call import NAMESPACE, NAMESPACE_TTRPC, Call, Peer
from cradled.rpc.service import Endpoint, Router

log = logging.getLogger(__name__)

CRI_NAMESPACE = "k8s.io"


class Guard:
    """All of ``policies`` must allow a call; ``denied`` is told of each that is not.

    ``policies`` are asked anew for each call: whoever reloads one need not touch connections.
    """

    def __init__(
        self, policies: Sequence[Policy], denied: Callable[[Access, Verdict], None]
    ) -> None:
        self._policies = tuple(policies)
        self._denied = denied
        self.denials = 0
        """How many calls were denied."""

    def routes(self, router: Router, sock: socket.socket) -> Routes:
        """The router as the peer of a connected socket may use it."""
        return Routes(self, router, UnixCaller.of(sock))

    def check(self, access: Access) -> None:
        """Raises PermissionDenied that names method, namespace, caller and rule."""
        for policy in self._policies:
            verdict = _ask(policy, access)
            if not verdict.allowed:
                self.denials += 1
                self._denied(access, verdict)
                raise PermissionDenied(describe(access, verdict))


class Routes:
    """What a connection needs of a ``Router``."""

    def __init__(self, guard: Guard, router: Router, caller: UnixCaller | None) -> None:
        self._guard = guard
        self._router = router
        self._caller = caller

    def find(self, path: str) -> Endpoint | None:
        """As ``Router.find``; the endpoint's handler raises PermissionDenied before all else."""
        endpoint = self._router.find(path)
        if endpoint is None:
            return None
        return Endpoint(endpoint.method, partial(self._guarded, endpoint))

    def missing(self, path: str) -> str:
        """As ``Router.missing``."""
        return self._router.missing(path)

    def services(self) -> list[Service]:
        """As ``Router.services``."""
        return self._router.services()

    def _guarded(self, endpoint: Endpoint, call: Call, request: Any) -> Any:
        path = endpoint.method.path
        namespace = acted_upon(path, call, request)
        self._guard.check(Access(path[1:], namespace, call.transport, self._caller))
        return endpoint.handler(call, request)


class UnixCaller:
    """Implements ``core.access.Caller`` for a connected unix socket."""

    def __init__(self, sock: socket.socket, known: Peer, groups: frozenset[int]) -> None:
        self._sock = sock
        self.pid, self.uid, self.gid = known
        self.groups = groups | {known.gid}

    @classmethod
    def of(cls, sock: socket.socket) -> UnixCaller | None:
        """None for a peer without credentials, or whose credentials cannot be had.

        Raises nothing: a connection must not be left without its guard.
        """
        try:
            known = Peer.of(sock)
            return None if known is None else cls(sock, known, peer.groups(sock))
        except Exception:
            log.exception("cannot tell who is at the other end")
            return None

    @cached_property
    def executable(self) -> str:
        return peer.executable(self._sock)


def describe(access: Access, verdict: Verdict) -> str:
    """A denial in words."""
    who = "a peer without credentials"
    if (caller := access.caller) is not None:
        program = f", {caller.executable}" if caller.executable else ""
        who = f"uid {caller.uid} (pid {caller.pid}{program})"
    where = f' in namespace "{access.namespace}"' if access.namespace else ""
    return f'policy: {who} may not call {access.method}{where} (rule "{verdict.rule}")'


def acted_upon(path: str, call: Call, request: Any) -> str:
    """The namespace a call acts upon: for some methods not the one in its metadata."""
    service, _, _ = path[1:].partition("/")
    if service.startswith("runtime.v1."):
        return CRI_NAMESPACE
    if path in _NAMED_IN_REQUEST:
        return _NAMED_IN_REQUEST[path](request)
    if service in _WITHOUT or path in _WITHOUT:
        return ""
    return call.metadata.get(NAMESPACE_TTRPC if call.transport == "ttrpc" else NAMESPACE, "")


_NAMESPACES = "containerd.services.namespaces.v1.Namespaces"
_EVENTS = "containerd.services.events.v1.Events"
_TTRPC_EVENTS = "containerd.services.events.ttrpc.v1.Events"

_NAMED_IN_REQUEST: dict[str, Callable[[Any], str]] = {
    f"/{_NAMESPACES}/Get": lambda request: request.name,
    f"/{_NAMESPACES}/Delete": lambda request: request.name,
    f"/{_NAMESPACES}/Create": lambda request: request.namespace.name,
    f"/{_NAMESPACES}/Update": lambda request: request.namespace.name,
    f"/{_EVENTS}/Forward": lambda request: request.envelope.namespace,
    f"/{_TTRPC_EVENTS}/Forward": lambda request: request.envelope.namespace,
}
_WITHOUT = frozenset(
    {
        f"/{_NAMESPACES}/List",
        f"/{_EVENTS}/Subscribe",  # of all namespaces
        "containerd.services.introspection.v1.Introspection",
        "containerd.services.version.v1.Version",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
)


def _ask(policy: Policy, access: Access) -> Verdict:
    try:
        return policy.decide(access)
    except Exception as error:
        log.exception("policy failed on %s", access.method)
        return Verdict(False, f"policy failed: {error}")
