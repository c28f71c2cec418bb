"""Pure. Plugins: what is registered, what it is given, what became of it.

Types and ids are those clients know from Introspection and from the configuration file
(``[plugins."<type>.<id>"]``).
"""

from __future__ import annotations

import builtins
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

CONTAINER_MONITOR = "io.containerd.monitor.container.v1"
CONTENT = "io.containerd.content.v1"
CRI = "io.containerd.cri.v1"
DIFFER = "io.containerd.differ.v1"
EVENT = "io.containerd.event.v1"
GC = "io.containerd.gc.v1"
GRPC = "io.containerd.grpc.v1"
HTTP = "io.containerd.http.v1"
IMAGE_VERIFIER = "io.containerd.image-verifier.v1"
INTERNAL = "io.containerd.internal.v1"
LEASE = "io.containerd.lease.v1"
METADATA = "io.containerd.metadata.v1"
METRICS = "io.containerd.metrics.v1"
MOUNT_HANDLER = "io.containerd.mount-handler.v1"
MOUNT_MANAGER = "io.containerd.mount-manager.v1"
NRI = "io.containerd.nri.v1"
POD_SANDBOX = "io.containerd.podsandbox.controller.v1"
RUNTIME = "io.containerd.runtime.v2"
SANDBOX_CONTROLLER = "io.containerd.sandbox.controller.v1"
SANDBOX_STORE = "io.containerd.sandbox.store.v1"
SERVER = "io.containerd.server.v1"
SERVICE = "io.containerd.service.v1"
SHIM = "io.containerd.shim.v1"
SNAPSHOTTER = "io.containerd.snapshotter.v1"
STREAMING = "io.containerd.streaming.v1"
TASK_MONITOR = "io.containerd.monitor.task.v1"
TRACING = "io.containerd.tracing.processor.v1"
TRANSFER = "io.containerd.transfer.v1"
TTRPC = "io.containerd.ttrpc.v1"
WARNING = "io.containerd.warning.v1"

# Ours; clients do not look for them.
FORKED = "io.cradled.forked.v1"
JOURNAL = "io.cradled.journal.v1"
SPANS = "io.cradled.tracing.v1"
POLICY = "io.cradled.policy.v1"


class SkipPlugin(Exception):
    """Raised by ``init``: the plugin is not wanted in this configuration; not a failure."""

    def __str__(self) -> str:
        reason = super().__str__()
        return f"{reason}: skip plugin" if reason else "skip plugin"


class Registration(NamedTuple):
    """A plugin as its author declares it.

    ``requires`` names types: all plugins of these are there before ``init`` is called, which
    returns what others ``get``. ``config`` is a named tuple with a default for each key.
    """

    type: str
    id: str
    requires: tuple[str, ...] = ()
    init: Callable[[InitContext], Awaitable[Any]] | None = None
    config: builtins.type[Any] | None = None
    has_platform: bool = False

    @property
    def uri(self) -> str:
        """``<type>.<id>``, as in the configuration file."""
        return f"{self.type}.{self.id}"


class Late:
    """An instance that is made when it is first asked for: what nobody needs is never loaded."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make: Callable[[], Any] | None = make
        self._made: Any = None

    def get(self) -> Any:
        if self._make is not None:
            self._made, self._make = self._make(), None
        return self._made

    @property
    def made(self) -> Any | None:
        """The instance if somebody has asked for it."""
        return self._made


class Plugin:
    """A registered plugin and what became of it; ``error`` is None where all went well.

    ``instance`` may be ``Late``; ``InitContext.get`` gives what is in it. ``platform`` is told
    instead of the host's where it is given.
    """

    def __init__(self, registration: Registration) -> None:
        self.registration = registration
        self.instance: Any = None
        self.exports: dict[str, str] = {}
        self.capabilities: list[str] = []
        self.platform = ""
        self.error: Exception | None = None

    @property
    def skipped(self) -> bool:
        return isinstance(self.error, SkipPlugin)


class InitContext(NamedTuple):
    """What ``init`` is given.

    ``properties`` are the daemon's own facts: ``grpc_address``, ``ttrpc_address``, ``debug`` and
    what is configured for all (``stream_processors``). ``stack``
    closes in reverse order when the daemon stops.
    """

    plugin: Plugin
    config: Any
    properties: Mapping[str, Any]
    root_base: str
    state_base: str
    stack: AsyncExitStack
    loaded: Mapping[tuple[str, str], Plugin]

    @property
    def root(self) -> str:
        """The plugin's own directory for what survives a reboot (not made yet)."""
        return os.path.join(self.root_base, self.plugin.registration.uri)

    @property
    def state(self) -> str:
        """The plugin's own directory for what does not survive a reboot (not made yet)."""
        return os.path.join(self.state_base, self.plugin.registration.uri)

    def export(self, key: str, value: str) -> None:
        """Let clients read a fact through Introspection."""
        self.plugin.exports[key] = value

    def get(self, type: str, id: str) -> Any:
        """The instance of a plugin this one requires. Raises LookupError when it is not there."""
        plugin = self.loaded.get((type, id))
        if plugin is None or plugin.error is not None:
            raise LookupError(f"no plugin {type}.{id}")
        instance = plugin.instance
        return instance.get() if isinstance(instance, Late) else instance

    def all(self, type: str) -> dict[str, Any]:
        """All instances of a type by id."""
        return {
            id: plugin.instance
            for (found, id), plugin in self.loaded.items()
            if found == type and plugin.error is None
        }
