"""``ctr`` runs containers on every snapshotter that is no default, chosen by name."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.daemon import Daemon, rows, target

from cradled.linux import mount

IMAGE = "docker.io/library/busybox:test"
PLUGIN = 'plugins."io.containerd.snapshotter.v1'

pytestmark = pytest.mark.skipif(
    target() == "containerd", reason="the configuration is this daemon's"
)


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty file system, and a directory on btrfs."""
    directory = tmp_path_factory.mktemp("disks")
    for name, make in (("disk", "mkfs.btrfs"), ("scratch", "mkfs.ext4")):
        with open(directory / name, "wb") as file:
            file.truncate(128 << 20)
        subprocess.run([make, "-q", directory / name], check=True)
    (directory / "btrfs").mkdir()
    mount.mount("btrfs", str(directory / "disk"), ["loop"], str(directory / "btrfs"))
    yield directory
    mount.unmount(str(directory / "btrfs"))
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, disks: Path) -> Iterator[Daemon]:
    directory = tmp_path_factory.mktemp("s")
    settings = (
        f'[{PLUGIN}.btrfs"]\nroot_path = "{disks}/btrfs/root"\n'
        f'[{PLUGIN}.blockfile"]\nscratch_file = "{disks}/scratch"\n'
    )
    daemon = Daemon(directory, settings=settings)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.destroy()
        shutil.rmtree(directory)


@pytest.mark.parametrize("name", ["native", "btrfs", "blockfile"])
def test_life_on_it(host: Daemon, image_tar: Path, name: str) -> None:
    host.ctr("images", "import", "--snapshotter", name, str(image_tar))
    run = ("run", "--snapshotter", name)
    script = "cat /etc/motd; test ! -e /bin/unlzma && echo x > /new"
    assert host.ctr(*run, "--rm", IMAGE, "c", "sh", "-c", script) == "hello from the second layer\n"
    assert host.try_ctr(*run, "--rm", IMAGE, "c", "cat", "/new").returncode == 1  # that was another
    kinds = [row[-1] for row in rows(host.ctr("snapshots", "--snapshotter", name, "ls"))]
    assert kinds == ["Committed", "Committed"]
    host.ctr("images", "rm", "--sync", IMAGE)
    assert rows(host.ctr("snapshots", "--snapshotter", name, "ls")) == []
