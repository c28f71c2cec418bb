"""Paths that stay below their root, whatever lies on them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cradled.linux import rooted
from cradled.linux.rooted import Directory, RootedTree, normal
from cradled.linux.tree import remove_tree


@pytest.fixture
def tree(tmp_path: Path) -> RootedTree:
    top = tmp_path / "top"
    (top / "a" / "b" / "c").mkdir(parents=True)
    (top / "file").write_text("x")
    links = {
        "relative": "a/b", "absolute": "/a/b", "up": "../../../../a", "out": "../outside",
        "outside-absolute": str(tmp_path / "outside"), "chain": "relative/c", "loop1": "loop2",
        "loop2": "loop1", "self": ".", "dots": "a/b/../../a/./b", "to-file": "file",
        "dangling": "new/place", "magic": "/proc/self/root",
    }  # fmt: skip
    for name, target in links.items():
        (top / name).symlink_to(target)
    (top / "a" / "b" / "back").symlink_to("../../a")
    (tmp_path / "outside").mkdir()

    def make(parent: Directory, name: bytes) -> None:
        os.mkdir(name, dir_fd=parent.fd)

    return RootedTree(str(top), make)


@pytest.mark.parametrize(
    ("path", "canonical"),
    [
        (b"", b""),
        (b"a/b", b"a/b"),
        (b"relative", b"a/b"),
        (b"relative/c", b"a/b/c"),
        (b"absolute", b"a/b"),
        (b"up/b", b"a/b"),
        (b"chain", b"a/b/c"),
        (b"self/self/a", b"a"),
        (b"dots", b"a/b"),
        (b"relative/back/b", b"a/b"),
        (b"relative/../b/c", b"a/b/c"),
        (b"../../a", b"a"),
    ],
)
def test_canonical_paths(tree: RootedTree, path: bytes, canonical: bytes, tmp_path: Path) -> None:
    for _ in range(2):
        directory = tree.directory(path)
        assert directory.path == canonical
        where = os.readlink(f"/proc/self/fd/{directory.fd}")
        assert where == os.path.normpath(f"{tmp_path}/top/{canonical.decode()}")
    tree.close()


@pytest.mark.parametrize(
    ("path", "error"),
    [
        (b"nothing", FileNotFoundError),
        (b"out", FileNotFoundError),
        (b"outside-absolute", FileNotFoundError),
        (b"magic", FileNotFoundError),
        (b"dangling", FileNotFoundError),
        (b"file", NotADirectoryError),
        (b"file/x", NotADirectoryError),
        (b"to-file", NotADirectoryError),
        (b"loop1/x", OSError),
        (b"x/" * 3000, OSError),
        (b"n" * 300, OSError),
    ],
)
def test_what_is_no_directory(tree: RootedTree, path: bytes, error: type[OSError]) -> None:
    with pytest.raises(error):
        tree.directory(path)
    tree.close()


@pytest.mark.parametrize(
    ("path", "made"),
    [
        (b"x/y/z", "x/y/z"),
        (b"out/in", "outside/in"),
        (b"dangling/deep", "new/place/deep"),
        (b"magic/etc", "proc/self/root/etc"),
        (b"relative/new", "a/b/new"),
    ],
)
def test_missing_directories_are_made_inside(
    tree: RootedTree, tmp_path: Path, path: bytes, made: str
) -> None:
    assert tree.directory(path, make=True).path == made.encode()
    assert (tmp_path / "top" / made).is_dir()
    assert os.listdir(tmp_path / "outside") == []
    tree.close()


def test_more_directories_than_are_kept_open(tree: RootedTree, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    paths = [f"{n % 7}/{n}".encode() for n in range(3 * rooted.KEPT)]
    for path in paths:
        tree.directory(path, make=True)
        assert len(os.listdir("/proc/self/fd")) <= before + rooted.KEPT + 2
    for path in paths:
        assert tree.directory(path).path == path
    deep = b"/".join([b"d"] * 400)
    assert tree.directory(deep, make=True).path == deep
    tree.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1
    remove_tree(tmp_path / "top")  # too deep for pytest's own clean-up


def test_forgetting(tree: RootedTree, tmp_path: Path) -> None:
    top = tmp_path / "top"
    assert tree.directory(b"relative/c").path == b"a/b/c"
    (top / "relative").unlink()
    (top / "relative").mkdir()
    tree.forget_links()
    with pytest.raises(FileNotFoundError):
        tree.directory(b"relative/c")
    tree.directory(b"a/b/c")
    os.rename(top / "a", tmp_path / "moved")
    tree.forget(b"a")
    with pytest.raises(FileNotFoundError):
        tree.directory(b"a/b/c")
    tree.close()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"a/b", b"a/b"),
        (b"./a/./b/", b"a/b"),
        (b"/a//b", b"a/b"),
        (b"../../a/../b", b"b"),
        (b".", b""),
        (b"", b""),
        (b"..", b""),
        (b"///", b""),
        (b"a/..", b""),
        (b"...", b"..."),
        (b".a/b.", b".a/b."),
    ],
)
def test_normal_names(name: bytes, expected: bytes) -> None:
    assert normal(name) == expected
