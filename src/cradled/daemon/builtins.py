"""Async. The plugins this daemon is made of: one table, and how each is made.

Cheap to import: what an ``init`` needs is imported when it runs. A plugin of type GRPC or TTRPC
gives what it serves as pairs of a service's table and its implementation; the service plugins
of the original, which only hand on, are listed because clients ask for them.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

from cradled.daemon import durations, sections
from cradled.daemon.config import Config
from cradled.daemon.config_file import Known
from cradled.plugin import types as t
from cradled.plugin.types import InitContext, Late, Registration, SkipPlugin
from cradled.version import REVISION, SERVER_VERSION

_LEFTOVERS_SECONDS = 10.0
_RESTART_SECONDS = 10.0

Served = list[tuple[Any, object]]

_DB = (t.METADATA, "bolt")
_DEPRECATIONS = (t.WARNING, "deprecations")
_DIFFERS = (t.SERVICE, "diff-service")
_EXCHANGE = (t.EVENT, "exchange")
_GC = (t.GC, "scheduler")
_RESTARTS = (t.CONTAINER_MONITOR, "restart")
_JOURNAL = (t.JOURNAL, "events")
_SANDBOXES = (t.SANDBOX_CONTROLLER, "shim")
_SHIMS = (t.SHIM, "manager")
_STREAMS = (t.STREAMING, "manager")
_TASKS = (t.RUNTIME, "task")
_TRANSFERS = (t.TRANSFER, "local")
_WALKING = (t.DIFFER, "walking")
_WORKERS = (t.FORKED, "workers")
_RING = (t.SPANS, "ring")
_ZYGOTE = (t.FORKED, "zygote")

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


async def _content(context: InitContext) -> Any:
    from cradled.content.local import open_store

    context.export("root", context.root)
    return await open_store(context.root)


async def _journal(context: InitContext) -> Any:
    from cradled.events.journal import Journal

    config: sections.Journal = context.config
    journal = Journal(context.state, config.max_size)
    context.stack.callback(journal.close)
    return journal


async def _exchange(context: InitContext) -> Any:
    from cradled.events.exchange import Exchange

    return Exchange(context.get(*_JOURNAL), context.properties["parted"])


async def _overlayfs(context: InitContext) -> Any:
    from cradled.snapshotters.overlay import OverlaySnapshotter

    config: sections.Overlay = context.config
    snapshotter = OverlaySnapshotter(
        config.root_path or context.root,
        upperdir_label=config.upperdir_label,
        slow_chown=config.slow_chown,
        sync_remove=config.sync_remove,
        mount_options=config.mount_options,
    )
    await snapshotter.start()
    context.stack.push_async_callback(snapshotter.aclose)
    context.export("root", snapshotter.root)
    context.plugin.capabilities.extend(snapshotter.capabilities)
    return snapshotter


async def _native(context: InitContext) -> Any:
    from cradled.snapshotters.native import NativeSnapshotter

    config: sections.Native = context.config
    snapshotter = NativeSnapshotter(config.root_path or context.root)
    await snapshotter.start()
    context.stack.push_async_callback(snapshotter.aclose)
    context.export("root", snapshotter.root)
    return snapshotter


def _single(context: InitContext, type: str) -> Any:
    found = context.all(type)
    if len(found) != 1:
        names = ", ".join(sorted(found)) or "none"
        raise LookupError(f"one plugin of type {type} is needed, not {names}: disable the others")
    return next(iter(found.values()))


def _any_btrfs() -> bool:
    with open("/proc/self/mountinfo", "rb") as file:
        return b" - btrfs " in file.read()


async def _btrfs(context: InitContext) -> Any:
    config: sections.Native = context.config
    root = config.root_path or context.root
    if not _any_btrfs():
        raise SkipPlugin(f"{root} is not on btrfs")
    from cradled.linux import btrfs

    os.makedirs(root, mode=0o700, exist_ok=True)
    try:
        btrfs.device(root)
    except ValueError as error:
        raise SkipPlugin(str(error)) from None
    from cradled.snapshotters.btrfs import BtrfsSnapshotter

    snapshotter = BtrfsSnapshotter(root)
    await snapshotter.start()
    context.stack.push_async_callback(snapshotter.aclose)
    context.export("root", snapshotter.root)
    return snapshotter


async def _blockfile(context: InitContext) -> Any:
    config: sections.Blockfile = context.config
    root = config.root_path or context.root
    if not (config.scratch_file or os.path.exists(f"{root}/scratch")):
        raise SkipPlugin("no scratch file configured")
    from cradled.snapshotters.blockfile import BlockfileSnapshotter

    options = config._asdict()
    del options["root_path"]
    snapshotter = BlockfileSnapshotter(root, **options)
    await snapshotter.start()
    context.stack.push_async_callback(snapshotter.aclose)
    context.export("root", snapshotter.root)
    return snapshotter


async def _metadata(context: InitContext) -> Any:
    from cradled.metadata.db import Database

    config: sections.Metadata = context.config
    os.makedirs(context.root, mode=0o700, exist_ok=True)
    path = f"{context.root}/meta.db"
    db = await Database.open(
        path,
        content=_single(context, t.CONTENT),
        snapshotters=context.all(t.SNAPSHOTTER),
        publisher=context.get(*_EXCHANGE),
        isolated=config.content_sharing_policy == "isolated",
        durable=not config.no_sync,
    )
    context.stack.push_async_callback(db.aclose)
    if db.rebuild is not None:
        from cradled.repair import rebuild

        stores = rebuild.Stores(
            _single(context, t.CONTENT),
            context.all(t.SNAPSHOTTER),
            f"{context.state_base}/{t.RUNTIME}.task",
            config.content_sharing_policy == "isolated",
        )
        await rebuild.take_in(db, stores)
    context.export("path", path)
    context.export("policy", config.content_sharing_policy)
    return db


async def _scheduler(context: InitContext) -> Any:
    from cradled.gc.policy import Config as Policy
    from cradled.gc.scheduler import Scheduler

    config: sections.Scheduler = context.config
    context.export("PauseThreshold", f"{config.pause_threshold:g}")
    context.export("DeletionThreshold", str(config.deletion_threshold))
    context.export("MutationThreshold", str(config.mutation_threshold))
    context.export("ScheduleDelay", config.schedule_delay)
    policy = Policy(
        pause_threshold=config.pause_threshold,
        deletion_threshold=config.deletion_threshold,
        mutation_threshold=config.mutation_threshold,
        schedule_delay=durations.seconds(config.schedule_delay),
        startup_delay=durations.seconds(config.startup_delay),
    )
    scheduler = Scheduler(context.get(*_DB), policy)
    context.stack.push_async_callback(scheduler.aclose)
    return scheduler


async def _zygote(context: InitContext) -> Any:
    from cradled.zygote.client import Zygote

    zygote = Zygote()
    context.stack.push_async_callback(zygote.aclose)
    return zygote


async def _shims(context: InitContext) -> Any:
    from cradled.runtime.bootstrap import SOCKET_DIR_LIMIT, Daemon
    from cradled.runtime.launcher import WHOLE_NAMESPACE, Launchers
    from cradled.runtime.timeouts import Timeouts

    config: sections.ShimManager = context.config
    if len(config.socket_dir) > SOCKET_DIR_LIMIT:
        raise ValueError(f"socket_dir is longer than {SOCKET_DIR_LIMIT} characters")
    timeout: Callable[[str], float] = context.properties["timeout"]
    daemon = Daemon(
        grpc_address=context.properties["grpc_address"],
        ttrpc_address=context.properties["ttrpc_address"],
        socket_dir=config.socket_dir or f"{context.state_base}/s",
        env=dict(item.partition("=")[::2] for item in config.env),
        debug=context.properties["debug"] == "true",
        timeouts=Timeouts(
            start=timeout("shim.start") or None,
            runtime=timeout("runtime.command") or None,
            load=timeout("shim.load") or None,
            cleanup=timeout("shim.cleanup") or None,
            shutdown=timeout("shim.shutdown") or None,
            state=timeout("task.state") or None,
            stats=timeout("metrics.shimstats") or None,
        ),
    )
    return Launchers(
        daemon,
        context.get(*_ZYGOTE),
        runc_root=f"{context.state_base}/runc",
        default_binary=config.binary_name,
        shims=config.shims,
        group=WHOLE_NAMESPACE if config.grouping else "",
    )


async def _tasks(context: InitContext) -> Any:
    from cradled.runtime.assembly import Assembly
    from cradled.runtime.manager import TaskManager
    from cradled.runtime.shims import Shims

    db = context.get(*_DB)

    def checkpoints() -> Any:
        from cradled.runtime.checkpoints import Checkpoints

        return Checkpoints(context.get(*_DIFFERS), lambda scope: db.scoped(scope).content)

    async def sandbox(scope: Any, id: str) -> Any:
        await db.scoped(scope).sandboxes.get(id)
        plugin = context.loaded.get(_SANDBOXES)
        made = None if plugin is None or plugin.instance is None else plugin.instance.made
        return None if made is None else made.endpoint(scope, id)

    shims = Shims(context.state, context.root, context.get(*_SHIMS))
    manager = TaskManager(
        Assembly(shims, checkpoints, sandbox),
        lambda scope, id: db.scoped(scope).containers.get(id),
        context.get(*_EXCHANGE),
    )
    context.stack.push_async_callback(manager.aclose)
    context.export("log-uri-schemes", "fifo,binary,file")
    context.export("state", context.state_base)
    await manager.recover(context.get(*_JOURNAL).exits())
    return manager


async def _sandboxes(context: InitContext) -> Late:
    def make() -> Any:
        from cradled.runtime.sandbox import ShimSandboxes
        from cradled.runtime.shims import Shims

        return ShimSandboxes(Shims(context.state, context.root, context.get(*_SHIMS)))

    async def close() -> None:
        if late.made is not None:
            await late.made.aclose()

    late = Late(make)
    context.stack.push_async_callback(close)
    if os.path.isdir(context.state):  # there was one, once
        await late.get().recover()
    return late


async def _sandbox_controllers(context: InitContext) -> Served:
    from cradled.api.sandbox_pb2 import Controller

    def make() -> Any:
        from cradled.services.sandboxes import SandboxControllerService

        type = t.SANDBOX_CONTROLLER
        controllers = {id: context.get(type, id) for id in context.all(type)}
        return SandboxControllerService(context.get(*_DB), controllers, context.get(*_EXCHANGE))

    return [(Controller, Late(make))]


async def _restarts(context: InitContext) -> Any:
    from cradled.core.restart import NAMES
    from cradled.daemon.restart_gate import Gate

    config: sections.RestartMonitor = context.config
    interval = durations.seconds(config.interval) or _RESTART_SECONDS
    context.plugin.capabilities.extend(NAMES)
    gate = Gate(context.get(*_DB), context.get(*_EXCHANGE), context.properties["client"], interval)
    context.stack.push_async_callback(gate.aclose)
    return gate


async def _workers(context: InitContext) -> Any:
    from cradled.aio import threads
    from cradled.workers import leftovers
    from cradled.workers.pool import Pool

    if not await threads.run("fs", leftovers.wait, context.root_base, _LEFTOVERS_SECONDS):
        raise TimeoutError("workers of the daemon before are still there")
    pool = Pool(context.get(*_ZYGOTE), context.root_base)
    context.stack.push_async_callback(pool.aclose)
    return pool


async def _walking(context: InitContext) -> Late:
    def make() -> Any:
        from cradled.differs.processors import Processor
        from cradled.differs.walking import WalkingDiffer

        configured = context.properties["stream_processors"]
        # The last one first, as in the original: the built-in ones come first in the file.
        processors = [Processor(id, **entry._asdict()) for id, entry in configured.items()][::-1]
        return WalkingDiffer(context.get(*_WORKERS), processors)

    return Late(make)


async def _differs(context: InitContext) -> Late:
    config: sections.Diff = context.config
    for id in config.default:
        if (t.DIFFER, id) not in context.loaded:
            raise LookupError(f'needed differ "{id}" not loaded')

    def make() -> Any:
        from cradled.differs.ordered import OrderedDiffers

        differs = [context.get(t.DIFFER, id) for id in config.default]
        return OrderedDiffers(differs, sync_fs=config.sync_fs)

    return Late(make)


async def _streams(context: InitContext) -> Any:
    from cradled.streaming.manager import Streams

    return Streams()


async def _transfers(context: InitContext) -> Late:
    config: sections.Transfer = context.config
    rebasing = {
        id
        for (type, id), plugin in context.loaded.items()
        if type == t.SNAPSHOTTER and "rebase" in plugin.capabilities
    }

    def make() -> Any:
        from cradled.transfer.service import Transfers
        from cradled.transfer.unpack import Unpacker

        width = config.max_concurrent_unpacks or os.cpu_count() or 1
        differs = context.get(*_DIFFERS)
        walking = context.get(*_WALKING)
        apart = walking if differs.first is walking else None
        return Transfers(Unpacker(differs, apart=apart, rebasing=rebasing, width=width))

    return Late(make)


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
                _TASKS: lambda options: runtime_info(context.get(*_SHIMS), options),
                _RING: traces_info,
            },
            deprecations=context.get(*_DEPRECATIONS).all,
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

        return JournalService(context.get(*_EXCHANGE), context.get(*_JOURNAL))

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

        return EventsTtrpcService(context.get(*_TASKS).forward)

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
    Registration(*_ZYGOTE, init=_zygote),
    Registration(*_WORKERS, init=_workers),
    Registration(t.CONTENT, "content", init=_content),
    Registration(*_JOURNAL, init=_journal, config=sections.Journal),
    Registration(*_EXCHANGE, (t.JOURNAL,), init=_exchange),
    Registration(t.SNAPSHOTTER, "native", init=_native, config=sections.Native, has_platform=True),
    Registration(
        t.SNAPSHOTTER, "overlayfs", init=_overlayfs, config=sections.Overlay, has_platform=True
    ),
    Registration(t.SNAPSHOTTER, "btrfs", init=_btrfs, config=sections.Native, has_platform=True),
    Registration(
        t.SNAPSHOTTER, "blockfile", init=_blockfile, config=sections.Blockfile, has_platform=True
    ),
    Registration(
        t.METADATA,
        "bolt",
        (t.CONTENT, t.EVENT, t.SNAPSHOTTER),
        init=_metadata,
        config=sections.Metadata,
    ),
    Registration(t.GC, "scheduler", (t.METADATA,), init=_scheduler, config=sections.Scheduler),
    Registration(t.LEASE, "manager", (t.METADATA, t.GC)),
    Registration(t.SANDBOX_STORE, "local", (t.METADATA,)),
    Registration(*_DEPRECATIONS, init=_deprecations),
    Registration(*_WALKING, (t.METADATA, t.FORKED), init=_walking, has_platform=True),
    Registration(*_SHIMS, (t.EVENT, t.METADATA, t.FORKED), _shims, sections.ShimManager),
    Registration(*_TASKS, (t.SHIM, t.EVENT, t.METADATA, t.JOURNAL), init=_tasks, has_platform=True),
    Registration(*_SANDBOXES, (t.SHIM, t.EVENT), init=_sandboxes),
    Registration(*_STREAMS, (t.METADATA,), init=_streams),
    Registration(
        *_TRANSFERS,
        (t.LEASE, t.METADATA, t.DIFFER, t.SNAPSHOTTER),
        init=_transfers,
        config=sections.Transfer,
    ),
    Registration(t.POLICY, "file", init=_policy_file, config=sections.PolicyFile),
    Registration(t.POLICY, "python", init=_policy_python, config=sections.PolicyPython),
    Registration(*_RING),
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
    Registration(*_RESTARTS, (t.EVENT, t.SERVICE), init=_restarts, config=sections.RestartMonitor),
    Registration(*_DIFFERS, (t.METADATA, t.DIFFER), init=_differs, config=sections.Diff),
    _served("containers", "containers_pb2:Containers", "containers:ContainersService", _DB),
    _served("content", ".convert.blobs:SERVED", "content:ContentService", _DB),
    Registration(t.GRPC, "daemon", init=_daemon),
    _served("diff", "diff_pb2:Diff", "diff:DiffService", _DB, _DIFFERS),
    _served(
        "events",
        "events_service_pb2:Events",
        "events:EventsService",
        _EXCHANGE,
        requires=(t.EVENT,),
    ),
    _served("healthcheck", "health_pb2:Health", "health:HealthService", requires=()),
    _served("images", "images_pb2:Images", "images:ImagesService", _DB, _GC),
    Registration(t.GRPC, "introspection", (t.SERVICE,), init=_introspection),
    Registration(t.GRPC, "journal", (t.EVENT, t.JOURNAL), init=_follow),
    _served("leases", "leases_pb2:Leases", "leases:LeasesService", _DB, _GC, requires=(t.LEASE,)),
    _served("mounts", "mounts_pb2:Mounts", "mounts:MountsService", requires=(t.MOUNT_MANAGER,)),
    _served("namespaces", "namespaces_pb2:Namespaces", "namespaces:NamespacesService", _DB),
    Registration(t.GRPC, "reflection", init=_reflection),
    Registration(
        t.GRPC,
        "sandbox-controllers",
        (t.POD_SANDBOX, t.SANDBOX_CONTROLLER, t.EVENT),
        init=_sandbox_controllers,
    ),
    _served("sandboxes", "sandbox_pb2:Store", "sandboxes:SandboxStoreService", _DB),
    _served("snapshots", "snapshots_pb2:Snapshots", "snapshots:SnapshotsService", _DB),
    _served("streaming", "streaming_pb2:Streaming", "streaming:StreamingService", _STREAMS),
    _served("tasks", "tasks_pb2:Tasks", "tasks:TasksService", _DB, _TASKS),
    _served(
        "transfer", "transfer_pb2:Transfer", "transfer:TransferService", _DB, _STREAMS, _TRANSFERS
    ),
    Registration(t.GRPC, "version", init=_version),
    Registration(t.TTRPC, "events", (t.RUNTIME,), init=_ttrpc_events),
    _GRPC_SERVER,
    _TTRPC_SERVER,
)
