"""Async. What every ``core.snapshots.Snapshotter`` must do, as tests to inherit.

A test class derives from ``SnapshotSuite`` and gives the fixture ``snapshotter``. The tests of
``SnapshotMountSuite`` mount what they get, so they need root.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from cradled.core.mount import Mount
from cradled.core.snapshots import Kind, SnapshotInfo, Snapshotter
from cradled.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from cradled.linux import mount


async def names(snapshotter: Snapshotter, *filters: str) -> set[str]:
    return {info.name async for info in snapshotter.walk(filters)}


async def layer(snapshotter: Snapshotter, name: str, parent: str = "") -> None:
    """A committed snapshot."""
    await snapshotter.prepare(f"making {name}", parent, {})
    await snapshotter.commit(name, f"making {name}", {})


def flat(mounts: Sequence[Mount]) -> list[str]:
    return [option for one in mounts for option in one.options]


class SnapshotSuite:
    async def test_a_fresh_one(self, snapshotter: Snapshotter) -> None:
        mounts = await snapshotter.prepare("k", "", {"containerd.io/snapshot/x": "1"})
        assert mounts == await snapshotter.mounts("k")
        assert "rw" in flat(mounts)
        info = await snapshotter.stat("k")
        assert (info.name, info.parent, info.kind) == ("k", "", Kind.ACTIVE)
        assert info.labels["containerd.io/snapshot/x"] == "1"
        assert 0 < info.created_at <= info.updated_at
        assert await names(snapshotter) == {"k"}

    async def test_commit_gives_the_name_and_takes_the_key(self, snapshotter: Snapshotter) -> None:
        await snapshotter.prepare("k", "", {"containerd.io/snapshot/a": "1"})
        await snapshotter.commit("n", "k", {"containerd.io/snapshot/b": "2"})
        info = await snapshotter.stat("n")
        assert (info.name, info.parent, info.kind) == ("n", "", Kind.COMMITTED)
        assert "containerd.io/snapshot/a" not in info.labels
        assert info.labels["containerd.io/snapshot/b"] == "2"
        for call in (snapshotter.stat, snapshotter.mounts, snapshotter.usage, snapshotter.remove):
            with pytest.raises(NotFound):
                await call("k")
        assert await names(snapshotter) == {"n"}
        with pytest.raises(AlreadyExists):  # whoever did not get the answer asks again
            await snapshotter.commit("n", "k", {})

    async def test_a_view_is_read_only(self, snapshotter: Snapshotter) -> None:
        await layer(snapshotter, "n")
        mounts = await snapshotter.view("v", "n", {})
        assert mounts == await snapshotter.mounts("v")
        assert "ro" in flat(mounts)
        info = await snapshotter.stat("v")
        assert (info.parent, info.kind) == ("n", Kind.VIEW)
        assert (await snapshotter.usage("v")).size == 0

    async def test_keys_and_names_share_a_space(self, snapshotter: Snapshotter) -> None:
        await layer(snapshotter, "n")
        await snapshotter.prepare("k", "n", {})
        for taken in ("k", "n"):
            with pytest.raises(AlreadyExists, match=f'snapshot "\\S*{taken}"'):
                await snapshotter.prepare(taken, "", {})
            with pytest.raises(AlreadyExists):
                await snapshotter.view(taken, "n", {})
        await snapshotter.prepare("k2", "n", {})
        for taken in ("n", "k"):
            with pytest.raises(AlreadyExists):
                await snapshotter.commit(taken, "k2", {})
        assert (await snapshotter.stat("k2")).kind == Kind.ACTIVE

    async def test_parents(self, snapshotter: Snapshotter) -> None:
        await layer(snapshotter, "n")
        await snapshotter.prepare("active", "n", {})
        await snapshotter.view("view", "n", {})
        for call in (snapshotter.prepare, snapshotter.view):
            with pytest.raises(NotFound, match=r"parent snapshot .*absent does not exist"):
                await call("k", "absent", {})
            for parent in ("active", "view"):
                with pytest.raises(InvalidArgument, match="is not committed snapshot"):
                    await call("k", parent, {})
        assert await names(snapshotter) == {"n", "active", "view"}

    async def test_commit_of_what_cannot_be(self, snapshotter: Snapshotter) -> None:
        await layer(snapshotter, "n")
        await snapshotter.view("v", "n", {})
        with pytest.raises(NotFound):
            await snapshotter.commit("x", "absent", {})
        for key in ("n", "v"):
            with pytest.raises(FailedPrecondition):
                await snapshotter.commit("x", key, {})

    async def test_mounts_of_a_committed_one(self, snapshotter: Snapshotter) -> None:
        await layer(snapshotter, "n")
        with pytest.raises(FailedPrecondition, match="not active or view"):
            await snapshotter.mounts("n")

    async def test_rebase(self, snapshotter: Snapshotter) -> None:
        await layer(snapshotter, "bottom")
        await snapshotter.prepare("k", "", {})
        await snapshotter.commit("top", "k", {}, parent="bottom")
        assert (await snapshotter.stat("top")).parent == "bottom"
        with pytest.raises(FailedPrecondition, match="cannot remove snapshot with child"):
            await snapshotter.remove("bottom")
        await snapshotter.prepare("k", "bottom", {})
        with pytest.raises(InvalidArgument, match="cannot change parent of active snapshot"):
            await snapshotter.commit("x", "k", {}, parent="top")
        await snapshotter.commit("x", "k", {}, parent="bottom")
        await snapshotter.prepare("k", "", {})
        with pytest.raises(NotFound, match="absent does not exist"):
            await snapshotter.commit("y", "k", {}, parent="absent")

    async def test_remove(self, snapshotter: Snapshotter) -> None:
        await layer(snapshotter, "bottom")
        await layer(snapshotter, "top", "bottom")
        await snapshotter.prepare("k", "top", {})
        await snapshotter.view("v", "top", {})
        for parent in ("bottom", "top"):
            with pytest.raises(FailedPrecondition, match="cannot remove snapshot with child"):
                await snapshotter.remove(parent)
        for key in ("v", "k", "top", "bottom"):
            await snapshotter.remove(key)
            with pytest.raises(NotFound, match=f"snapshot \\S*{key} does not exist"):
                await snapshotter.remove(key)
        assert await names(snapshotter) == set()
        await snapshotter.cleanup()
        await snapshotter.cleanup()

    async def test_update(self, snapshotter: Snapshotter) -> None:
        a, b, c = (f"containerd.io/snapshot/{letter}" for letter in "abc")
        await snapshotter.prepare("k", "", {a: "1", b: "2"})
        info = SnapshotInfo("k", Kind.VIEW, "x", labels={a: "", c: "3"})
        info = await snapshotter.update(info, [f"labels.{a}", f"labels.{c}"])
        assert {b: "2", c: "3"}.items() <= info.labels.items()
        assert a not in info.labels
        assert (info.kind, info.parent) == (Kind.ACTIVE, "")
        info = await snapshotter.update(SnapshotInfo("k", Kind.VIEW, labels={a: "4"}))
        assert info.labels[a] == "4"
        assert b not in info.labels
        assert (await snapshotter.stat("k")).labels == info.labels
        with pytest.raises(InvalidArgument):
            await snapshotter.update(SnapshotInfo("k", Kind.VIEW), ["kind"])
        with pytest.raises(NotFound):
            await snapshotter.update(SnapshotInfo("absent", Kind.VIEW, labels={a: "4"}))

    async def test_walk_filters(self, snapshotter: Snapshotter) -> None:
        await layer(snapshotter, "n")
        await snapshotter.prepare("k", "n", {"containerd.io/snapshot/x": "1"})
        await snapshotter.view("v", "n", {})
        assert await names(snapshotter, "parent==n") == {"k", "v"}
        assert await names(snapshotter, "kind==committed") == {"n"}
        assert await names(snapshotter, "kind==active", "name==v") == {"k", "v"}
        assert await names(snapshotter, 'labels."containerd.io/snapshot/x"==1') == {"k"}

    async def test_many_at_once(self, snapshotter: Snapshotter) -> None:
        await layer(snapshotter, "n")
        keys = [f"k{number}" for number in range(40)]
        made = await asyncio.gather(*(snapshotter.prepare(key, "n", {}) for key in keys))
        assert len({tuple(mounts) for mounts in made}) == len(keys)
        assert await names(snapshotter) == {"n", *keys}
        await asyncio.gather(*(snapshotter.remove(key) for key in keys))
        assert await names(snapshotter) == {"n"}

    async def test_one_key_at_once(self, snapshotter: Snapshotter) -> None:
        calls = (snapshotter.prepare("k", "", {}) for _ in range(10))
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(result, list) for result in results) == 1
        assert sum(isinstance(result, AlreadyExists) for result in results) == 9


@contextlib.asynccontextmanager
async def mounted(snapshotter: Snapshotter, key: str, target: Path) -> AsyncIterator[Path]:
    """A snapshot mounted on a directory, for the length of a block."""
    target.mkdir(exist_ok=True)
    plans = [(m.type, m.source, m.options, m.target) for m in await snapshotter.mounts(key)]
    mount.mount_all(plans, str(target))
    try:
        yield target
    finally:
        mount.unmount_all(str(target))


class SnapshotMountSuite:
    counts_files = True
    """Whether usage tells how many files there are, beside their bytes."""

    @pytest.fixture
    def target(self, tmp_path: Path) -> Iterator[Path]:
        yield tmp_path / "target"
        assert not mount.is_mounted(str(tmp_path / "target"))

    async def test_layers_show_through(self, snapshotter: Snapshotter, target: Path) -> None:
        await snapshotter.prepare("k", "", {})
        async with mounted(snapshotter, "k", target):
            assert stat.S_IMODE(target.stat().st_mode) == 0o755
            (target / "kept").write_text("1")
            (target / "changed").write_text("1")
            (target / "removed").write_text("1")
            (target / "directory").mkdir()
            (target / "directory" / "old").write_text("1")
            os.chown(target, 12, 34)
        await snapshotter.commit("one", "k", {})
        await snapshotter.prepare("k", "one", {})
        async with mounted(snapshotter, "k", target):
            assert (target.stat().st_uid, target.stat().st_gid) == (12, 34)
            (target / "changed").write_text("2")
            (target / "removed").unlink()
            (target / "directory" / "old").unlink()
            (target / "directory").rmdir()
            (target / "directory").mkdir()
            (target / "directory" / "new").write_text("2")
        await snapshotter.commit("two", "k", {})
        await snapshotter.view("v", "two", {})
        await snapshotter.prepare("k", "two", {})
        for key in ("v", "k"):
            async with mounted(snapshotter, key, target):
                found = {path.name for path in target.iterdir()}
                assert found == {"kept", "changed", "directory"}
                assert (target / "changed").read_text() == "2"
                assert {path.name for path in (target / "directory").iterdir()} == {"new"}
        await snapshotter.view("v1", "one", {})
        async with mounted(snapshotter, "v1", target):
            assert (target / "changed").read_text() == "1"
            assert (target / "removed").exists()

    async def test_views_refuse_writes(self, snapshotter: Snapshotter, target: Path) -> None:
        await layer(snapshotter, "one")
        await layer(snapshotter, "two", "one")
        for number, parent in enumerate(("", "one", "two")):
            await snapshotter.view(f"v{number}", parent, {})
            async with mounted(snapshotter, f"v{number}", target):
                with pytest.raises(OSError, match="Read-only"):
                    (target / "file").write_text("")

    async def test_siblings_do_not_meet(self, snapshotter: Snapshotter, target: Path) -> None:
        await layer(snapshotter, "n")
        for key in ("k1", "k2"):
            await snapshotter.prepare(key, "n", {})
            async with mounted(snapshotter, key, target):
                assert list(target.iterdir()) == []
                (target / key).write_text("")

    async def test_usage_is_its_own(self, snapshotter: Snapshotter, target: Path) -> None:
        await snapshotter.prepare("k", "", {})
        empty = await snapshotter.usage("k")
        async with mounted(snapshotter, "k", target):
            (target / "file").write_bytes(os.urandom(1 << 20))
            os.link(target / "file", target / "link")
            (target / "directory").mkdir()
        usage = await snapshotter.usage("k")
        assert usage.inodes == empty.inodes + (2 if self.counts_files else 0)
        assert 1 << 20 <= usage.size - empty.size <= (1 << 20) + (64 << 10)
        await snapshotter.commit("n", "k", {})
        assert await snapshotter.usage("n") == usage

    async def test_a_deep_stack(self, snapshotter: Snapshotter, target: Path) -> None:
        parent = ""
        for number in range(60):
            await snapshotter.prepare("k", parent, {})
            async with mounted(snapshotter, "k", target):
                (target / f"file{number}").write_text("")
            await snapshotter.commit(f"n{number}", "k", {})
            parent = f"n{number}"
        await snapshotter.view("v", parent, {})
        async with mounted(snapshotter, "v", target):
            assert len(list(target.iterdir())) == 60
