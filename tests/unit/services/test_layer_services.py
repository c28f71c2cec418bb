"""Snapshots and diff: paging, what is passed on, what is closed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from cradled import errors
from cradled.api import diff_pb2, snapshots_pb2
from cradled.core.mount import Mount
from cradled.core.snapshots import Kind, SnapshotInfo, Usage
from cradled.core.values import AnyValue, Descriptor
from cradled.rpc.inprocess import InProcess
from cradled.rpc.service import Router
from cradled.rpc.stub import Stub
from cradled.services.diff import DiffService
from cradled.services.snapshots import PAGE, SnapshotsService

MOUNTS = [Mount("overlay", "overlay", ("index=off", "lowerdir=/a"))]
BIND = Mount("bind", "/b", ("rbind",))


class FakeSnapshotter:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    async def prepare(self, *args: Any) -> list[Mount]:
        self.calls.append(("prepare", args))
        return MOUNTS

    async def view(self, *args: Any) -> list[Mount]:
        self.calls.append(("view", args))
        return MOUNTS

    async def mounts(self, key: str) -> list[Mount]:
        return MOUNTS

    async def commit(self, *args: Any, **named: Any) -> None:
        self.calls.append(("commit", args, named))

    async def remove(self, key: str) -> None:
        self.calls.append(("remove", key))

    async def stat(self, key: str) -> SnapshotInfo:
        return SnapshotInfo(key, Kind.COMMITTED, "p", 1, 2, {"a": "b"})

    async def update(self, info: SnapshotInfo, fieldpaths: Sequence[str]) -> SnapshotInfo:
        self.calls.append(("update", info, fieldpaths))
        return info

    async def usage(self, key: str) -> Usage:
        return Usage(4096, 3)

    async def walk(self, filters: Sequence[str]) -> AsyncIterator[SnapshotInfo]:
        for number in range(int(filters[0])):
            yield SnapshotInfo(f"s{number}", Kind.VIEW)


@pytest.fixture
def snapshotter() -> FakeSnapshotter:
    return FakeSnapshotter()


def stub(service: Any, implementation: object) -> Any:
    router = Router()
    router.add(service, implementation)
    return Stub(InProcess(router), service, [("containerd-namespace", "ns")])


@pytest.fixture
def snapshots(snapshotter: FakeSnapshotter) -> Any:
    scoped = SimpleNamespace(snapshots={"fake": snapshotter}.__getitem__)
    db: Any = SimpleNamespace(scoped=lambda scope: scoped)
    return stub(snapshots_pb2.Snapshots, SnapshotsService(db))


async def test_making_snapshots(snapshots: Any, snapshotter: FakeSnapshotter) -> None:
    fields: dict[str, Any] = {"snapshotter": "fake", "key": "k", "parent": "p", "labels": {"a": ""}}
    for rpc, request in [
        ("prepare", snapshots_pb2.PrepareSnapshotRequest(**fields)),
        ("view", snapshots_pb2.ViewSnapshotRequest(**fields)),
    ]:
        (mount,) = (await getattr(snapshots, rpc)(request)).mounts
        assert (mount.type, list(mount.options)) == ("overlay", ["index=off", "lowerdir=/a"])
        assert snapshotter.calls.pop() == (rpc, ("k", "p", {"a": ""}))
    request = snapshots_pb2.MountsRequest(snapshotter="fake", key="k")
    assert len((await snapshots.mounts(request)).mounts) == 1
    await snapshots.commit(
        snapshots_pb2.CommitSnapshotRequest(snapshotter="fake", name="n", key="k", parent="p")
    )
    assert snapshotter.calls.pop() == ("commit", ("n", "k", {}), {"parent": "p"})
    await snapshots.remove(snapshots_pb2.RemoveSnapshotRequest(snapshotter="fake", key="k"))
    assert snapshotter.calls.pop() == ("remove", "k")


async def test_reading_snapshots(snapshots: Any, snapshotter: FakeSnapshotter) -> None:
    request = snapshots_pb2.StatSnapshotRequest(snapshotter="fake", key="k")
    info = (await snapshots.stat(request)).info
    assert (info.name, info.kind, info.parent) == ("k", snapshots_pb2.COMMITTED, "p")
    usage = await snapshots.usage(snapshots_pb2.UsageRequest(snapshotter="fake", key="k"))
    assert (usage.size, usage.inodes) == (4096, 3)
    update = snapshots_pb2.UpdateSnapshotRequest(snapshotter="fake", info=info)
    update.update_mask.paths.append("labels.a")
    assert (await snapshots.update(update)).info == info
    assert snapshotter.calls.pop()[2] == ["labels.a"]


@pytest.mark.parametrize(
    ("count", "pages"), [(0, []), (1, [1]), (PAGE, [PAGE]), (PAGE + 2, [PAGE, 2])]
)
async def test_lists_come_in_pages(snapshots: Any, count: int, pages: list[int]) -> None:
    request = snapshots_pb2.ListSnapshotsRequest(snapshotter="fake", filters=[str(count)])
    assert [len(page.info) async for page in snapshots.list(request)] == pages


async def test_cleanup_is_hidden(snapshots: Any) -> None:
    with pytest.raises(errors.Unimplemented, match="snapshotter does not implement Cleanup method"):
        await snapshots.cleanup(snapshots_pb2.CleanupRequest(snapshotter="fake"))


class FakeReader:
    size, closed = 3, False

    def close(self) -> None:
        self.closed = True


class FakeApplier:
    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.calls: list[Any] = []

    async def apply(self, *args: Any, **named: Any) -> Descriptor:
        self.calls.append((args, named))
        if self.error:
            raise self.error
        return Descriptor("application/vnd.oci.image.layer.v1.tar", "sha256:d", 9)


async def apply(applier: FakeApplier, reader: FakeReader) -> Any:
    async def open_blob(digest: str) -> FakeReader:
        assert digest == "sha256:b"
        return reader

    scoped = SimpleNamespace(content=SimpleNamespace(open=open_blob))
    db: Any = SimpleNamespace(scoped=lambda scope: scoped)
    differ: Any = applier
    request = diff_pb2.ApplyRequest(sync_fs=True)
    request.diff.media_type, request.diff.digest, request.diff.size = "m", "sha256:b", 3
    request.mounts.add(type="bind", source="/b", options=["rbind"])
    request.payloads["p"].type_url = "T"
    return await stub(diff_pb2.Diff, DiffService(db, differ)).apply(request)


async def test_layers_are_applied(snapshotter: FakeSnapshotter) -> None:
    applier, reader = FakeApplier(), FakeReader()
    applied = (await apply(applier, reader)).applied
    assert (applied.digest, applied.size) == ("sha256:d", 9)
    layer = Descriptor("m", "sha256:b", 3)
    named = {"payloads": {"p": AnyValue("T")}, "sync_fs": True}
    assert applier.calls == [((layer, reader, [BIND]), named)]
    assert reader.closed


async def test_the_blob_is_closed_when_applying_fails() -> None:
    reader = FakeReader()
    with pytest.raises(errors.NotFound, match="no processor for media-type"):
        await apply(FakeApplier(errors.NotFound("no processor for media-type")), reader)
    assert reader.closed
