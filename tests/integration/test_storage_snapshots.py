"""The snapshotters with real mounts."""

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cradled.aio import threads
from cradled.core.snapshots import Usage
from cradled.errors import FailedPrecondition
from cradled.linux import mount
from cradled.snapshotters.blockfile import BlockfileSnapshotter
from cradled.snapshotters.btrfs import BtrfsSnapshotter
from cradled.snapshotters.native import NativeSnapshotter
from cradled.snapshotters.overlay import OverlaySnapshotter
from cradled.testing.snapshot_suite import SnapshotMountSuite, layer, mounted

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


class TestOverlayMounts(SnapshotMountSuite):
    @pytest.fixture
    async def snapshotter(self, tmp_path: Path) -> AsyncIterator[OverlaySnapshotter]:
        made = OverlaySnapshotter(str(tmp_path / "root"))
        await made.start()
        yield made
        await made.aclose()
        threads.close()


class TestNativeMounts(SnapshotMountSuite):
    @pytest.fixture
    async def snapshotter(self, tmp_path: Path) -> AsyncIterator[NativeSnapshotter]:
        made = NativeSnapshotter(str(tmp_path / "root"))
        await made.start()
        yield made
        await made.aclose()
        threads.close()


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """An empty file system: ext4 begins with a directory of its own."""
    path = tmp_path / "scratch"
    with open(path, "wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", path], check=True)
    target = tmp_path / "scratch.mounted"
    target.mkdir()
    mount.mount("ext4", str(path), ["loop"], str(target))
    (target / "lost+found").rmdir()
    mount.unmount(str(target))
    return path


class TestBlockfileMounts(SnapshotMountSuite):
    counts_files = False

    @pytest.fixture
    async def snapshotter(
        self, tmp_path: Path, scratch: Path
    ) -> AsyncIterator[BlockfileSnapshotter]:
        made = BlockfileSnapshotter(str(tmp_path / "root"), scratch_file=str(scratch))
        await made.start()
        yield made
        await made.aclose()
        threads.close()

    async def test_one_that_is_mounted_elsewhere_still(
        self, snapshotter: BlockfileSnapshotter, target: Path
    ) -> None:
        await snapshotter.prepare("k", "", {})
        async with mounted(snapshotter, "k", target):
            (target / "file").write_text("1")
            sleeper = namespace_with_all_mounts()
        await snapshotter.commit("n", "k", {})
        await snapshotter.view("v", "n", {})
        async with mounted(snapshotter, "v", target):
            assert (target / "file").read_text() == "1"
        sleeper.communicate()


def namespace_with_all_mounts() -> subprocess.Popen[bytes]:
    """What is mounted now is mounted there too, until the process that is in it ends."""
    command = ["unshare", "-m", "--propagation", "private", "cat"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"x")
    assert process.stdout.read(1) == b"x"
    return process


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on btrfs."""
    image, target = tmp_path / "disk", tmp_path / "disk.mounted"
    with open(image, "wb") as file:
        file.truncate(256 << 20)
    subprocess.run(["mkfs.btrfs", "-q", image], check=True)
    target.mkdir()
    mount.mount("btrfs", str(image), ["loop"], str(target))
    try:
        yield target
    finally:
        mount.unmount(str(target))


class TestBtrfsMounts(SnapshotMountSuite):
    @pytest.fixture
    async def snapshotter(self, disk: Path) -> AsyncIterator[BtrfsSnapshotter]:
        made = BtrfsSnapshotter(str(disk / "root"))
        await made.start()
        yield made
        await made.aclose()
        threads.close()

    async def test_what_changed_is_counted(
        self, snapshotter: BtrfsSnapshotter, target: Path
    ) -> None:
        await snapshotter.prepare("k", "", {})
        async with mounted(snapshotter, "k", target):
            (target / "big").write_bytes(os.urandom(1 << 20))
        await snapshotter.commit("one", "k", {})
        await snapshotter.prepare("k", "one", {})
        assert await snapshotter.usage("k") == Usage(0, 1)  # the root is a new one
        async with mounted(snapshotter, "k", target):
            (target / "new").write_bytes(os.urandom(1 << 16))
        usage = await snapshotter.usage("k")
        assert usage.inodes == 2
        assert 1 << 16 <= usage.size < 1 << 17

    async def test_the_committed_stays(self, snapshotter: BtrfsSnapshotter) -> None:
        await layer(snapshotter, "one")
        with pytest.raises(OSError, match="Read-only"):
            Path(snapshotter.content(1), "file").write_text("")
        await snapshotter.remove("one")
        await snapshotter.cleanup()
        assert os.listdir(f"{snapshotter.root}/snapshots") == []


async def test_btrfs_needs_btrfs(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="is not on btrfs"):
        await BtrfsSnapshotter(str(tmp_path / "root")).start()
    threads.close()
