"""OverlaySnapshotter without mounting: the contract, layout, options, leftovers."""

import asyncio
import os
import sqlite3
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cradled import failpoints
from cradled.aio import threads
from cradled.core.mount import Mount
from cradled.core.snapshots import Kind, Usage
from cradled.errors import InvalidArgument, NotFound
from cradled.snapshotters import overlay
from cradled.snapshotters.overlay import OverlaySnapshotter
from cradled.testing.snapshot_suite import SnapshotSuite, layer, names


@pytest.fixture
async def snapshotter(tmp_path: Path) -> AsyncIterator[OverlaySnapshotter]:
    made = OverlaySnapshotter(str(tmp_path / "root"))
    await made.start()
    yield made
    await made.aclose()
    threads.close()


class TestOverlay(SnapshotSuite):
    pass


@pytest.fixture
def index_off(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.path.exists

    def exists(path: str) -> bool:
        return path == "/sys/module/overlay/parameters/index" or real(path)

    monkeypatch.setattr(os.path, "exists", exists)


@pytest.mark.usefixtures("index_off")
async def test_mounts(snapshotter: OverlaySnapshotter, tmp_path: Path) -> None:
    top = f"{tmp_path}/root/snapshots"
    assert await snapshotter.prepare("a", "", {}) == [Mount("bind", f"{top}/1/fs", ("rw", "rbind"))]
    await snapshotter.commit("one", "a", {})
    assert await snapshotter.view("v0", "", {}) == [Mount("bind", f"{top}/2/fs", ("ro", "rbind"))]
    assert await snapshotter.view("v1", "one", {}) == [
        Mount("bind", f"{top}/1/fs", ("ro", "rbind"))
    ]
    words = (f"workdir={top}/4/work", f"upperdir={top}/4/fs", f"lowerdir={top}/1/fs", "index=off")
    assert await snapshotter.prepare("b", "one", {}) == [Mount("overlay", "overlay", words)]
    await snapshotter.commit("two", "b", {})
    assert await snapshotter.view("v2", "two", {}) == [
        Mount("overlay", "overlay", (f"lowerdir={top}/4/fs:{top}/1/fs", "index=off"))
    ]


@pytest.mark.usefixtures("index_off")
async def test_extra_options_come_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay, "in_user_namespace", lambda: True)
    monkeypatch.setattr(overlay, "_supports_user_xattrs", lambda _path: True)
    made = OverlaySnapshotter(str(tmp_path), mount_options=["metacopy=off"])
    assert made.capabilities == ("only-remap-ids",)
    await made.start()
    await layer(made, "n")
    options = (await made.prepare("k", "n", {}))[0].options
    assert options[3:] == ("metacopy=off", "userxattr", "index=off")
    await made.aclose()


async def test_layout(snapshotter: OverlaySnapshotter, tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        await snapshotter.prepare("k", "", {})
        await snapshotter.view("v", "", {})
    finally:
        os.umask(old)
    top = tmp_path / "root" / "snapshots"
    assert stat.S_IMODE((top / "1" / "fs").stat().st_mode) == 0o755
    assert stat.S_IMODE((top / "1" / "work").stat().st_mode) == 0o711
    assert [path.name for path in (top / "2").iterdir()] == ["fs"]
    assert sorted(path.name for path in top.iterdir()) == ["1", "2"]
    assert ("rebase" in snapshotter.capabilities) != overlay.in_user_namespace()


async def test_upperdir_label(tmp_path: Path) -> None:
    made = OverlaySnapshotter(str(tmp_path), upperdir_label=True)
    await made.start()
    await made.prepare("k", "", {})
    labels = (await made.stat("k")).labels
    assert labels == {overlay.UPPERDIR_LABEL: f"{tmp_path}/snapshots/1/fs"}
    assert [info.labels async for info in made.walk()] == [labels]
    await made.aclose()


async def test_files_go_with_cleanup(snapshotter: OverlaySnapshotter, tmp_path: Path) -> None:
    top = tmp_path / "root" / "snapshots"
    await layer(snapshotter, "kept")
    await snapshotter.prepare("k", "", {})
    (top / "2" / "fs" / "file").write_text("")
    await snapshotter.remove("k")
    assert (top / "2").exists()
    (top / "new-77").mkdir()
    await snapshotter.cleanup()
    assert [path.name for path in top.iterdir()] == ["1"]


async def test_cleanup_spares_what_is_being_made(
    snapshotter: OverlaySnapshotter, tmp_path: Path
) -> None:
    async def churn(number: int) -> None:
        await snapshotter.prepare(f"k{number}", "", {})

    async def clean() -> None:
        await snapshotter.cleanup()

    await asyncio.gather(*(job for n in range(60) for job in (churn(n), clean())))
    assert len(os.listdir(tmp_path / "root" / "snapshots")) == 60


async def test_sync_remove(tmp_path: Path) -> None:
    made = OverlaySnapshotter(str(tmp_path), sync_remove=True)
    await made.start()
    await made.prepare("k", "", {})
    await made.remove("k")
    assert os.listdir(tmp_path / "snapshots") == []
    await made.aclose()


async def test_a_restart_finds_everything(tmp_path: Path) -> None:
    made = OverlaySnapshotter(str(tmp_path))
    await made.start()
    await layer(made, "n")
    mounts = await made.prepare("k", "n", {"containerd.io/snapshot/x": "1"})
    await made.prepare("gone", "n", {})
    await made.remove("gone")
    await made.aclose()
    again = OverlaySnapshotter(str(tmp_path))
    await again.start()
    assert await names(again) == {"n", "k"}
    assert await again.mounts("k") == mounts
    assert (await again.stat("k")).labels == {"containerd.io/snapshot/x": "1"}
    # The directory of the removed one is still there: its id is not used again.
    new = await again.prepare("new", "n", {})
    assert f"upperdir={tmp_path}/snapshots/4/fs" in new[0].options
    await again.aclose()


async def test_an_active_directory_lost_in_a_power_failure(tmp_path: Path) -> None:
    made = OverlaySnapshotter(str(tmp_path))
    await made.start()
    await made.prepare("k", "", {})
    await made.aclose()
    directory = tmp_path / "snapshots" / "1"
    for name in ("fs", "work"):
        (directory / name).rmdir()
    directory.rmdir()
    again = OverlaySnapshotter(str(tmp_path))
    await again.start()
    assert (directory / "fs").is_dir()
    assert (directory / "work").is_dir()
    await again.aclose()


async def test_a_full_disk_fails_everybody_and_leaves_nothing(
    snapshotter: OverlaySnapshotter, tmp_path: Path
) -> None:
    def full() -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with failpoints.armed("snapshots.records.commit", full):
        calls = (snapshotter.prepare(f"k{number}", "", {}) for number in range(5))
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [sqlite3.OperationalError] * 5
    assert await names(snapshotter) == set()
    assert os.listdir(tmp_path / "root" / "snapshots") == []
    await snapshotter.prepare("k1", "", {})


async def test_bad_mappings(snapshotter: OverlaySnapshotter) -> None:
    for value in ("", "x", "0:1", "5:100:10", "0:1:0"):
        with pytest.raises(InvalidArgument, match="uidmapping"):
            await snapshotter.prepare("k", "", {overlay.UID_MAPPING: value})
    assert await names(snapshotter) == set()


@pytest.mark.skipif(os.geteuid() != 0, reason="changing owners needs root")
@pytest.mark.usefixtures("index_off")
@pytest.mark.parametrize("kernel", [(5, 18), (5, 19)])
async def test_mapped_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: tuple[int, ...]
) -> None:
    monkeypatch.setattr(overlay, "_kernel", lambda: kernel)
    monkeypatch.setattr(overlay, "in_user_namespace", lambda: False)
    uid, gid = os.geteuid(), os.getegid()
    labels = {overlay.UID_MAPPING: f"0:{uid}:5,9:9:1", overlay.GID_MAPPING: f"0:{gid}:6"}
    maps = (f"uidmap=0:{uid}:5,9:9:1", f"gidmap=0:{gid}:6") if kernel >= (5, 19) else ()
    made = OverlaySnapshotter(str(tmp_path / "root"), slow_chown=kernel >= (5, 19))
    assert made.capabilities == ("rebase", *(["remap-ids"] if maps else ["only-remap-ids"]))
    await made.start()
    await layer(made, "n")
    top = f"{tmp_path}/root/snapshots"
    options = (await made.prepare("k", "n", labels))[0].options
    words = (f"workdir={top}/2/work", f"upperdir={top}/2/fs", f"lowerdir={top}/1/fs", "index=off")
    assert options == (*maps, *words)
    assert await made.view("v", "n", labels) == [
        Mount("bind", f"{top}/1/fs", (*maps, "ro", "rbind"))
    ]
    # One that has no layers is made for its owner.
    assert (await made.prepare("p", "", labels))[0].options == ("rw", "rbind")
    await made.aclose()


async def test_mapped_owner(snapshotter: OverlaySnapshotter, tmp_path: Path) -> None:
    labels = {overlay.UID_MAPPING: "0:1000:10", overlay.GID_MAPPING: "5:9:1,0:2000:10"}
    await snapshotter.prepare("k", "", labels)
    status = (tmp_path / "root" / "snapshots" / "1" / "fs").stat()
    assert (status.st_uid, status.st_gid) == (1000, 2000)


async def test_trees_are_walked_by_who_is_given(tmp_path: Path) -> None:
    class Workers:
        def __init__(self) -> None:
            self.asked: list[str] = []

        async def usage(self, path: str, /) -> Usage:
            self.asked.append(path)
            return Usage(7, 3)

        async def remove(self, path: str, /) -> None:
            self.asked.append(path)

    workers = Workers()
    made = OverlaySnapshotter(str(tmp_path), trees=workers, sync_remove=True)
    await made.start()
    await layer(made, "n")
    assert await made.usage("n") == Usage(7, 3)
    await made.remove("n")
    assert workers.asked == [f"{tmp_path}/snapshots/1/fs", f"{tmp_path}/snapshots/1"]
    await made.aclose()


async def test_a_parent_that_goes_while_its_child_is_made(
    snapshotter: OverlaySnapshotter, monkeypatch: pytest.MonkeyPatch
) -> None:
    await layer(snapshotter, "n")
    real = snapshotter.fill

    def fill(path: str, record: overlay.Record) -> None:
        real(path, record)
        snapshotter._records.remove("n")

    monkeypatch.setattr(snapshotter, "fill", fill)
    with pytest.raises(NotFound, match="parent snapshot n does not exist"):
        await snapshotter.prepare("k", "n", {})


async def test_kinds_of_records(snapshotter: OverlaySnapshotter) -> None:
    await layer(snapshotter, "bottom")
    await layer(snapshotter, "top", "bottom")
    infos = [info async for info in snapshotter.walk()]
    assert [(i.name, i.parent, i.kind) for i in infos] == [
        ("bottom", "", Kind.COMMITTED),
        ("top", "bottom", Kind.COMMITTED),
    ]
