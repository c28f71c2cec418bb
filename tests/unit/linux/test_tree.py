"""Whole trees: measured and removed, however they are made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cradled.linux.tree import empty_directory, remove_tree, usage


def deep(top: Path, levels: int) -> None:
    """A tree deeper than any path may be long."""
    fd = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d" * 50, dir_fd=fd)
        below = os.open("d" * 50, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)


def test_usage_counts_blocks_and_inodes_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"x" * 100_000)
    os.link(tmp_path / "a" / "file", tmp_path / "again")
    (tmp_path / "link").symlink_to("/usr")
    with open(tmp_path / "sparse", "wb") as sparse:
        sparse.truncate(1 << 30)
    paths = [tmp_path, *(tmp_path / name for name in ("a", "a/file", "link", "sparse"))]
    blocks = sum(os.lstat(path).st_blocks for path in paths)
    assert usage(tmp_path) == (blocks * 512, 5)
    assert usage(os.fsencode(tmp_path))[1] == 5


def test_usage_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        usage(tmp_path / "nothing")


def test_remove_does_not_follow_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    doomed = tmp_path / "doomed"
    (doomed / "sub").mkdir(parents=True)
    (doomed / "sub" / "link").symlink_to(outside)
    (doomed / "link").symlink_to("../outside/kept")
    os.mkfifo(doomed / "pipe")
    (doomed / "sub").chmod(0o700)
    remove_tree(doomed)
    assert not doomed.exists()
    assert (outside / "kept").read_text() == "kept"
    (tmp_path / "top-link").symlink_to(outside)
    remove_tree(tmp_path / "top-link")
    assert os.listdir(tmp_path) == ["outside"]


def test_removing_files_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    remove_tree(tmp_path / "file")
    remove_tree(tmp_path / "file")
    assert os.listdir(tmp_path) == []


def test_trees_deeper_than_paths_and_descriptors(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    deep(top, 1100)
    try:
        assert usage(top)[1] == 1102
    finally:
        remove_tree(top)
    assert not top.exists()


def test_wide_trees(tmp_path: Path) -> None:
    for directory in range(30):
        (tmp_path / "top" / str(directory) / "below").mkdir(parents=True)
        for file in range(10):
            (tmp_path / "top" / str(directory) / "below" / str(file)).touch()
    assert usage(tmp_path / "top")[1] == 1 + 30 * 12
    fd = os.open(tmp_path, os.O_RDONLY)
    empty_directory(fd, "top")
    os.close(fd)
    assert os.listdir(tmp_path / "top") == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
def test_what_may_not_be_removed_is_told(tmp_path: Path) -> None:
    (tmp_path / "top" / "sub").mkdir(parents=True)
    (tmp_path / "top" / "sub" / "file").touch()
    (tmp_path / "top" / "sub").chmod(0o500)
    with pytest.raises(PermissionError):
        remove_tree(tmp_path / "top")
    (tmp_path / "top" / "sub").chmod(0o700)
