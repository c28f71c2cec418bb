"""Layers unpacked by plain rules, as whoever runs the tests."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cradled.archive.apply import Applied, Unpacker, apply
from cradled.archive.decompress import LayerStream
from cradled.archive.errors import ArchiveError
from cradled.digest import of

UID, GID = os.getuid(), os.getgid()


class Layer:
    """A layer in the making; owned by who runs the test."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._buffer, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def add(
        self, name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **more: object
    ) -> Layer:
        info = tarfile.TarInfo(name)
        info.type, info.size, info.mode = kind, len(data), 0o644
        info.uid, info.gid, info.mtime = UID, GID, 1_000_000_000
        for key, value in more.items():
            setattr(info, key, value)
        self._tar.addfile(info, io.BytesIO(data))
        return self

    def directory(self, name: str, mode: int = 0o755, **more: object) -> Layer:
        return self.add(name, tarfile.DIRTYPE, mode=mode, **more)

    def symlink(self, name: str, target: str) -> Layer:
        return self.add(name, tarfile.SYMTYPE, linkname=target)

    def link(self, name: str, target: str) -> Layer:
        return self.add(name, tarfile.LNKTYPE, linkname=target)

    def bytes(self) -> bytes:
        self._tar.close()
        return self._buffer.getvalue()


def unpack(data: bytes, target: Path) -> Applied:
    at = io.BytesIO(data)
    unpacker = Unpacker(str(target))
    try:
        with LayerStream(at.read) as stream:
            return apply(stream, unpacker)
    finally:
        unpacker.close()


def names(top: Path) -> list[str]:
    return sorted(str(path.relative_to(top)) for path in top.rglob("*"))


@pytest.fixture
def top(tmp_path: Path) -> Iterator[Path]:
    before = sorted(os.listdir("/proc/self/fd"))
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "beside").write_text("untouched")
    yield target
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert sorted(os.listdir(tmp_path)) == ["beside", "target"]
    assert (tmp_path / "beside").read_text() == "untouched"


def test_digest_and_size_cover_what_follows_the_end(top: Path) -> None:
    data = Layer().add("file", data=b"content").bytes() + b"trailing bytes" * 100_000
    assert unpack(data, top) == Applied(of(data), len(data))
    assert (top / "file").read_bytes() == b"content"


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
def test_modes_and_times_whatever_the_umask(top: Path, umask: int) -> None:
    layer = Layer().directory("d", 0o1777).directory("g", 0o2750, mtime=5)
    layer.add("d/f", data=b"x", mode=0o4711, mtime=1.5).add("g/in", mode=0o606)
    layer.symlink("d/l", "f").add("p", tarfile.FIFOTYPE, mode=0o622)
    layer.add("n/implied", mode=0o666)
    before = os.umask(umask)
    try:
        applied = unpack(layer.bytes(), top)
    finally:
        os.umask(before)
    assert applied.implied == (b"n",)
    modes = {
        name: stat.S_IMODE(os.lstat(top / name).st_mode) for name in names(top) if name != "d/l"
    }
    assert modes == {"d": 0o1777, "d/f": 0o4711, "g": 0o2750, "g/in": 0o606, "p": 0o622,
                     "n": 0o755, "n/implied": 0o666}  # fmt: skip
    times = {name: os.lstat(top / name).st_mtime_ns for name in ("d", "d/f", "d/l", "g", "p")}
    assert times == {"d": 10**18, "d/f": 1_500_000_000, "d/l": 10**18, "g": 5 * 10**9, "p": 10**18}
    assert os.lstat(top / "d/f").st_atime_ns == 1_500_000_000


def test_access_time_is_the_later_one_and_odd_times_are_the_epoch(top: Path) -> None:
    layer = Layer().add("later", pax_headers={"mtime": "10", "atime": "20.5"})
    layer.add("earlier", pax_headers={"mtime": "10", "atime": "5"})
    layer.add("before", pax_headers={"mtime": "-1"})
    layer.add("after", pax_headers={"mtime": "9223372037"})
    layer.add("last", pax_headers={"mtime": "9223372036.5"})
    unpack(layer.bytes(), top)
    times = {name: (os.stat(top / name).st_atime_ns, os.stat(top / name).st_mtime_ns)
             for name in ("later", "earlier", "before", "after")}  # fmt: skip
    second = 10**9
    assert times == {"later": (20 * second + second // 2, 10 * second),
                     "earlier": (10 * second, 10 * second), "before": (0, 0),
                     "after": (0, 0)}  # fmt: skip


def test_whiteouts(top: Path) -> None:
    unpack(Layer().add("a/x").add("a/y/z").add("b").symlink("c", "a").bytes(), top)
    layer = Layer().add("a/.wh.y").add(".wh.b").add(".wh.c").add("a/.wh.never-was")
    unpack(layer.bytes(), top)
    assert names(top) == ["a", "a/x"]


def test_opaque_directories_keep_what_the_layer_itself_brings(top: Path) -> None:
    lower = Layer()
    for name in ("d/old", "d/both", "d/sub/old", "d/sub/deep/old", "d/gone/x", "e/kept"):
        lower.add(name)
    unpack(lower.bytes(), top)
    layer = Layer().add("d/new").add("d/both", data=b"new").add("d/sub/deep/new")
    layer.add("d/.wh..wh..opq").add("d/late").add("d/.wh..wh..opq")
    unpack(layer.bytes(), top)
    assert names(top) == ["d", "d/both", "d/late", "d/new", "d/sub", "d/sub/deep",
                          "d/sub/deep/new", "e", "e/kept"]  # fmt: skip


def test_opaque_by_way_of_a_link(top: Path) -> None:
    unpack(Layer().add("d/old").symlink("l", "d").bytes(), top)
    unpack(Layer().add("l/new").add("l/.wh..wh..opq").bytes(), top)
    assert names(top) == ["d", "d/new", "l"]


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "d/.wh.", "d/.wh..", "d/.wh..."])
def test_whiteouts_that_would_escape(top: Path, name: str) -> None:
    (top / "d").mkdir()
    (top / "kept").touch()
    with pytest.raises(ArchiveError, match="invalid whiteout name"):
        unpack(Layer().add(name).bytes(), top)
    assert names(top) == ["d", "kept"]


def test_replacing_anything_by_anything(top: Path) -> None:
    kinds = {
        "file": lambda layer, name: layer.add(name, data=name.encode()),
        "dir": lambda layer, name: layer.directory(name).add(name + "/in"),
        "link": lambda layer, name: layer.symlink(name, "/etc"),
        "pipe": lambda layer, name: layer.add(name, tarfile.FIFOTYPE),
        "hard": lambda layer, name: layer.link(name, "source"),
    }
    lower, upper = Layer().add("source"), Layer()
    for old, make_old in kinds.items():
        for new, make_new in kinds.items():
            make_old(lower, f"{old}-{new}")
            make_new(upper, f"{old}-{new}")
    unpack(lower.bytes(), top)
    unpack(upper.bytes(), top)
    expect = {"file": stat.S_ISREG, "dir": stat.S_ISDIR, "link": stat.S_ISLNK,
              "pipe": stat.S_ISFIFO, "hard": stat.S_ISREG}  # fmt: skip
    for old in kinds:
        for new, is_kind in expect.items():
            status = os.lstat(top / f"{old}-{new}")
            assert is_kind(status.st_mode), (old, new)
            if new == "hard":
                assert status.st_ino == os.stat(top / "source").st_ino
    assert (top / "dir-dir" / "in").exists()


def test_a_directory_over_a_directory_keeps_contents_and_takes_attributes(top: Path) -> None:
    unpack(Layer().directory("d", 0o700).add("d/kept").bytes(), top)
    unpack(Layer().directory("d", 0o2755, mtime=7).bytes(), top)
    assert names(top) == ["d", "d/kept"]
    assert stat.S_IMODE((top / "d").stat().st_mode) == 0o2755
    assert (top / "d").stat().st_mtime == 7


def test_a_removed_directory_takes_its_times_along(top: Path) -> None:
    layer = Layer().directory("d", mtime=1).directory("d/e", mtime=2).add("d", mtime=3)
    layer.directory("f", mtime=4).add(".wh.f").add("f", mtime=5)
    unpack(layer.bytes(), top)
    assert (top / "d").stat().st_mtime == 3
    assert (top / "f").stat().st_mtime == 5


def test_hard_links(top: Path) -> None:
    layer = Layer().add("a/file", data=b"x", mode=0o640).symlink("l", "a").symlink("s", "a/file")
    layer.link("b", "a/file").link("c", "/a/file").link("d", "./l/../a/file").link("e", "l/file")
    layer.link("t", "s")
    unpack(layer.bytes(), top)
    inode = (top / "a/file").stat().st_ino
    assert {os.lstat(top / name).st_ino for name in "bcde"} == {inode}
    assert os.readlink(top / "t") == "a/file"
    assert stat.S_IMODE((top / "a/file").stat().st_mode) == 0o644  # the last link says so


@pytest.mark.parametrize("target", ["nothing", "a/nothing", "no/thing", "x", "file/x"])
def test_hard_links_to_nothing(top: Path, target: str) -> None:
    layer = Layer().add("a/b").add("file").link("x", target)
    with pytest.raises((FileNotFoundError, NotADirectoryError)):
        unpack(layer.bytes(), top)


@pytest.mark.parametrize("target", ["a", "/", "..", "a/..", ""])
def test_hard_links_to_directories(top: Path, target: str) -> None:
    layer = Layer().directory("a").link("x", target)
    with pytest.raises(PermissionError):
        unpack(layer.bytes(), top)


def test_the_root_itself_is_ignored(top: Path) -> None:
    mode = top.stat().st_mode
    layer = (
        Layer()
        .directory("./", 0o700)
        .directory("/", 0o700)
        .directory("a/..", 0o700)
        .add("", mode=0)
    )
    unpack(layer.bytes(), top)
    assert top.stat().st_mode == mode
    assert names(top) == []


def test_sparse_files_have_holes(top: Path) -> None:
    pieces = {"name": "real-name", "size": str(64 << 20), "map": f"4096,5,{32 << 20},6"}
    headers = {f"GNU.sparse.{key}": value for key, value in pieces.items()}
    unpack(Layer().add("x", data=b"hello there", pax_headers=headers).bytes(), top)
    with open(top / "real-name", "rb") as file:
        assert os.fstat(file.fileno()).st_size == 64 << 20
        assert os.fstat(file.fileno()).st_blocks * 512 <= 1 << 20
        assert os.pread(file.fileno(), 7, 4095) == b"\0hello\0"
        assert os.pread(file.fileno(), 8, (32 << 20) - 1) == b"\0 there\0"


def test_user_xattrs(top: Path) -> None:
    attributes = {"SCHILY.xattr.user.a": "1", "SCHILY.xattr.user.b\n": "\udcff\0",
                  "SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.nonsense": "?",
                  "LIBARCHIVE.xattr.user.c": "no"}  # fmt: skip
    layer = Layer().add("f", pax_headers=attributes).directory("d", pax_headers=attributes)
    layer.symlink("l", "f").add("p", tarfile.FIFOTYPE, pax_headers=attributes)
    layer.add("s", tarfile.SYMTYPE, linkname="f", pax_headers=attributes)
    layer.add("h", tarfile.LNKTYPE, linkname="f", pax_headers={"SCHILY.xattr.user.h": "3"})
    unpack(layer.bytes(), top)
    assert {key: os.getxattr(top / "d", key) for key in os.listxattr(top / "d")} == {
        "user.a": b"1", "user.b\n": b"\xff\x00"}  # fmt: skip
    assert sorted(os.listxattr(top / "f")) == ["user.a", "user.b\n", "user.h"]
    assert os.listxattr(top / "p") == os.listxattr(top / "s", follow_symlinks=False) == []


def test_unknown_types(top: Path) -> None:
    with pytest.raises(ArchiveError, match="unhandled tar header type 86"):
        unpack(Layer().add("volume", b"V").bytes(), top)


def test_a_file_in_the_way_of_a_directory(top: Path) -> None:
    with pytest.raises(NotADirectoryError):
        unpack(Layer().add("file").add("file/below").bytes(), top)
    assert names(top) == ["file"]


def test_files_over_many_blocks(top: Path) -> None:
    data = os.urandom(3_000_000)
    unpack(Layer().add("big", data=data).add("small", data=data[:999]).bytes(), top)
    assert (top / "big").read_bytes() == data
    assert (top / "small").read_bytes() == data[:999]


def test_many_directories(top: Path) -> None:
    layer = Layer()
    for n in range(700):
        layer.directory(f"{n % 9}/{n}", mtime=n)
    for n in range(700):
        layer.add(f"{n % 9}/{n}/file", data=b"%d" % n)
    unpack(layer.bytes(), top)
    for n in range(700):
        assert (top / f"{n % 9}/{n}/file").read_bytes() == b"%d" % n
        assert (top / f"{n % 9}/{n}").stat().st_mtime == n


@pytest.mark.skipif(UID != 0, reason="only root gives files away")
def test_owners_as_the_kernel_counts_them(top: Path) -> None:
    layer = Layer().add("f", uid=4_294_967_294, gid=2, mode=0o6755)
    layer.add("n", pax_headers={"uid": "-2", "gid": "-1"}).directory("g", 0o2775, gid=77)
    layer.add("g/inherits", gid=0).directory("g/below", 0o755, gid=0).symlink("g/l", "x")
    unpack(layer.bytes(), top)
    owners = {
        name: (os.lstat(top / name).st_uid, os.lstat(top / name).st_gid) for name in names(top)
    }
    assert owners == {"f": (4_294_967_294, 2), "n": (4_294_967_294, 0), "g": (0, 77),
                      "g/inherits": (0, 0), "g/below": (0, 0), "g/l": (0, 0)}  # fmt: skip
    assert stat.S_IMODE((top / "f").stat().st_mode) == 0o6755
    assert stat.S_IMODE((top / "g/below").stat().st_mode) == 0o755


@pytest.mark.skipif(UID != 0, reason="only root makes devices")
def test_devices(top: Path) -> None:
    layer = Layer().add("c", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666)
    layer.add("b", tarfile.BLKTYPE, devmajor=4000, devminor=1_000_000, mode=0o4600)
    unpack(layer.bytes(), top)
    assert (top / "c").stat().st_rdev == os.makedev(1, 3)
    assert (top / "b").stat().st_rdev == os.makedev(4000, 1_000_000)
    assert stat.S_IMODE((top / "b").stat().st_mode) == 0o4600
