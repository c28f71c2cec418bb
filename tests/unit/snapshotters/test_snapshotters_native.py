"""NativeSnapshotter without mounting, and copying trees."""

import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness.trees import differences, read_tree

from cradled.aio import threads
from cradled.core.mount import Mount
from cradled.core.snapshots import Snapshotter
from cradled.linux.copytree import copy_tree
from cradled.snapshotters.native import NativeSnapshotter
from cradled.testing.snapshot_suite import SnapshotSuite, layer


@pytest.fixture
async def snapshotter(tmp_path: Path) -> AsyncIterator[NativeSnapshotter]:
    made = NativeSnapshotter(str(tmp_path / "root"))
    await made.start()
    yield made
    await made.aclose()
    threads.close()


class TestNative(SnapshotSuite):
    pass


async def test_mounts(snapshotter: Snapshotter, tmp_path: Path) -> None:
    top = f"{tmp_path}/root/snapshots"
    made = await snapshotter.prepare("k", "", {})
    assert made == [Mount("bind", f"{top}/1", ("rbind", "rw"))]
    assert stat.S_IMODE(os.stat(f"{top}/1").st_mode) == 0o755
    await snapshotter.commit("n", "k", {})
    assert await snapshotter.view("v", "n", {}) == [Mount("bind", f"{top}/1", ("rbind", "ro"))]
    assert await snapshotter.view("v0", "", {}) == [Mount("bind", f"{top}/3", ("rbind", "ro"))]


async def test_a_child_is_a_copy(snapshotter: Snapshotter, tmp_path: Path) -> None:
    top = tmp_path / "root" / "snapshots"
    await snapshotter.prepare("k", "", {})
    (top / "1" / "file").write_text("1")
    await snapshotter.commit("n", "k", {})
    await snapshotter.prepare("k", "n", {})
    (top / "2" / "file").write_text("2")
    assert (top / "1" / "file").read_text() == "1"
    await layer(snapshotter, "m", "n")
    assert (top / "3" / "file").read_text() == "1"


def tree(top: Path) -> None:
    (top / "directory").mkdir(parents=True)
    (top / "directory" / "file").write_bytes(b"data")
    os.chmod(top / "directory" / "file", 0o4751)
    (top / "linked").write_text("x")
    os.link(top / "linked", top / "directory" / "alias")
    (top / "symlink").symlink_to("/nowhere")
    os.mkfifo(top / "fifo", 0o622)
    os.setxattr(top / "linked", "user.note", b"\xff")
    with open(top / "sparse", "wb") as file:
        file.seek(8 << 20)
        file.write(b"end")
        file.truncate(16 << 20)
    os.utime(top / "symlink", (1, 2), follow_symlinks=False)
    os.chmod(top / "directory", 0o2750)
    os.utime(top / "directory", (3, 4))
    os.utime(top, (5, 6))


def test_copy_tree(tmp_path: Path) -> None:
    tree(tmp_path / "from")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "from" / "socket"))
    listening.close()
    os.utime(tmp_path / "from", (5, 6))
    copy_tree(str(tmp_path / "from"), str(tmp_path / "to"))
    (tmp_path / "from" / "socket").unlink()
    os.utime(tmp_path / "from", (5, 6))
    assert differences(read_tree(tmp_path / "to"), read_tree(tmp_path / "from")) == []
    assert (tmp_path / "to" / "sparse").stat().st_blocks < 1000


@pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices need root")
def test_copy_what_only_root_can(tmp_path: Path) -> None:
    top = tmp_path / "from"
    tree(top)
    os.chown(top / "directory" / "file", 12, 34)
    os.chmod(top / "directory" / "file", 0o4751)
    os.mknod(top / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.setxattr(top / "directory", "trusted.overlay.opaque", b"y")
    os.lchown(top / "symlink", 5, 6)
    copy_tree(str(top), str(tmp_path / "to"))
    assert differences(read_tree(tmp_path / "to"), read_tree(top)) == []
