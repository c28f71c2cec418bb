"""A real Debian root filesystem: imported, unpacked and run; equal to what the original unpacks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import debian
from harness.daemon import Daemon
from harness.trees import Entry, differences, read_tree

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def debian_tar() -> Path:
    return debian.image()


@pytest.fixture(scope="module")
def with_debian(tmp_path_factory: pytest.TempPathFactory, debian_tar: Path) -> Iterator[Daemon]:
    directory = tmp_path_factory.mktemp("debian")
    daemon = Daemon(directory)
    daemon.start()
    try:
        daemon.ctr("images", "import", str(debian_tar), timeout=400)
        yield daemon
    finally:
        daemon.destroy()
        shutil.rmtree(directory)


def unpacked_tree(daemon: Daemon, target: Path) -> dict[str, Entry]:
    """The tree of the unpacked image, seen through a mount of it."""
    target.mkdir()
    daemon.ctr("images", "mount", debian.NAME, str(target))
    try:
        tree = read_tree(target)
    finally:
        daemon.ctr("images", "unmount", "--rm", str(target))
    # The top directory's time is that of the snapshot, not of a layer.
    return {**tree, ".": tree["."]._replace(mtime=0)}


def test_the_tree_is_the_originals(
    with_debian: Daemon, debian_tar: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ours = unpacked_tree(with_debian, tmp_path / "ours")
    original = Daemon(tmp_path_factory.mktemp("original"), "containerd")
    original.start()
    try:
        original.ctr("images", "import", str(debian_tar), timeout=400)
        theirs = unpacked_tree(original, tmp_path / "theirs")
    finally:
        original.destroy()
        shutil.rmtree(original.directory)
    assert len(ours) > 40_000
    assert differences(ours, theirs) == []


def test_python_and_apt_run_inside(with_debian: Daemon) -> None:
    out = with_debian.ctr("run", "--rm", debian.NAME, "p", "python3", "-c", "print(6 * 7)")
    assert out == "42\n"
    out = with_debian.ctr("run", "--rm", debian.NAME, "a", "apt-get", "-s", "remove", "gcc")
    assert "Remv gcc" in out
    out = with_debian.ctr("run", "--rm", debian.NAME, "w", "cat", "/usr/share/doc/new/hello")
    assert out == "hello\n"
