"""Records that are damaged or gone are made again, from what can be read and from directories."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cradled import damage
from cradled.core.snapshots import Kind, SnapshotInfo
from cradled.errors import NotFound
from cradled.snapshotters import descriptions
from cradled.snapshotters.native import NativeSnapshotter

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="sets trusted attributes")

LABELS = {"containerd.io/snapshot.ref": "target"}


@asynccontextmanager
async def opened(root: Path) -> AsyncIterator[NativeSnapshotter]:
    snapshotter = NativeSnapshotter(str(root))
    await snapshotter.start()
    try:
        yield snapshotter
    finally:
        await snapshotter.aclose()


async def infos(snapshotter: NativeSnapshotter) -> dict[str, SnapshotInfo]:
    return {info.name: info async for info in snapshotter.walk()}


async def filled(root: Path) -> dict[str, SnapshotInfo]:
    """Two layers, one of them relabelled, an active snapshot and a view over them."""
    async with opened(root) as snapshotter:
        for name, parent in (("lower", ""), ("upper", "lower")):
            (mount,) = await snapshotter.prepare(f"making-{name}", parent, {})
            (Path(mount.source) / name).write_text(name)
            await snapshotter.commit(name, f"making-{name}", LABELS)
        await snapshotter.update(
            SnapshotInfo("upper", Kind.COMMITTED, labels={"more": "1"}), ("labels.more",)
        )
        await snapshotter.prepare("active", "upper", {"x": "y"})
        await snapshotter.view("view", "lower", {})
        return await infos(snapshotter)


def without_times(found: dict[str, SnapshotInfo]) -> dict[str, tuple[object, ...]]:
    return {k: (v.kind, v.parent, dict(v.labels)) for k, v in found.items()}


def truncate(path: Path) -> None:
    os.truncate(path, 1000)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def overwrite(path: Path) -> None:
    path.write_bytes(b"garbage" * 5000)


def spoil_pages(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(data)


def rename_a_column(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data.replace(b"inodes", b"inodez"))


WAYS = [truncate, empty, overwrite, spoil_pages, rename_a_column, os.unlink]


@pytest.mark.parametrize("spoil", WAYS)
async def test_everything_is_known_again(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    before = await filled(tmp_path)
    records = tmp_path / "metadata.db"
    spoil(records)
    bad = records.read_bytes() if records.exists() else b""
    async with opened(tmp_path) as snapshotter:
        assert without_times(await infos(snapshotter)) == without_times(before)
        usage = await snapshotter.usage("upper")
        assert usage.inodes == 3
        (mount,) = await snapshotter.prepare("another", "upper", {})
        assert (Path(mount.source) / "lower").read_text() == "lower"
        await snapshotter.cleanup()
    aside = list(tmp_path.glob("metadata.db.damaged-*Z"))
    assert [path.read_bytes() for path in aside] == ([bad] if bad else [])
    async with opened(tmp_path) as snapshotter:  # and it stays like this
        assert len(await infos(snapshotter)) == 5
    assert sorted(aside) == sorted(tmp_path.glob("metadata.db.damaged-*Z"))


async def test_a_directory_that_says_nothing_is_moved_away(tmp_path: Path) -> None:
    await filled(tmp_path)
    (tmp_path / "metadata.db").unlink()
    os.removexattr(tmp_path / "snapshots/1", descriptions.NAME)
    async with opened(tmp_path) as snapshotter:
        assert await infos(snapshotter) == {}  # the lowest layer is lost, and with it what is above
        await snapshotter.cleanup()
        with pytest.raises(NotFound):
            await snapshotter.stat("upper")
        await snapshotter.prepare("new", "", {})
    (lost,) = tmp_path.glob("lost-*")
    assert (lost / "1/lower").read_text() == "lower"
    assert sorted(os.listdir(lost)) == ["1", "2", "3", "4"]


async def test_records_win_over_what_directories_say(tmp_path: Path) -> None:
    before = await filled(tmp_path)
    record = descriptions.read(str(tmp_path / "snapshots/2"))
    assert record is not None
    descriptions.write(str(tmp_path / "snapshots/2"), record._replace(key="something else"))
    damage.set_aside(str(tmp_path / "metadata.db"), "for a test")
    async with opened(tmp_path) as snapshotter:
        assert without_times(await infos(snapshotter)) == without_times(before)


@pytest.mark.parametrize(
    "data",
    [b"", b"x", b"[]", b"{}", b'{"id":2}', b"\xff", b'{"id":1,"key":"","parent":null,"kind":3,'
     b'"created":1,"updated":1,"labels":{},"size":0,"inodes":0}', b'{"id":7,"key":"k",'
     b'"parent":null,"kind":3,"created":1,"updated":1,"labels":{},"size":0,"inodes":0}',
     b'{"id":1,"key":"k","parent":"1","kind":3,"created":1,"updated":1,"labels":{},"size":0,'
     b'"inodes":0}', b"[" * 3000],
)  # fmt: skip
def test_descriptions_that_make_no_sense(tmp_path: Path, data: bytes) -> None:
    directory = tmp_path / "1"
    directory.mkdir()
    os.setxattr(directory, descriptions.NAME, data)
    assert descriptions.read(str(directory)) is None


async def test_labels_that_are_too_long_are_left_out(tmp_path: Path) -> None:
    long = {f"containerd.io/snapshot/{n}": "x" * 1000 for n in range(4)}
    async with opened(tmp_path) as snapshotter:
        await snapshotter.prepare("key", "", long)
    found = descriptions.read(str(tmp_path / "snapshots/1"))
    assert found is not None
    assert (found.key, found.labels) == ("key", {})


async def test_what_is_being_removed_stays_whole_when_the_disk_cannot(tmp_path: Path) -> None:
    """A commit that is refused leaves the description of the active snapshot."""
    await filled(tmp_path)
    async with opened(tmp_path) as snapshotter:
        with pytest.raises(Exception, match="lower"):
            await snapshotter.commit("lower", "active", {})
    found = descriptions.read(str(tmp_path / "snapshots/3"))
    assert found is not None
    assert found.key == "active"
