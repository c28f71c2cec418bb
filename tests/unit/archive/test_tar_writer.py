"""Headers as Go's archive/tar writes them, and as ours and Python's readers read them."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator

import pytest

from cradled.archive import tar, tarwriter
from cradled.archive.tar import Entry, TarReader

NAMES = [
    b"a",
    b"d/" + b"x" * 98,
    b"d" * 50 + b"/" + b"x" * 60,
    b"d" * 99 + b"/x",
    b"y/" * 60 + b"z",
    "é/ü".encode(),
    "é".encode() * 80 + b"/x",
    b"p" * 160 + b"/" + b"q" * 30,
    b"a/" * 120 + b"q" * 101,
]
CAPABILITY = {b"security.capability": b"\x01\x00\n=\xff"}

# Of the stream that a Go program (1.19) wrote of the same entries.
BY_GO = "9a3b239fbdf210267d340779f3adb51703be44d64688e7943145aab3308f80c2"


def entry(
    name: bytes, kind: int, mode: int = 0, owner: tuple[int, int] = (0, 0), *,
    size: int = 0, seconds: int = 0, link: bytes = b"", xattrs: tar.Xattrs | None = None,
) -> Entry:  # fmt: skip
    made = Entry(name, kind, mode, *owner, size, seconds * 10**9 + 999)
    made.link = link
    made.xattrs = xattrs or {}
    return made


def entries() -> Iterator[Entry]:
    for name in NAMES:
        yield entry(name, tar.REGULAR, 0o644, size=5, seconds=1_234_567)
        yield entry(name + b"/", tar.DIRECTORY, 0o1777, (3_000_000, 7), seconds=-5)
        yield entry(name + b"l", tar.LINK, 0o4644, link=name, seconds=1 << 34)
        yield entry(name, tar.REGULAR)
        yield entry(name, tar.REGULAR, 0o644, xattrs=CAPABILITY)
    null = entry(b"null", tar.CHARACTER, 0o666, seconds=5)
    null.major, null.minor = 259, (1 << 20) - 1
    yield null


def stream() -> bytes:
    pieces = []
    for made in entries():
        pieces += [tarwriter.header(made), bytes(made.size), tarwriter.padding(made.size)]
    return b"".join([*pieces, tarwriter.END])


def test_the_bytes_are_gos() -> None:
    assert hashlib.sha256(stream()).hexdigest() == BY_GO


def test_our_reader_reads_what_was_written() -> None:
    reader = TarReader([stream()])
    for wrote in entries():
        read = reader.next()
        assert read is not None
        for field in ("name", "kind", "mode", "uid", "gid", "size", "link", "major", "minor"):
            assert getattr(read, field) == getattr(wrote, field), (field, wrote.name)
        assert read.mtime == wrote.mtime // 10**9 * 10**9
        assert dict(read.xattrs) == dict(wrote.xattrs)
    assert reader.next() is None


def test_python_reads_what_was_written() -> None:
    with tarfile.open(fileobj=io.BytesIO(stream())) as archive:
        names = [info.name.encode() for info in archive]
    assert names == [made.name.rstrip(b"/") for made in entries()]


@pytest.mark.parametrize("length", [*range(80, 120), *range(980, 1020)])
def test_a_records_length_counts_itself(length: int) -> None:
    """Around the lengths whose number takes another digit."""
    name = b"n" * length + b"\xc3\xa9"
    reader = TarReader([tarwriter.header(entry(name, tar.REGULAR)) + tarwriter.END])
    read = reader.next()
    assert read is not None
    assert read.name == name


def test_numbers_too_large_for_octal_text() -> None:
    big = entry(b"big", tar.REGULAR, 0o600, (1 << 31, 8**7), size=8**11, seconds=8**11)
    header = tarwriter.header(big)
    with tarfile.open(fileobj=io.BytesIO(header + tarwriter.END), mode="r|") as archive:
        info = archive.next()
    assert info is not None
    assert (info.uid, info.gid, info.size, info.mtime) == (1 << 31, 8**7, 8**11, 8**11)
