"""What differs between two directories, and what is written of it."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cradled.archive.compare import Change, Comparison
from cradled.archive.difftar import LayerWriter

THEN = 1_600_000_000 * 10**9


class Trees:
    def __init__(self, top: Path) -> None:
        self.left, self.right = top / "left", top / "right"
        for tree in (self.left, self.right):
            tree.mkdir()

    def both(self, name: str, data: str, other: str | None = None, *,
             time: int = THEN + 5, other_time: int | None = None) -> None:  # fmt: skip
        for tree, text, ns in (
            (self.left, data, time),
            (self.right, data if other is None else other, other_time or time),
        ):
            path = tree / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            os.utime(path, ns=(ns, ns))

    def changes(self) -> dict[str, str]:
        with closing(Comparison(str(self.left), str(self.right))) as comparison:
            return {
                os.fsdecode(c.path): "gone" if c.status is None else "same" if c.same else "there"
                for c in comparison.changes()
            }

    def layer(self, write: Callable[[bytes], object]) -> None:
        with closing(Comparison(str(self.left), str(self.right))) as comparison:
            LayerWriter(comparison, write).run()

    def members(self) -> list[tuple[str, bytes, str]]:
        written: list[bytes] = []
        self.layer(written.append)
        with tarfile.open(fileobj=io.BytesIO(b"".join(written))) as archive:
            return [(info.name, info.type, info.linkname) for info in archive]


@pytest.fixture
def trees(tmp_path: Path) -> Iterator[Trees]:
    before = len(os.listdir("/proc/self/fd"))
    yield Trees(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("other", "time", "other_time", "differs"),
    [
        ("data", THEN + 5, THEN + 5, False),
        ("DATA", THEN + 5, THEN + 5, False),  # as in the original: times with a fraction are enough
        ("data", THEN + 5, THEN + 6, True),
        ("data!", THEN + 5, THEN + 5, True),
        ("data", THEN, THEN, False),
        ("DATA", THEN, THEN, True),
        ("data", THEN, THEN + 5, False),  # one of the times was cut off
        ("DATA", THEN, THEN + 5, True),
        ("data", THEN, THEN + 10**9, True),
    ],
)
def test_files(trees: Trees, other: str, time: int, other_time: int, differs: bool) -> None:
    trees.both("file", "data", other, time=time, other_time=other_time)
    assert trees.changes() == ({"file": "there"} if differs else {})


def test_long_files_are_compared_to_the_end(trees: Trees) -> None:
    trees.both("same", "x" * 1_000_000, time=THEN)
    trees.both("last", "x" * 999_999 + "y", "x" * 999_999 + "z", time=THEN)
    assert trees.changes() == {"last": "there"}


def test_links_are_compared_where_times_do_not_tell(trees: Trees) -> None:
    for name, target in (("same", "to"), ("other", "ot")):
        (trees.left / name).symlink_to("to")
        (trees.right / name).symlink_to(target)
        for tree in (trees.left, trees.right):
            os.utime(tree / name, ns=(THEN, THEN), follow_symlinks=False)
    assert trees.changes() == {"other": "there"}


def test_order_is_that_of_names_directory_by_directory(trees: Trees) -> None:
    for name in ("a/z", "a-b", "a.b", "a/b/c", "b", "B"):
        path = trees.right / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert list(trees.changes()) == ["B", "a", "a/b", "a/b/c", "a/z", "a-b", "a.b", "b"]


def test_a_directory_and_a_file_in_place_of_each_other(trees: Trees) -> None:
    (trees.left / "dir/in").mkdir(parents=True)
    (trees.right / "dir").touch()
    (trees.left / "file").touch()
    (trees.right / "file/in").mkdir(parents=True)
    (trees.left / "gone/in").mkdir(parents=True)
    assert trees.changes() == {"dir": "there", "file": "there", "file/in": "there", "gone": "gone"}


def test_names_of_one_inode(trees: Trees) -> None:
    """The first name that differs has the data; names that do not differ follow as links."""
    trees.both("d/b", "data")
    for name in ("a", "d/c", "e"):
        os.link(trees.left / "d/b", trees.left / name)
        os.link(trees.right / "d/b", trees.right / name)
    assert trees.members() == []
    os.link(trees.right / "a", trees.right / "d/b2")
    assert trees.members() == [
        ("d", tarfile.DIRTYPE, ""),
        ("d/b2", tarfile.REGTYPE, ""),
        ("a", tarfile.LNKTYPE, "d/b2"),
        ("d/b", tarfile.LNKTYPE, "d/b2"),
        ("d/c", tarfile.LNKTYPE, "d/b2"),
        ("e", tarfile.LNKTYPE, "d/b2"),
    ]


def test_directories_above_a_change_come_once_and_before_it(trees: Trees) -> None:
    for name in ("a/b/c/kept", "a/b/gone", "x/y/gone"):
        trees.both(name, "data")
    (trees.right / "a/b/c/new").touch()
    (trees.right / "a/b/gone").unlink()
    (trees.right / "x/y/gone").unlink()
    assert [name for name, _, _ in trees.members()] == [
        "a", "a/b", "a/b/c", "a/b/c/new", "a/b/.wh.gone", "x", "x/y", "x/y/.wh.gone",
    ]  # fmt: skip


class TestChangesMeanwhile:
    """A container may be at work in the right tree: what it does never leads out of it."""

    def test_a_file_that_became_a_link(self, trees: Trees) -> None:
        secret = trees.left.parent / "secret"
        secret.write_text("data")
        (trees.right / "b").write_text("data")
        with closing(Comparison(str(trees.left), str(trees.right))) as comparison:
            found = comparison.changes()

            def changes() -> Iterator[Change]:
                for change in found:
                    (trees.right / "b").unlink()
                    (trees.right / "b").symlink_to(secret)
                    yield change

            comparison.changes = changes  # type: ignore[method-assign]
            with pytest.raises(OSError, match="Too many levels"):
                LayerWriter(comparison, lambda data: None).run()

    def test_a_file_that_shrank(self, trees: Trees) -> None:
        (trees.right / "b").write_bytes(bytes(1 << 20))

        def write(data: bytes) -> None:
            os.truncate(trees.right / "b", 100)

        with pytest.raises(OSError, match="the file changed while it was read"):
            trees.layer(write)

    def test_a_file_that_grew_is_cut(self, trees: Trees) -> None:
        (trees.right / "b").write_bytes(b"first")
        written: list[bytes] = []

        def write(data: bytes) -> None:
            written.append(data)
            (trees.right / "b").write_bytes(b"first and more")

        trees.layer(write)
        assert written[1] == b"first"
