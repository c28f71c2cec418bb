"""The namespaced snapshotter: names, labels, targets, events, and what a crash leaves."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import Any

import pytest
from harness.metadata import World

from cradled import failpoints
from cradled.core.leases import Resource
from cradled.core.mount import Mount
from cradled.core.snapshots import Kind, SnapshotInfo
from cradled.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from cradled.metadata import janitor as janitors
from cradled.metadata.db import ScopedDatabase
from cradled.metadata.snapshots import Snapshots
from cradled.testing.snapshot_suite import layer, names

TARGET = "containerd.io/snapshot.ref"


@pytest.fixture
def snapshots(ns: ScopedDatabase) -> Snapshots:
    return ns.snapshots("layers")


def die() -> None:
    """What a task sees when its daemon goes down in order; a crash leaves the same on disk."""
    raise asyncio.CancelledError


async def test_unknown_snapshotter(ns: ScopedDatabase) -> None:
    with pytest.raises(InvalidArgument) as caught:
        ns.snapshots("x")
    assert str(caught.value) == "snapshotter not loaded: x: invalid argument"


async def test_events(world: World, snapshots: Snapshots) -> None:
    await layer(snapshots, "n")
    await snapshots.view("v", "n", {})
    await snapshots.remove("v")
    assert [topic for _, topic in world.events.take()] == [
        "/snapshot/prepare", "/snapshot/commit", "/snapshot/remove",
    ]  # fmt: skip


async def test_namespaces_do_not_meet(world: World, snapshots: Snapshots) -> None:
    await layer(snapshots, "n")
    other = world.scoped("other").snapshots("layers")
    assert await names(other) == set()
    with pytest.raises(NotFound, match="parent snapshot n does not exist"):
        await other.prepare("k", "n", {})
    await layer(other, "n")
    await other.remove("n")
    assert await names(snapshots) == {"n"}


async def test_the_backend_sees_only_labels_that_are_meant_for_it(
    world: World, snapshots: Snapshots
) -> None:
    mine = {"a": "1", "containerd.io/gc.root": "now"}
    its = {"containerd.io/snapshot/x": "2", TARGET: "t"}
    await snapshots.prepare("k", "", mine | its)
    (info,) = world.layers.infos.values()
    assert info.labels == its
    assert (await snapshots.stat("k")).labels == mine | its
    await snapshots.update(SnapshotInfo("k", Kind.ACTIVE, labels={"b": "3"}), ["labels.b"])
    assert world.layers.infos[info.name].updated_at == info.updated_at
    change = SnapshotInfo("k", Kind.ACTIVE, labels={"containerd.io/snapshot/x": "4"})
    await snapshots.update(change, ["labels.containerd.io/snapshot/x"])
    assert world.layers.infos[info.name].labels == its | {"containerd.io/snapshot/x": "4"}


async def test_labels_of_the_backend_show_through(world: World, snapshots: Snapshots) -> None:
    await snapshots.prepare("k", "", {"a": "1"})
    ((name, info),) = world.layers.infos.items()
    world.layers.infos[name] = replace(info, labels={"own": "x", "a": "hidden"})
    assert (await snapshots.stat("k")).labels == {"own": "x", "a": "1"}
    assert await names(snapshots, "labels.own==x") == {"k"}


async def test_errors_speak_of_the_clients_names(world: World, snapshots: Snapshots) -> None:
    await snapshots.prepare("k", "", {})
    world.layers.infos.clear()
    for call in (snapshots.stat, snapshots.usage, snapshots.mounts):
        with pytest.raises(NotFound) as caught:
            await call("k")
        assert str(caught.value) == "snapshot k does not exist: not found"


async def test_a_target_that_is_there(world: World, snapshots: Snapshots) -> None:
    await layer(snapshots, "chain")
    await world.scoped().leases.create("l")
    leased = world.scoped(lease="l").snapshots("layers")
    with pytest.raises(AlreadyExists) as caught:
        await leased.prepare("extract-1", "", {TARGET: "chain"})
    assert str(caught.value) == 'target snapshot "chain": already exists'
    held = await world.scoped().leases.list_resources("l")
    assert held == [Resource("chain", "snapshots/layers")]
    assert await names(snapshots) == {"chain"}


async def test_a_target_that_the_backend_has(world: World, snapshots: Snapshots) -> None:
    await layer(snapshots, "bottom")
    world.layers.offer("chain")
    labels = {TARGET: "chain", "containerd.io/snapshot/cri.image-ref": "img"}
    with pytest.raises(AlreadyExists, match='target snapshot "chain"'):
        await snapshots.prepare("extract-1", "bottom", labels)
    info = await snapshots.stat("chain")
    assert (info.kind, info.parent) == (Kind.COMMITTED, "bottom")
    assert info.labels == labels
    assert await names(snapshots) == {"bottom", "chain"}
    await snapshots.prepare("k", "chain", {})
    await world.settled()
    assert {key.split("/")[-1] for key in world.layers.infos} == {"bottom", "remote-1", "k"}


async def test_a_name_is_reserved_while_it_is_committed(world: World, snapshots: Snapshots) -> None:
    for key in ("k1", "k2"):
        await snapshots.prepare(key, "", {})
    results = await asyncio.gather(
        snapshots.commit("n", "k1", {}),
        snapshots.commit("n", "k2", {}),
        snapshots.commit("m", "k1", {}),
        snapshots.remove("k1"),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [
        type(None), AlreadyExists, FailedPrecondition, FailedPrecondition,
    ]  # fmt: skip
    assert await names(snapshots) == {"n", "k2"}
    await snapshots.commit("m", "k2", {})


async def test_a_parent_to_be_is_not_removed(world: World, snapshots: Snapshots) -> None:
    await layer(snapshots, "bottom")
    await snapshots.prepare("k", "", {})
    results = await asyncio.gather(
        snapshots.commit("top", "k", {}, parent="bottom"),
        snapshots.remove("bottom"),
        return_exceptions=True,
    )
    assert results[0] is None
    assert isinstance(results[1], FailedPrecondition)


async def test_removed_ones_leave_the_backend_soon(world: World, snapshots: Snapshots) -> None:
    await layer(snapshots, "n")
    await snapshots.prepare("k", "n", {})
    await snapshots.remove("k")
    await snapshots.remove("n")
    await emptied(world)


async def test_removals_in_a_row_share_a_look_at_the_backend(
    world: World, snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    async def cleanup() -> None:
        looks.append(len(world.layers.infos))

    monkeypatch.setattr(world.layers, "cleanup", cleanup)
    for number in range(20):
        await snapshots.prepare(f"k{number}", "", {})
    for number in range(20):
        await snapshots.remove(f"k{number}")
    await emptied(world)
    assert len(looks) < 10


async def emptied(world: World) -> None:
    """The backend has no snapshot any more."""
    async with asyncio.timeout(20):
        while world.layers.infos:  # noqa: ASYNC110 - the fake has nothing to wait for
            await asyncio.sleep(0.01)


async def test_a_failed_prepare_leaves_nothing(world: World, snapshots: Snapshots) -> None:
    with failpoints.armed("metadata.snapshot.prepared", die), pytest.raises(asyncio.CancelledError):
        await snapshots.prepare("k", "", {})
    assert len(world.layers.infos) == 1
    await world.settled()
    assert world.layers.infos == {}
    await snapshots.prepare("k", "", {})


async def test_strange_snapshots_go_at_the_first_collection(
    world: World, snapshots: Snapshots
) -> None:
    await layer(snapshots, "n")
    await snapshots.prepare("k", "n", {"containerd.io/gc.root": "x"})
    await world.layers.prepare("nobody/1/k", "", {})
    await world.layers.commit("nobody/2/n", "nobody/1/k", {})
    await world.layers.prepare("nobody/3/k", "nobody/2/n", {})
    await world.collect()
    assert {key.split("/", 1)[0] for key in world.layers.infos} == {"ns"}
    assert await names(snapshots) == {"n", "k"}
    assert world.layers.cleanups > 0


async def test_a_comparison_spares_what_is_being_made(
    world: World, snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry becomes durable right after the comparison has read the entries."""
    prepared, compared = asyncio.Event(), asyncio.Event()
    janitor = world.db.janitor
    real_column = janitor._column

    async def column(*arguments: Any) -> set[str]:
        found = await real_column(*arguments)
        prepared.set()
        await making
        return found

    async def make() -> None:
        real_prepare = world.layers.prepare

        async def prepare(*arguments: Any) -> list[Mount]:
            mounts = await real_prepare(*arguments)
            compared.set()
            await prepared.wait()
            return mounts

        monkeypatch.setattr(world.layers, "prepare", prepare)
        await snapshots.prepare("k", "", {})

    monkeypatch.setattr(janitor, "_column", column)
    making = asyncio.ensure_future(make())
    await compared.wait()
    await janitor.clean_snapshots("layers")
    assert (await snapshots.stat("k")).kind is Kind.ACTIVE


@pytest.mark.parametrize("committed", [False, True], ids=["not done", "done"])
async def test_a_commit_whose_end_the_backend_does_not_tell(
    world: World, snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    """As of another process that dies during the commit, and comes back later."""
    real_commit, real_stat = world.layers.commit, world.layers.stat

    async def commit(*arguments: Any, **more: Any) -> None:
        if committed:
            await real_commit(*arguments, **more)
        raise Unavailable("the plugin")

    async def stat(key: str) -> SnapshotInfo:
        raise Unavailable("the plugin")

    monkeypatch.setattr(janitors, "_AGAIN", 0.01)
    monkeypatch.setattr(world.layers, "commit", commit)
    monkeypatch.setattr(world.layers, "stat", stat)
    await snapshots.prepare("k", "", {})
    with pytest.raises(Unavailable, match="the plugin"):
        await snapshots.commit("n", "k", {})
    with pytest.raises(AlreadyExists):  # nobody knows, so it is reserved
        await snapshots.commit("n", "k", {})
    monkeypatch.setattr(world.layers, "commit", real_commit)
    monkeypatch.setattr(world.layers, "stat", real_stat)
    async with asyncio.timeout(20):
        while world.db.engine.query("SELECT * FROM snapshot_commits"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert await names(snapshots) == {"n" if committed else "k"}


async def test_a_retry_that_fails_does_not_end_the_cleaning(
    world: World, snapshots: Snapshots
) -> None:
    async def fail() -> None:
        raise RuntimeError("broken")

    world.db.janitor.later("layers", fail)
    await snapshots.prepare("k", "", {})
    await snapshots.remove("k")
    await emptied(world)


@pytest.mark.parametrize("committed", [False, True], ids=["intended", "committed"])
async def test_a_commit_that_a_crash_interrupted(
    world: World, snapshots: Snapshots, committed: bool
) -> None:
    """Before the backend has committed it is given up, after that it is carried on."""
    await layer(snapshots, "bottom")
    await snapshots.prepare("k", "bottom", {})
    await world.scoped().leases.create("l")
    row = ("ns", "layers", "n", "k", "ns/999/n", "", '{"a":"1"}', "l")
    sql = "INSERT INTO snapshot_commits VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
    await world.db.engine.run(lambda tx: tx.execute(sql, row).rowcount)
    if committed:
        (backend_key,) = (key for key in world.layers.infos if key.endswith("/k"))
        await world.layers.commit("ns/999/n", backend_key, {})
    await world.reopen()
    snapshots = world.scoped().snapshots("layers")
    assert await names(snapshots) == {"bottom", "n" if committed else "k"}
    await world.collect()
    if committed:
        info = await snapshots.stat("n")
        assert (info.kind, info.parent, info.labels) == (Kind.COMMITTED, "bottom", {"a": "1"})
    else:
        assert await names(snapshots) == set()


@pytest.mark.parametrize("point", ["metadata.snapshot.intended", "metadata.snapshot.committed"])
async def test_a_commit_whose_caller_is_cancelled(
    world: World, snapshots: Snapshots, point: str
) -> None:
    await snapshots.prepare("k", "", {})
    with failpoints.armed(point, die), pytest.raises(asyncio.CancelledError):
        await snapshots.commit("n", "k", {})
    if point.endswith("intended"):
        assert await names(snapshots) == {"k"}
        await snapshots.commit("n", "k", {})
    assert await names(snapshots) == {"n"}
    assert (await snapshots.stat("n")).kind is Kind.COMMITTED


async def test_whatever_is_cancelled_metadata_and_backend_agree(world: World) -> None:
    """Cancel each operation after 0, 1, 2 ... turns of the loop."""
    for turns in range(12):
        snapshots = world.scoped(f"ns{turns}").snapshots("layers")
        await layer(snapshots, "n")
        await snapshots.prepare("a", "n", {})
        await snapshots.prepare("b", "n", {})
        calls = (
            snapshots.prepare("c", "n", {}),
            snapshots.commit("m", "a", {}),
            snapshots.remove("b"),
        )
        tasks = [asyncio.ensure_future(call) for call in calls]
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await world.settled()
        found = {info.name async for info in snapshots.walk()}
        mine = {key for key in world.layers.infos if key.startswith(f"ns{turns}/")}
        assert {key.split("/")[-1] for key in mine} == found
        for name in found:
            info = await snapshots.stat(name)
            (backend,) = (world.layers.infos[key] for key in mine if key.endswith(f"/{name}"))
            assert info.kind == backend.kind
        with contextlib.suppress(NotFound, AlreadyExists):
            await snapshots.commit("m", "a", {})


async def test_a_commit_that_the_backend_refuses(world: World, snapshots: Snapshots) -> None:
    await snapshots.prepare("k", "", {})
    kept = dict(world.layers.infos)
    world.layers.infos.clear()
    with pytest.raises(NotFound, match="snapshot k does not exist"):
        await snapshots.commit("n", "k", {})
    world.layers.infos.update(kept)
    await snapshots.commit("n", "k", {})
    assert await names(snapshots) == {"n"}
