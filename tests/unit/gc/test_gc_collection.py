"""Collections: what is kept by what, what goes, what happens meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

import pytest
from harness.metadata import World

from cradled import digest, failpoints
from cradled.core.containers import Container, Runtime
from cradled.core.content import ContentInfo
from cradled.core.images import Image
from cradled.core.leases import Resource
from cradled.core.sandboxes import Sandbox
from cradled.core.snapshots import Kind, SnapshotInfo
from cradled.core.values import AnyValue, Descriptor, Labels
from cradled.gc.mark import Marker
from cradled.gc.policy import Config
from cradled.gc.scheduler import Scheduler
from cradled.metadata.db import ScopedDatabase
from cradled.testing.content_suite import digests
from cradled.testing.snapshot_suite import names

GC = "containerd.io/gc."
PAST, FUTURE = "2001-01-01T00:00:00Z", "2901-01-01T00:00:00Z"


async def blob(ns: ScopedDatabase, text: str, labels: Labels | None = None) -> str:
    writer = await ns.content.writer(f"ref-{text}")
    await writer.write(text.encode())
    await writer.commit(0, "", labels or {})
    return digest.of(text.encode())


async def image(ns: ScopedDatabase, name: str, target: str, labels: Labels | None = None) -> None:
    await ns.images.create(Image(name, Descriptor("m", target, 1), labels or {}))


async def container(ns: ScopedDatabase, name: str, key: str, labels: Labels) -> None:
    await ns.containers.create(
        Container(name, labels, "", Runtime("r"), AnyValue("s"), "layers", key)
    )


async def layers(ns: ScopedDatabase, *chain: str, labels: Labels | None = None) -> None:
    """Committed snapshots, each the parent of the next."""
    parent = ""
    snapshots = ns.snapshots("layers")
    for name in chain:
        await snapshots.prepare(f"making {name}", parent, {})
        await snapshots.commit(name, f"making {name}", labels or {})
        parent = name


async def kept(ns: ScopedDatabase) -> set[str]:
    """Everything there is, blobs by what is in them."""
    found = {each.name for each in await ns.images.list()}
    found |= await names(ns.snapshots("layers"))
    found |= {lease.id for lease in await ns.leases.list()}
    for one in await digests(ns.content):
        reader = await ns.content.open(one)
        found.add((await reader.read(0, 100)).decode())
    return found


async def test_nothing_is_nothing(world: World) -> None:
    assert await world.collect() == {}


async def test_an_image_keeps_its_tree(world: World, ns: ScopedDatabase) -> None:
    await layers(ns, "l1", "l2", "loose")
    layer = await blob(ns, "layer")
    config = await blob(ns, "config", {GC + "ref.snapshot.layers": "l2"})
    refs = {GC + "ref.content.config": config, GC + "ref.content.l.0": layer}
    manifest = await blob(ns, "manifest", refs)
    index = await blob(ns, "index", {GC + "ref.content.m.0": manifest})
    await blob(ns, "stray")
    await image(ns, "img", index)
    world.events.take()
    assert await world.collect() == {"content": 1, "snapshot": 1}
    assert world.events.take() == [("ns", "/snapshot/remove")]
    everything = {"img", "index", "manifest", "config", "layer", "l1", "l2"}
    assert await kept(ns) == everything
    await ns.images.delete("img")
    assert await world.collect() == {"content": 4, "snapshot": 2}
    assert await kept(ns) == set()
    assert world.blobs.blobs == {}
    assert world.layers.infos == {}


async def test_references_do_not_cross_namespaces(world: World, ns: ScopedDatabase) -> None:
    target = await blob(ns, "target")
    await image(world.scoped("other"), "img", target)
    assert await world.collect() == {"content": 1}


async def test_roots(world: World, ns: ScopedDatabase) -> None:
    await layers(ns, "parent", "rooted", labels={GC + "root": "x"})
    await blob(ns, "rooted-blob", {GC + "root": "now", GC + "ref.content": digest.of(b"child")})
    await blob(ns, "child")
    await blob(ns, "loose")
    await world.collect()
    assert await kept(ns) == {"parent", "rooted", "rooted-blob", "child"}


async def test_a_container_keeps_its_snapshot_and_references(
    world: World, ns: ScopedDatabase
) -> None:
    await layers(ns, "base")
    await ns.snapshots("layers").prepare("rw", "base", {})
    await image(ns, "old", await blob(ns, "old-content"), {GC + "expire": PAST})
    await container(ns, "c", "rw", {GC + "ref.image.0": "old"})
    assert await world.collect() == {}
    await ns.containers.delete("c")
    await world.collect()
    assert await kept(ns) == set()
    assert world.events.take()[-3:] == [
        ("ns", "/snapshot/remove"), ("ns", "/snapshot/remove"), ("ns", "/images/delete"),
    ]  # fmt: skip


async def test_leases(world: World, ns: ScopedDatabase) -> None:
    await layers(ns, "l1", "l2", "l3")
    inner = await blob(ns, "inner")
    outer = await blob(ns, "outer", {GC + "ref.content": inner})
    await ns.leases.create("l", {GC + "expire": FUTURE})
    await ns.leases.create("invalid", {GC + "expire": "never"})
    await ns.leases.create("expired", {GC + "expire": PAST})
    await ns.leases.add_resource("l", Resource(outer, "content"))
    await ns.leases.add_resource("l", Resource("l2", "snapshots/layers"))
    await ns.leases.add_resource("expired", Resource("l3", "snapshots/layers"))
    assert await world.collect() == {"lease": 1, "snapshot": 1}
    assert await kept(ns) == {"l", "invalid", "outer", "inner", "l1", "l2"}
    await ns.leases.delete_resource("l", Resource(outer, "content"))
    await world.collect()
    assert await kept(ns) == {"l", "invalid", "l1", "l2"}


async def test_a_flat_lease_does_not_follow_labels(world: World, ns: ScopedDatabase) -> None:
    inner = await blob(ns, "inner")
    outer = await blob(ns, "outer", {GC + "ref.content": inner})
    config = await blob(ns, "config", {GC + "ref.snapshot.layers": "other"})
    await layers(ns, "l1", "l2", labels={GC + "ref.content": inner})
    await layers(ns, "other")
    await image(ns, "img", config, {GC + "expire": PAST, GC + "ref.content": inner})
    await ns.leases.create("flat", {GC + "flat": ""})
    await ns.leases.create("l", {GC + "flat": "yes"})
    for resource in (
        Resource(outer, "content"), Resource("l2", "snapshots/layers"), Resource("img", "images"),
    ):  # fmt: skip
        await ns.leases.add_resource("l", resource)
    await world.collect()
    assert await kept(ns) == {"flat", "l", "outer", "l1", "l2", "img", "config"}
    await ns.leases.create("full")
    await blob(ns, "inner")
    await ns.leases.add_resource("full", Resource(outer, "content"))
    await world.collect()
    assert "inner" in await kept(ns)


async def test_expired_images_live_by_back_references(world: World, ns: ScopedDatabase) -> None:
    expires = {GC + "expire": PAST}
    await image(ns, "main", await blob(ns, "main-content"))
    await image(ns, "extra", await blob(ns, "extra-content"), expires | {GC + "bref.image": "main"})
    await image(ns, "gone", await blob(ns, "gone-content"), expires)
    await image(ns, "later", await blob(ns, "later-content"), {GC + "expire": FUTURE})
    await world.collect()
    assert await kept(ns) == {
        "main", "main-content", "extra", "extra-content", "later", "later-content",
    }  # fmt: skip
    await ns.images.delete("main")
    await world.collect()
    assert await kept(ns) == {"later", "later-content"}


async def test_back_references_of_content_and_snapshots(world: World, ns: ScopedDatabase) -> None:
    target = await blob(ns, "target")
    await blob(ns, "attestation", {GC + "bref.content.0": target})
    await layers(ns, "cache", labels={GC + "bref.container.0": "c"})
    await image(ns, "img", target)
    await container(ns, "c", "", {})
    assert await world.collect() == {}
    await ns.containers.delete("c")
    await ns.images.delete("img")
    assert await world.collect() == {"content": 2, "snapshot": 1}


async def test_conditions(world: World, ns: ScopedDatabase) -> None:
    used = {GC + "cond.value-usedat": FUTURE}
    await layers(ns, "fresh", labels=used)
    await layers(ns, "stale", labels={GC + "cond.value-usedat": PAST})
    condition = GC + "cond.snapshot.layers"
    labels = {condition: "usedat<10m|fresh", condition + "/1": "usedat<10m|stale"}
    await image(ns, "img", await blob(ns, "content"), labels)
    await world.collect()
    assert await kept(ns) == {"img", "content", "fresh"}


async def test_an_ingest_keeps_what_it_expects(world: World, ns: ScopedDatabase) -> None:
    writer = await ns.content.writer("r", expected=digest.of(b"wanted"))
    await blob(ns, "wanted")
    assert await world.collect() == {}
    await writer.close()
    await ns.content.abort("r")
    assert await world.collect() == {"content": 1}


@pytest.mark.parametrize("way", ["abort", "lease", "namespace"])
async def test_what_an_ingest_of_old_expected_goes_with_it(world: World, way: str) -> None:
    """The last daemon died after the blob was there, and before it was named."""
    ns = world.scoped("old", "l") if way == "lease" else world.scoped("old")
    if way == "lease":
        await ns.leases.create("l", {})
    await (await ns.content.writer("r", expected=digest.of(b"wanted"))).close()
    writer = await world.blobs.writer("made")
    await writer.write(b"wanted")
    await writer.commit(0, digest.of(b"wanted"), {})
    await world.reopen()
    await world.collect()
    assert world.blobs.blobs.keys() == {digest.of(b"wanted")}
    if way == "abort":
        await world.scoped("old").content.abort("r")
    elif way == "lease":
        await world.scoped("old").leases.delete("l")
    else:
        await world.db.namespaces.delete("old")
    await world.collect()
    assert world.blobs.blobs == {}


async def busy_collect(world: World, actions: Iterable[object]) -> dict[str, int]:
    """A collection during whose marking each action is awaited."""
    collection = world.db.collection()
    await collection.load()
    marker = Marker(collection.successors)
    marker.mark_on(collection.roots)
    for action in actions:
        await action  # type: ignore[misc]
    stats = await collection.sweep(marker.marked, marker.mark_on)
    collection.close()
    await collection.clean()
    return dict(stats.removed)


async def test_what_is_referred_to_meanwhile_stays(world: World, ns: ScopedDatabase) -> None:
    inner = await blob(ns, "inner")
    outer = await blob(ns, "outer", {GC + "ref.content": inner})
    labelled = await blob(ns, "labelled")
    child = await blob(ns, "child")
    leased = await blob(ns, "leased")
    await layers(ns, "l1", "l2")
    await layers(ns, "m1")
    await layers(ns, "goes")
    await ns.leases.create("l")
    info = ContentInfo(labelled, 0, labels={GC + "ref.content": child})
    assert await busy_collect(
        world,
        (
            image(ns, "img", outer),
            ns.content.update(info),
            ns.leases.add_resource("l", Resource(leased, "content")),
            ns.snapshots("layers").prepare("k", "l2", {}),
            container(ns, "c", "m1", {}),
        ),
    ) == {"snapshot": 1}
    assert await kept(ns) == {
        "img", "inner", "outer", "labelled", "child", "l", "leased", "l1", "l2", "k", "m1",
    }  # fmt: skip


async def test_what_is_made_anew_meanwhile_stays(world: World, ns: ScopedDatabase) -> None:
    old = await blob(ns, "blob")
    await layers(ns, "layer")
    snapshots = ns.snapshots("layers")

    async def again() -> None:
        await ns.content.delete(old)
        await blob(ns, "blob")
        await snapshots.remove("layer")
        await layers(ns, "layer")

    assert await busy_collect(world, [again()]) == {}
    assert await kept(ns) == {"blob", "layer"}


async def test_what_changes_between_two_batches_is_heeded(
    world: World, ns: ScopedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cradled.metadata.gc.BATCH", 1)
    blobs = [await blob(ns, f"b{i}") for i in range(6)]
    tasks = []

    def refer() -> None:
        if not tasks:
            tasks.append(asyncio.ensure_future(image(ns, "img", max(blobs))))

    with failpoints.armed("metadata.gc.swept", refer):
        assert await world.collect() == {"content": 5}
    await tasks[0]
    assert len(await digests(ns.content)) == 1
    assert set(world.blobs.blobs) == {max(blobs)}


async def test_writers_go_on_while_collecting(world: World, ns: ScopedDatabase) -> None:
    """Images come and go under many collections; a living image's content is always there."""

    async def user(number: int) -> None:
        for turn in range(8):
            scope = world.scoped(lease=f"l{number}")
            await ns.leases.create(f"l{number}")
            inner = await blob(scope, f"inner {number} {turn}")
            outer = await blob(scope, f"outer {number} {turn}", {GC + "ref.content": inner})
            await image(scope, f"img{number}", outer)
            await ns.leases.delete(f"l{number}")
            await asyncio.sleep(0.001)
            for each in (inner, outer):
                reader = await ns.content.open(each)
                assert await reader.read(0, 5) in (b"inner", b"outer")
            await ns.images.delete(f"img{number}")

    async def collector() -> None:
        while True:
            await scheduler.collect()

    scheduler = Scheduler(world.db)
    collecting = asyncio.ensure_future(collector())
    await asyncio.gather(*(user(number) for number in range(6)))
    collecting.cancel()
    await asyncio.gather(collecting, return_exceptions=True)
    await scheduler.collect()
    await scheduler.aclose()
    assert await kept(ns) == set()
    assert world.blobs.blobs == {}


async def test_a_collection_broken_off_forgets_no_orphan(world: World, ns: ScopedDatabase) -> None:
    """Whoever asked for it may go away just when its deletions become durable."""
    scheduler = Scheduler(world.db)
    await scheduler.collect()  # the first one compares whole backends, and would find any orphan
    await blob(ns, "stray")
    collecting = asyncio.ensure_future(scheduler.collect())
    loop = asyncio.get_running_loop()

    def leave_once_deleted() -> None:
        rows = reader.execute("SELECT count(*) FROM content").fetchone()
        if rows == (0,):
            loop.call_soon_threadsafe(collecting.cancel)

    reader = world.db.engine.reader()
    with failpoints.armed("metadata.after_commit", leave_once_deleted):
        await asyncio.gather(collecting, return_exceptions=True)
    reader.close()
    assert collecting.cancelled()
    await scheduler.collect()
    await scheduler.aclose()
    assert world.blobs.blobs == {}


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(30_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise TimeoutError


class TestScheduler:
    async def test_it_collects_after_its_startup_delay_and_after_deletions(
        self, world: World, ns: ScopedDatabase
    ) -> None:
        scheduler = Scheduler(world.db, Config(pause_threshold=0.5, startup_delay=0.0))
        await blob(ns, "stray")
        scheduler.start()
        scheduler.start()
        await until(lambda: not world.blobs.blobs)
        await image(ns, "img", await blob(ns, "content"))
        await ns.images.delete("img")
        await until(lambda: not world.blobs.blobs)
        await scheduler.aclose()
        await scheduler.aclose()

    async def test_what_expires_makes_it_collect(self, world: World, ns: ScopedDatabase) -> None:
        scheduler = Scheduler(world.db, Config(pause_threshold=0.5, startup_delay=0.0))
        scheduler.start()
        await image(ns, "far", await blob(ns, "far"), {f"{GC}expire": FUTURE})
        soon = datetime.now(UTC) + timedelta(seconds=0.2)
        await image(ns, "near", await blob(ns, "near"), {f"{GC}expire": soon.isoformat()})
        await until(lambda: len(world.blobs.blobs) == 1)
        assert datetime.now(UTC) > soon
        await scheduler.aclose()

    async def test_expiry_is_known_after_a_restart(self, world: World, ns: ScopedDatabase) -> None:
        soon = datetime.now(UTC) + timedelta(seconds=0.3)
        lease = await ns.leases.create("l", {f"{GC}expire": soon.isoformat()})
        await ns.leases.add_resource(lease.id, Resource(await blob(ns, "held"), "content"))
        scheduler = Scheduler(world.db, Config(pause_threshold=0.5, startup_delay=0.0))
        scheduler.start()
        await until(lambda: not world.blobs.blobs)
        assert datetime.now(UTC) > soon
        assert await ns.leases.list() == []
        await scheduler.aclose()

    async def test_a_failure_is_not_the_end(self, world: World, ns: ScopedDatabase) -> None:
        def fail() -> None:
            raise RuntimeError("broken")

        scheduler = Scheduler(world.db, Config(pause_threshold=0.5, startup_delay=0.0))
        await blob(ns, "stray")
        with failpoints.armed("metadata.gc.swept", fail), pytest.raises(RuntimeError):
            await scheduler.collect()
        await blob(ns, "another")
        await scheduler.collect()
        assert world.blobs.blobs == {}
        await scheduler.aclose()

    async def test_callers_at_once_share_one(self, world: World, ns: ScopedDatabase) -> None:
        scheduler = Scheduler(world.db)
        running, *waiting = await asyncio.gather(*(scheduler.collect() for _ in range(5)))
        assert all(stats is waiting[0] for stats in waiting)
        assert running is not waiting[0]
        assert await scheduler.collect() is not waiting[0]
        await scheduler.aclose()

    async def test_one_that_began_before_does_not_count(
        self, world: World, ns: ScopedDatabase
    ) -> None:
        """What was deleted before the call is gone when it returns."""
        scheduler = Scheduler(world.db)
        target = await blob(ns, "content")
        await image(ns, "img", target)
        running = asyncio.ensure_future(scheduler.collect())
        await asyncio.sleep(0)
        await ns.images.delete("img")
        await scheduler.collect()
        assert world.blobs.blobs == {}
        await running
        await scheduler.aclose()


async def test_a_snapshot_label_update_can_root_it(world: World, ns: ScopedDatabase) -> None:
    await layers(ns, "l1")
    root = SnapshotInfo("l1", Kind.COMMITTED, labels={GC + "root": "x"})
    await ns.snapshots("layers").update(root, [f"labels.{GC}root"])
    assert await world.collect() == {}
    unroot = SnapshotInfo("l1", Kind.COMMITTED)
    await ns.snapshots("layers").update(unroot, [f"labels.{GC}root"])
    assert await world.collect() == {"snapshot": 1}


async def test_a_backend_that_fails_spoils_nothing_else(
    world: World, ns: ScopedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    await blob(ns, "stray")
    await layers(ns, "loose")

    async def fail() -> None:
        raise OSError("snapshotter is gone")

    async def refuse(key: str, /) -> None:
        raise OSError("busy")

    with monkeypatch.context() as patch:
        patch.setattr(world.layers, "cleanup", fail)
        patch.setattr(world.layers, "remove", refuse)
        assert await world.collect() == {"content": 1, "snapshot": 1}
    assert world.blobs.blobs == {}
    assert len(world.layers.infos) == 1
    await world.collect()
    assert world.layers.infos == {}


async def test_ingests_of_a_deleted_namespace_go(world: World, ns: ScopedDatabase) -> None:
    await world.collect()
    await (await ns.content.writer("r")).close()
    await world.db.namespaces.delete("ns")
    await world.collect()
    assert world.blobs.ingests == {}


async def test_a_sandbox_keeps_what_its_labels_name(world: World, ns: ScopedDatabase) -> None:
    await layers(ns, "base", "top")
    labels = {GC + "ref.content": await blob(ns, "kept"), GC + "ref.snapshot.layers": "top"}
    await ns.sandboxes.create(Sandbox("s", Runtime("r"), labels=labels))
    assert await world.collect() == {}
    await ns.sandboxes.delete("s")
    assert await world.collect() == {"content": 1, "snapshot": 2}
