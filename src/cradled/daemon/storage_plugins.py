"""Async. How the plugins are made that keep images: stores, snapshotters, metadata, differs.

Cheap to import: what one needs is imported when it is made.
"""

from __future__ import annotations

import os
from typing import Any

from cradled.daemon import durations, sections
from cradled.daemon import plugin_keys as keys
from cradled.plugin import types as t
from cradled.plugin.types import InitContext, Late, SkipPlugin

_LEFTOVERS_SECONDS = 10.0


async def content(context: InitContext) -> Any:
    from cradled.content.local import open_store

    context.export("root", context.root)
    return await open_store(context.root)


async def overlayfs(context: InitContext) -> Any:
    from cradled.snapshotters.overlay import OverlaySnapshotter

    config: sections.Overlay = context.config
    options = config._asdict()
    root = options.pop("root_path") or context.root
    return await _started(context, OverlaySnapshotter(root, **options))


async def native(context: InitContext) -> Any:
    from cradled.snapshotters.native import NativeSnapshotter

    return await _started(context, NativeSnapshotter(context.config.root_path or context.root))


async def btrfs(context: InitContext) -> Any:
    root = context.config.root_path or context.root
    if not _any_btrfs():  # mostly: then nothing needs to be imported to tell
        raise SkipPlugin(f"{root} is not on btrfs")
    from cradled.errors import FailedPrecondition
    from cradled.snapshotters.btrfs import BtrfsSnapshotter

    try:
        return await _started(context, BtrfsSnapshotter(root))
    except FailedPrecondition as error:
        raise SkipPlugin(str(error)) from None


async def blockfile(context: InitContext) -> Any:
    config: sections.Blockfile = context.config
    options = config._asdict()
    root = options.pop("root_path") or context.root
    if not (config.scratch_file or os.path.exists(f"{root}/scratch")):
        raise SkipPlugin("no scratch file configured")
    from cradled.snapshotters.blockfile import BlockfileSnapshotter

    return await _started(context, BlockfileSnapshotter(root, **options))


async def _started(context: InitContext, snapshotter: Any) -> Any:
    await snapshotter.start()
    context.stack.push_async_callback(snapshotter.aclose)
    context.export("root", snapshotter.root)
    context.plugin.capabilities.extend(snapshotter.capabilities)
    return snapshotter


def _any_btrfs() -> bool:
    with open("/proc/self/mountinfo", "rb") as file:
        return b" - btrfs " in file.read()


async def metadata(context: InitContext) -> Any:
    from cradled.metadata.db import Database

    config: sections.Metadata = context.config
    os.makedirs(context.root, mode=0o700, exist_ok=True)
    path = f"{context.root}/meta.db"
    content, snapshotters = _single(context, t.CONTENT), context.all(t.SNAPSHOTTER)
    isolated = config.content_sharing_policy == "isolated"
    db = await Database.open(
        path,
        content=content,
        snapshotters=snapshotters,
        publisher=context.get(*keys.EXCHANGE),
        isolated=isolated,
        durable=not config.no_sync,
    )
    context.stack.push_async_callback(db.aclose)
    if db.rebuild is not None:
        from cradled.repair import rebuild

        bundles = f"{context.state_base}/{t.RUNTIME}.task"
        await rebuild.take_in(db, rebuild.Stores(content, snapshotters, bundles, isolated))
    context.export("path", path)
    context.export("policy", config.content_sharing_policy)
    return db


def _single(context: InitContext, type: str) -> Any:
    found = context.all(type)
    if len(found) != 1:
        names = ", ".join(sorted(found)) or "none"
        raise LookupError(f"one plugin of type {type} is needed, not {names}: disable the others")
    return next(iter(found.values()))


async def scheduler(context: InitContext) -> Any:
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
    scheduler = Scheduler(context.get(*keys.DB), policy)
    context.stack.push_async_callback(scheduler.aclose)
    return scheduler


async def workers(context: InitContext) -> Any:
    from cradled.aio import threads
    from cradled.workers import leftovers
    from cradled.workers.pool import Pool

    if not await threads.run("fs", leftovers.wait, context.root_base, _LEFTOVERS_SECONDS):
        raise TimeoutError("workers of the daemon before are still there")
    pool = Pool(context.get(*keys.ZYGOTE), context.root_base)
    context.stack.push_async_callback(pool.aclose)
    return pool


async def walking(context: InitContext) -> Late:
    def make() -> Any:
        from cradled.differs.processors import Processor
        from cradled.differs.walking import WalkingDiffer

        configured = context.properties["stream_processors"]
        # The last one first, as in the original: the built-in ones come first in the file.
        processors = [Processor(id, **entry._asdict()) for id, entry in configured.items()][::-1]
        return WalkingDiffer(context.get(*keys.WORKERS), processors)

    return Late(make)


async def differs(context: InitContext) -> Late:
    config: sections.Diff = context.config
    for id in config.default:
        if (t.DIFFER, id) not in context.loaded:
            raise LookupError(f'needed differ "{id}" not loaded')

    def make() -> Any:
        from cradled.differs.ordered import OrderedDiffers

        differs = [context.get(t.DIFFER, id) for id in config.default]
        return OrderedDiffers(differs, sync_fs=config.sync_fs)

    return Late(make)


async def transfers(context: InitContext) -> Late:
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
        differs = context.get(*keys.DIFFERS)
        walking = context.get(*keys.WALKING)
        apart = walking if differs.first is walking else None
        return Transfers(Unpacker(differs, apart=apart, rebasing=rebasing, width=width))

    return Late(make)
