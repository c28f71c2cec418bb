"""Async. The plugins this daemon is made of: one table, and how those are made that serve.

Cheap to import: what an ``init`` needs is imported when it runs. A plugin of type GRPC or TTRPC
gives what it serves as pairs of a service's table and its implementation; the service plugins
of the original, which only hand on, are listed because clients ask for them.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterable
from typing import Any

from cradled.daemon import plugin_keys as keys
from cradled.daemon import sections, storage_plugins, task_plugins
from cradled.daemon.config import Config
from cradled.daemon.config_file import Known
from cradled.plugin import types as t
from cradled.plugin.types import InitContext, Late, Registration, SkipPlugin
from cradled.version import REVISION, SERVER_VERSION

Served = list[tuple[Any, object]]


_GRPC_SERVER = Registration(t.SERVER, "grpc", (t.GRPC,), config=sections.GrpcServer)
_TTRPC_SERVER = Registration(t.SERVER, "ttrpc", (t.TTRPC,), config=sections.TtrpcServer)


async def _side_listener(context: InitContext) -> None:
    """The listeners themselves are the program's (``side_listeners``), not the library's."""
    if not context.config.address or not context.properties["grpc_address"]:
        raise SkipPlugin("no address configured")
    context.export("address", context.config.address)


DEBUG_SERVER = Registration(t.SERVER, "debug", init=_side_listener, config=sections.DebugServer)
METRICS_SERVER = Registration(
    t.SERVER, "metrics", init=_side_listener, config=sections.MetricsServer
)
TCP_SERVER = Registration(
    t.SERVER, "grpc-tcp", (t.GRPC,), init=_side_listener, config=sections.TcpServer
)
GRPC_METRICS = Registration(t.METRICS, "grpc-prometheus", config=sections.GrpcPrometheus)

OVER_TCP = ("healthcheck",)
"""The gRPC plugins that may be served over TCP as well."""


def endpoints(config: Config) -> tuple[sections.GrpcServer, sections.TtrpcServer]:
    """Where the daemon listens."""
    grpc: sections.GrpcServer = config.section(_GRPC_SERVER)
    ttrpc: sections.TtrpcServer = config.section(_TTRPC_SERVER)
    grpc = grpc._replace(address=grpc.address.removeprefix("unix://"))
    address = ttrpc.address.removeprefix("unix://") or f"{grpc.address}.ttrpc"
    return grpc, ttrpc._replace(address=address)


def proxies(config: Config) -> Iterable[Registration]:
    """The plugins that other processes serve. Raises ConfigError for the name of one of ours."""
    if not config.proxy_plugins:
        return ()
    from cradled.daemon import proxied

    return proxied.registrations(config, {registration.uri for registration in REGISTRATIONS})


def has_side_listeners(config: Config) -> bool:
    """Whether it asks for listeners beside the two main ones."""
    return any(config.section(one).address for one in (DEBUG_SERVER, METRICS_SERVER, TCP_SERVER))


def with_address(config: Config, address: str) -> Config:
    """The configuration with another gRPC address, and ttrpc beside it."""
    plugins = dict(config.plugins)
    for registration, path in ((_GRPC_SERVER, address), (_TTRPC_SERVER, f"{address}.ttrpc")):
        plugins[registration.uri] = {**plugins.get(registration.uri, {}), "address": path}
    return config._replace(plugins=plugins)


def known() -> Known:
    """What configuration files can say to our plugins."""
    from cradled.daemon import config_inert

    ours = {registration.uri: registration.config for registration in REGISTRATIONS}
    return Known({**ours, **config_inert.SECTIONS}, config_inert.REASONS)


async def _journal(context: InitContext) -> Any:
    from cradled.events.journal import Journal

    config: sections.Journal = context.config
    journal = Journal(context.state, config.max_size)
    context.stack.callback(journal.close)
    return journal


async def _exchange(context: InitContext) -> Any:
    from cradled.events.exchange import Exchange

    return Exchange(context.get(*keys.JOURNAL), context.properties["parted"])


async def _sandbox_controllers(context: InitContext) -> Served:
    from cradled.api.sandbox_pb2 import Controller

    def make() -> Any:
        from cradled.services.sandboxes import SandboxControllerService

        type = t.SANDBOX_CONTROLLER
        controllers = {id: context.get(type, id) for id in context.all(type)}
        return SandboxControllerService(
            context.get(*keys.DB), controllers, context.get(*keys.EXCHANGE)
        )

    return [(Controller, Late(make))]


async def _streams(context: InitContext) -> Any:
    from cradled.streaming.manager import Streams

    return Streams()


async def _otlp(context: InitContext) -> Any:
    if not any(name.startswith("OTEL_EXPORTER_OTLP_") for name in os.environ):
        raise SkipPlugin("tracing endpoint not configured")
    from cradled.aio import threads
    from cradled.daemon import otlp

    try:
        settings = otlp.configured(os.environ)
    except otlp.Off as reason:
        raise SkipPlugin(str(reason)) from None
    exporter = otlp.Exporter.start(settings)
    context.stack.push_async_callback(threads.run, "bulk", exporter.close)
    return exporter


async def _tracing(context: InitContext) -> Any:
    if not context.all(t.TRACING):
        raise SkipPlugin("tracing endpoint not configured")


async def _policy_file(context: InitContext) -> Any:
    config: sections.PolicyFile = context.config
    if not config.path:
        raise SkipPlugin("no policy configured")
    from cradled.daemon.policy import PolicyFile

    context.export("path", config.path)
    return PolicyFile(config.path)


async def _policy_python(context: InitContext) -> Any:
    config: sections.PolicyPython = context.config
    if not config.entry_point:
        raise SkipPlugin("no policy configured")
    from cradled.daemon.policy import from_entry_point

    return from_entry_point(config.entry_point)


async def _deprecations(context: InitContext) -> Late:
    began = time.time_ns()

    def make() -> Any:
        from cradled.core import deprecations
        from cradled.linux.cgroup import Cgroup

        found = deprecations.Deprecations()
        names = deprecations.in_sections(context.properties["sections"])
        with open("/proc/self/cgroup", encoding="utf-8", errors="replace") as file:
            if not Cgroup(file.read()).unified:
                names.append(deprecations.CGROUP_V1)
        for name in names:
            found.emit(name, began)
        return found

    return Late(make)


async def _introspection(context: InitContext) -> Served:
    from cradled.api.introspection_pb2 import Introspection
    from cradled.daemon.identity import pid_namespace, server_uuid

    uuid = server_uuid(context.root)

    def make() -> Any:
        from cradled.daemon import listed
        from cradled.daemon.tracing import traces_info
        from cradled.oci import platforms
        from cradled.runtime.info import runtime_info
        from cradled.services.introspection import Identity, IntrospectionService

        return IntrospectionService(
            {**listed.plugins(), **context.loaded},
            Identity(uuid, os.getpid(), pid_namespace()),
            platform=platforms.default(),
            providers={
                keys.TASKS: lambda options: runtime_info(context.get(*keys.SHIMS), options),
                keys.RING: traces_info,
            },
            deprecations=context.get(*keys.DEPRECATIONS).all,
        )

    return [(Introspection, Late(make))]


async def _reflection(context: InitContext) -> Served:
    """Tells, when it is asked, what all plugins serve."""
    from cradled.daemon import late

    def make() -> Any:
        from cradled.services.reflection import ReflectionService

        return ReflectionService(
            lambda: (
                service
                for (type, _), plugin in context.loaded.items()
                if type == t.GRPC
                for service, _ in plugin.instance or ()
            )
        )

    service = Late(make)
    return [
        (late.reflection("v1", "reflection_pb2"), service),
        (late.reflection("v1alpha", "reflection_v1alpha_pb2"), service),
    ]


async def _follow(context: InitContext) -> Served:
    from cradled.daemon import late

    def make() -> Any:
        from cradled.services.journal import JournalService

        return JournalService(context.get(*keys.EXCHANGE), context.get(*keys.JOURNAL))

    return [(late.journal(), Late(make))]


async def _daemon(context: InitContext) -> Served:
    from cradled.daemon import late

    upgrades = context.properties["upgrades"]
    if upgrades is None:
        raise SkipPlugin("this is a library in somebody's program")

    def make() -> Any:
        from cradled.daemon.upgrade_service import DaemonService

        return DaemonService(upgrades)

    return [(late.daemon(), Late(make))]


async def _version(context: InitContext) -> Served:
    from cradled.api.version_pb2 import Version

    def make() -> Any:
        from cradled.services.version import VersionService

        return VersionService(SERVER_VERSION, REVISION)

    return [(Version, Late(make))]


async def _ttrpc_events(context: InitContext) -> Served:
    from cradled.api.events_ttrpc_pb2 import Events

    def make() -> Any:
        from cradled.services.events_ttrpc import EventsTtrpcService

        return EventsTtrpcService(context.get(*keys.TASKS).forward)

    return [(Events, Late(make))]


def _served(
    id: str,
    table: str,
    service: str,
    *needs: tuple[str, str],
    requires: tuple[str, ...] = (t.SERVICE,),
) -> Registration:
    """A plugin whose service takes the instances it ``needs``; both named ``module:name``.

    ``requires`` is what the original's requires, which is what clients are told.
    """

    async def init(context: InitContext) -> Served:
        def make() -> Any:
            return _named("cradled.services", service)(*(context.get(*need) for need in needs))

        return [(_named("cradled.api", table), Late(make))]

    return Registration(t.GRPC, id, requires, init=init)


def _named(package: str, name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(f".{module}", package), attribute)


def _service(name: str, *requires: str) -> Registration:
    return Registration(t.SERVICE, f"{name}-service", requires)


REGISTRATIONS: tuple[Registration, ...] = (
    Registration(*keys.ZYGOTE, init=task_plugins.zygote),
    Registration(*keys.WORKERS, init=storage_plugins.workers),
    Registration(t.CONTENT, "content", init=storage_plugins.content),
    Registration(*keys.JOURNAL, init=_journal, config=sections.Journal),
    Registration(*keys.EXCHANGE, (t.JOURNAL,), init=_exchange),
    Registration(
        t.SNAPSHOTTER,
        "native",
        init=storage_plugins.native,
        config=sections.Native,
        has_platform=True,
    ),
    Registration(
        t.SNAPSHOTTER,
        "overlayfs",
        init=storage_plugins.overlayfs,
        config=sections.Overlay,
        has_platform=True,
    ),
    Registration(
        t.SNAPSHOTTER,
        "btrfs",
        init=storage_plugins.btrfs,
        config=sections.Native,
        has_platform=True,
    ),
    Registration(
        t.SNAPSHOTTER,
        "blockfile",
        init=storage_plugins.blockfile,
        config=sections.Blockfile,
        has_platform=True,
    ),
    Registration(
        t.METADATA,
        "bolt",
        (t.CONTENT, t.EVENT, t.SNAPSHOTTER),
        init=storage_plugins.metadata,
        config=sections.Metadata,
    ),
    Registration(
        t.GC, "scheduler", (t.METADATA,), init=storage_plugins.scheduler, config=sections.Scheduler
    ),
    Registration(t.LEASE, "manager", (t.METADATA, t.GC)),
    Registration(t.SANDBOX_STORE, "local", (t.METADATA,)),
    Registration(*keys.DEPRECATIONS, init=_deprecations),
    Registration(
        *keys.WALKING, (t.METADATA, t.FORKED), init=storage_plugins.walking, has_platform=True
    ),
    Registration(
        *keys.SHIMS, (t.EVENT, t.METADATA, t.FORKED), task_plugins.shims, sections.ShimManager
    ),
    Registration(
        *keys.TASKS,
        (t.SHIM, t.EVENT, t.METADATA, t.JOURNAL),
        init=task_plugins.tasks,
        has_platform=True,
    ),
    Registration(*keys.SANDBOXES, (t.SHIM, t.EVENT), init=task_plugins.sandboxes),
    Registration(*keys.STREAMS, (t.METADATA,), init=_streams),
    Registration(
        *keys.TRANSFERS,
        (t.LEASE, t.METADATA, t.DIFFER, t.SNAPSHOTTER),
        init=storage_plugins.transfers,
        config=sections.Transfer,
    ),
    Registration(t.POLICY, "file", init=_policy_file, config=sections.PolicyFile),
    Registration(t.POLICY, "python", init=_policy_python, config=sections.PolicyPython),
    Registration(*keys.RING),
    METRICS_SERVER,
    TCP_SERVER,
    DEBUG_SERVER,
    GRPC_METRICS,
    Registration(t.TRACING, "otlp", init=_otlp),
    Registration(t.INTERNAL, "tracing", (t.TRACING,), init=_tracing),
    _service("containers", t.EVENT, t.METADATA),
    _service("content", t.METADATA),
    _service("images", t.METADATA, t.GC, t.WARNING),
    _service("introspection", t.WARNING),
    _service("namespaces", t.EVENT, t.METADATA),
    _service("snapshots", t.METADATA),
    _service("tasks", t.EVENT, t.RUNTIME, t.METADATA, t.TASK_MONITOR, t.WARNING),
    Registration(
        *keys.RESTARTS,
        (t.EVENT, t.SERVICE),
        init=task_plugins.restarts,
        config=sections.RestartMonitor,
    ),
    Registration(
        *keys.DIFFERS, (t.METADATA, t.DIFFER), init=storage_plugins.differs, config=sections.Diff
    ),
    _served("containers", "containers_pb2:Containers", "containers:ContainersService", keys.DB),
    _served("content", ".convert.blobs:SERVED", "content:ContentService", keys.DB),
    Registration(t.GRPC, "daemon", init=_daemon),
    _served("diff", "diff_pb2:Diff", "diff:DiffService", keys.DB, keys.DIFFERS),
    _served(
        "events",
        "events_service_pb2:Events",
        "events:EventsService",
        keys.EXCHANGE,
        requires=(t.EVENT,),
    ),
    _served("healthcheck", "health_pb2:Health", "health:HealthService", requires=()),
    _served("images", "images_pb2:Images", "images:ImagesService", keys.DB, keys.GC),
    Registration(t.GRPC, "introspection", (t.SERVICE,), init=_introspection),
    Registration(t.GRPC, "journal", (t.EVENT, t.JOURNAL), init=_follow),
    _served(
        "leases", "leases_pb2:Leases", "leases:LeasesService", keys.DB, keys.GC, requires=(t.LEASE,)
    ),
    _served("mounts", "mounts_pb2:Mounts", "mounts:MountsService", requires=(t.MOUNT_MANAGER,)),
    _served("namespaces", "namespaces_pb2:Namespaces", "namespaces:NamespacesService", keys.DB),
    Registration(t.GRPC, "reflection", init=_reflection),
    Registration(
        t.GRPC,
        "sandbox-controllers",
        (t.POD_SANDBOX, t.SANDBOX_CONTROLLER, t.EVENT),
        init=_sandbox_controllers,
    ),
    _served("sandboxes", "sandbox_pb2:Store", "sandboxes:SandboxStoreService", keys.DB),
    _served("snapshots", "snapshots_pb2:Snapshots", "snapshots:SnapshotsService", keys.DB),
    _served("streaming", "streaming_pb2:Streaming", "streaming:StreamingService", keys.STREAMS),
    _served("tasks", "tasks_pb2:Tasks", "tasks:TasksService", keys.DB, keys.TASKS),
    _served(
        "transfer",
        "transfer_pb2:Transfer",
        "transfer:TransferService",
        keys.DB,
        keys.STREAMS,
        keys.TRANSFERS,
    ),
    Registration(t.GRPC, "version", init=_version),
    Registration(t.TTRPC, "events", (t.RUNTIME,), init=_ttrpc_events),
    _GRPC_SERVER,
    _TTRPC_SERVER,
)
