"""Async. What all parts of a client share: the way to the server, and on whose behalf."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from cradled.core.scope import Scope
from cradled.proxies.containers import ProxyContainers
from cradled.proxies.content import ProxyContentStore
from cradled.proxies.diff import ProxyApplier
from cradled.proxies.images import ProxyImages
from cradled.proxies.leases import ProxyLeases
from cradled.proxies.snapshots import ProxySnapshotter
from cradled.proxies.tasks import ProxyTasks
from cradled.proxies.transfer import ProxyTransfer
from cradled.rpc.stub import Transport

RUNTIME = "io.containerd.runc.v2"
SNAPSHOTTER = "overlayfs"

_LEASE_HOURS = 24
_EXPIRE = "containerd.io/gc.expire"


@dataclass(frozen=True)
class Session:
    """A transport, a scope, and what is used when the caller does not choose."""

    transport: Transport
    scope: Scope
    fifo_dir: Path
    snapshotter: str = SNAPSHOTTER
    runtime: str = RUNTIME

    @cached_property
    def containers(self) -> ProxyContainers:
        return ProxyContainers(self.transport, self.scope)

    @cached_property
    def images(self) -> ProxyImages:
        return ProxyImages(self.transport, self.scope)

    @cached_property
    def content(self) -> ProxyContentStore:
        return ProxyContentStore(self.transport, self.scope)

    @cached_property
    def diff(self) -> ProxyApplier:
        return ProxyApplier(self.transport, self.scope)

    @cached_property
    def leases(self) -> ProxyLeases:
        return ProxyLeases(self.transport, self.scope)

    @cached_property
    def tasks(self) -> ProxyTasks:
        return ProxyTasks(self.transport, self.scope)

    @cached_property
    def transfer(self) -> ProxyTransfer:
        return ProxyTransfer(self.transport, self.scope)

    def snapshots(self, name: str = "") -> ProxySnapshotter:
        """The snapshotter of that name, by default the session's own."""
        return ProxySnapshotter(self.transport, self.scope, name or self.snapshotter)

    @asynccontextmanager
    async def leased(self) -> AsyncIterator[Session]:
        """What is made in this block is not collected before its end; it expires in a day."""
        expiry = time.gmtime(time.time() + _LEASE_HOURS * 3600)
        labels = {_EXPIRE: time.strftime("%Y-%m-%dT%H:%M:%SZ", expiry)}
        lease = await self.leases.create("", labels)
        try:
            yield replace(self, scope=Scope(self.scope.namespace, lease.id))
        finally:
            await self.leases.delete(lease.id)
