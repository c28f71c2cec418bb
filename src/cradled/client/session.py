"""Async. What all parts of a client share: the way to the server, and on whose behalf.

A proxy is imported when it is first used: a short-lived program pays for what it calls.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from cradled.core.scope import Scope
from cradled.rpc.stub import Transport

if TYPE_CHECKING:
    from cradled.proxies.containers import ProxyContainers
    from cradled.proxies.content import ProxyContentStore
    from cradled.proxies.diff import ProxyDiffer
    from cradled.proxies.images import ProxyImages
    from cradled.proxies.leases import ProxyLeases
    from cradled.proxies.snapshots import ProxySnapshotter
    from cradled.proxies.tasks import ProxyTasks
    from cradled.proxies.transfer import ProxyTransfer

RUNTIME = "io.containerd.runc.v2"
SNAPSHOTTER = "overlayfs"

_LEASE_HOURS = 24
_EXPIRE = "containerd.io/gc.expire"


class Session:
    """A transport, a scope, and what is used when the caller does not choose."""

    def __init__(
        self,
        transport: Transport,
        scope: Scope,
        fifo_dir: Path,
        snapshotter: str = SNAPSHOTTER,
        runtime: str = RUNTIME,
    ) -> None:
        self.transport = transport
        self.scope = scope
        self.fifo_dir = fifo_dir
        self.snapshotter = snapshotter
        self.runtime = runtime

    @cached_property
    def containers(self) -> ProxyContainers:
        from cradled.proxies.containers import ProxyContainers

        return ProxyContainers(self.transport, self.scope)

    @cached_property
    def images(self) -> ProxyImages:
        from cradled.proxies.images import ProxyImages

        return ProxyImages(self.transport, self.scope)

    @cached_property
    def content(self) -> ProxyContentStore:
        from cradled.proxies.content import ProxyContentStore

        return ProxyContentStore(self.transport, self.scope)

    @cached_property
    def diff(self) -> ProxyDiffer:
        from cradled.proxies.diff import ProxyDiffer

        return ProxyDiffer(self.transport, self.scope)

    @cached_property
    def leases(self) -> ProxyLeases:
        from cradled.proxies.leases import ProxyLeases

        return ProxyLeases(self.transport, self.scope)

    @cached_property
    def tasks(self) -> ProxyTasks:
        from cradled.proxies.tasks import ProxyTasks

        return ProxyTasks(self.transport, self.scope)

    @cached_property
    def transfer(self) -> ProxyTransfer:
        from cradled.proxies.transfer import ProxyTransfer

        return ProxyTransfer(self.transport, self.scope)

    def snapshots(self, name: str = "") -> ProxySnapshotter:
        """The snapshotter of that name, by default the session's own."""
        from cradled.proxies.snapshots import ProxySnapshotter

        return ProxySnapshotter(self.transport, self.scope, name or self.snapshotter)

    def using(self, snapshotter: str) -> Session:
        """The same with another snapshotter."""
        return Session(self.transport, self.scope, self.fifo_dir, snapshotter, self.runtime)

    @asynccontextmanager
    async def leased(self) -> AsyncIterator[Session]:
        """What is made in this block is not collected before its end; it expires in a day."""
        expiry = time.gmtime(time.time() + _LEASE_HOURS * 3600)
        labels = {_EXPIRE: time.strftime("%Y-%m-%dT%H:%M:%SZ", expiry)}
        lease = await self.leases.create("", labels)
        scope = Scope(self.scope.namespace, lease.id)
        try:
            yield Session(self.transport, scope, self.fifo_dir, self.snapshotter, self.runtime)
        finally:
            await self.leases.delete(lease.id)
