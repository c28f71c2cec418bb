"""Tar streams made of and mutated by chance: an ArchiveError or a tree inside of the target.

A file of ``corpus/tar`` is a layer, one of ``corpus/decompress`` a compressed stream.
"""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness.corpus import fuzz, replay
from hypothesis import given
from hypothesis import strategies as st

from cradled.archive.apply import Unpacker, apply
from cradled.archive.decompress import LayerStream, uncompressed
from cradled.archive.errors import ArchiveError
from cradled.archive.overlay import LowersNeeded, OverlayUnpacker
from cradled.archive.tar import BLOCK, METADATA_LIMIT, TarReader, parse_records
from cradled.linux.tree import remove_tree

UID, GID = os.getuid(), os.getgid()

# Few names, so that entries meet; among them every way to say "somewhere else".
PARTS = st.sampled_from([
    "a", "b", "c", "..", ".", "", "outside", ".wh.a", ".wh.b", ".wh.", ".wh..", ".wh...",
    ".wh..wh..opq", "link", "proc", "self", "root", "x" * 300, "\udcff", "a\n",
])  # fmt: skip
NAMES = st.builds("/".join, st.lists(PARTS, max_size=5))
KINDS = st.sampled_from([bytes([kind]) for kind in b"\x001234567SxgLKZ"])
RECORDS = st.dictionaries(
    st.sampled_from([
        "path", "linkpath", "size", "mtime", "atime", "uid", "gid", "SCHILY.xattr.user.x",
        "SCHILY.xattr.trusted.overlay.opaque", "SCHILY.xattr.security.x", "GNU.sparse.map",
        "GNU.sparse.size", "GNU.sparse.name", "GNU.sparse.major", "GNU.sparse.minor",
        "GNU.sparse.realsize",
    ]),
    st.one_of(NAMES, st.sampled_from(["0", "1", "-1", "5", "1.5", "0,5", "0,1,1,4", "9" * 20])),
    max_size=3,
)  # fmt: skip


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """A tar stream whose headers are well formed and whose meaning is anybody's guess."""
    buffer = io.BytesIO()
    format_ = draw(st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
    with tarfile.open(fileobj=buffer, mode="w", format=format_) as tar:
        for _ in range(draw(st.integers(1, 8))):
            info = tarfile.TarInfo(draw(NAMES))
            info.type, info.linkname = draw(KINDS), draw(NAMES)
            data = draw(st.binary(max_size=20))
            info.size = len(data) if info.type in b"\x0007SxgLKZ" else 0
            info.mode = draw(st.sampled_from([0o644, 0o777, 0o7777, 0]))
            info.uid, info.gid, info.mtime = UID, GID, draw(st.integers(0, 1 << 35))
            if format_ == tarfile.PAX_FORMAT:
                info.pax_headers = draw(RECORDS)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A tar stream with bytes changed, blocks moved or its end cut; checksums made good again."""
    data = bytearray(draw(archives()))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(data) - 1))
        change = draw(st.sampled_from(["byte", "field", "cut", "copy", "drop"]))
        block = at - at % BLOCK
        if change == "byte":
            data[at] = draw(st.integers(0, 255))
        elif change == "field":
            field = draw(st.sampled_from([b"7" * 11, b"\xff" * 12, b"\x80" + bytes(11), b" " * 8]))
            start, size = draw(
                st.sampled_from([(0, 100), (100, 8), (124, 12), (136, 12), (156, 1)])
            )
            data[block + start : block + start + size] = field[:size].ljust(size, b"\0")
        elif change == "cut":
            del data[at:]
        elif change == "copy":
            data[at:at] = data[block : block + BLOCK]
        else:
            del data[block : block + BLOCK]
        if not data:
            break
    if draw(st.booleans()):
        for block in range(0, len(data) - BLOCK + 1, BLOCK):
            if data[block + 257 : block + 262] == b"ustar":
                data[block + 148 : block + 156] = b" " * 8
                total = sum(data[block : block + BLOCK])
                data[block + 148 : block + 156] = b"%06o\0 " % total
    return bytes(data)


def check_reading(data: bytes, size: int) -> None:
    """However the stream is cut, it is the same."""

    def outcome(blocks: list[bytes]) -> list[object]:
        found: list[object] = []
        reader = TarReader(blocks)
        try:
            while (entry := reader.next()) is not None:
                assert len(entry.name) <= METADATA_LIMIT
                assert 0 <= entry.stored <= 1 << 63
                found.append((entry.name, entry.kind, entry.size, entry.sparse, reader.read()))
        except ArchiveError as error:
            found.append((type(error), str(error)))
        return found

    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    assert outcome([data]) == outcome(pieces)


@fuzz(300)
@given(st.one_of(mutated(), st.binary(max_size=2000)), st.integers(1, 1500))
def test_reading_is_the_same_however_the_stream_is_cut(data: bytes, size: int) -> None:
    check_reading(data, size)


@replay("tar")
def test_kept_layers(data: bytes) -> None:
    for size in (1, 511, 512, 513):
        check_reading(data, size)
    for rules in (Unpacker, OverlayUnpacker):
        check_unpacking(rules, [data, data])


@fuzz(500)
@given(st.binary(max_size=200))
def test_records(data: bytes) -> None:
    try:
        records = parse_records(data)
    except ArchiveError:
        return
    assert all(b"=" not in key and b"\0" not in key for key in records)


@contextmanager
def place() -> Iterator[Path]:
    top = Path(tempfile.mkdtemp(prefix="cradled-fuzz-"))
    try:
        (top / "target").mkdir()
        (top / "outside").mkdir()
        (top / "outside" / "a").write_text("secret")
        (top / "target" / "link").symlink_to("../outside")
        yield top
    finally:
        remove_tree(top)


def state(top: Path) -> list[object]:
    found = []
    for path in (top, top / "outside", top / "outside" / "a"):
        status = path.lstat()
        found.append((status.st_ino, status.st_mode, status.st_uid, status.st_nlink,
                      status.st_size, status.st_mtime_ns, os.listxattr(path)))  # fmt: skip
    return [*found, (top / "outside" / "a").read_text(), sorted(os.listdir(top))]


@pytest.mark.parametrize("rules", [Unpacker, OverlayUnpacker])
@fuzz(150)
@given(layers=st.lists(mutated(), min_size=1, max_size=3))
def test_unpacking_stays_inside(rules: type[Unpacker], layers: list[bytes]) -> None:
    check_unpacking(rules, layers)


def check_unpacking(rules: type[Unpacker], layers: list[bytes]) -> None:
    with place() as top:
        before = state(top)
        descriptors = len(os.listdir("/proc/self/fd"))
        for layer in layers:
            unpacker = rules(str(top / "target"))
            try:
                with LayerStream(io.BytesIO(layer).read) as stream:
                    applied = apply(stream, unpacker)
                    assert applied.size == len(layer)
            except (ArchiveError, OSError, LowersNeeded):
                pass
            finally:
                unpacker.close()
        del unpacker, stream
        assert state(top) == before
        assert len(os.listdir("/proc/self/fd")) == descriptors


@fuzz(300)
@given(
    st.sampled_from([b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18", b""]),
    st.binary(max_size=500),
    st.integers(1, 100),
)
def test_decompression(start: bytes, rest: bytes, most: int) -> None:
    check_decompression(start + rest, most)


@replay("decompress")
def test_kept_streams(data: bytes) -> None:
    """In pieces of any size they are the same; how much comes before an error is left open."""
    size, error = check_decompression(data, len(data) + 1)
    for most in (1, 3, 100):
        again = check_decompression(data, most)
        assert again[1] == error
        assert error or again[0] == size


def check_decompression(data: bytes, most: int) -> tuple[int, str]:
    """How many bytes came out, and by which error they ended."""
    source, size = io.BytesIO(data), 0
    try:
        for block in uncompressed(lambda length: source.read(min(length, most))):
            assert len(block) <= 256 * 1024
            size += len(block)
    except ArchiveError as error:
        return size, type(error).__name__
    return size, ""
