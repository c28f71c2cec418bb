"""Every dialect of tar, read whole and a few bytes at a time."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from cradled.archive import tar
from cradled.archive.errors import ArchiveError, TarError, Truncated
from cradled.archive.tar import BLOCK, Entry, TarReader, parse_records

END = bytes(2 * BLOCK)


def header(
    name: bytes = b"file",
    *,
    mode: bytes = b"0000644\0",
    uid: bytes = b"0001750\0",
    gid: bytes = b"0000000\0",
    size: bytes = b"00000000000\0",
    mtime: bytes = b"00000000001\0",
    kind: bytes = b"0",
    link: bytes = b"",
    magic: bytes = b"ustar\x0000",
    rest: bytes = b"",
    checksum: bytes | None = None,
) -> bytes:
    """A header block, field by field."""
    head = name.ljust(100, b"\0") + mode + uid + gid + size + mtime
    tail = (kind + link.ljust(100, b"\0") + magic).ljust(109, b"\0") + rest
    block = (head + b" " * 8 + tail).ljust(BLOCK, b"\0")
    stated = checksum or b"%06o\0 " % sum(block)
    return block[:148] + stated + block[156:]


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    length = len(body)
    while length != len(body) + len(str(length)):
        length = len(body) + len(str(length))
    return b"%d%b" % (length, body)


def pax(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    data = b"".join(record(*pair) for pair in records)
    return header(b"pax", kind=kind, size=b"%011o\0" % len(data)) + padded(data)


def sliced(data: bytes, size: int) -> Iterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def read(blocks: Iterable[bytes]) -> list[tuple[Entry, bytes]]:
    reader = TarReader(blocks)
    found = []
    while (entry := reader.next()) is not None:
        found.append((entry, reader.read()))
    return found


def only(data: bytes) -> Entry:
    ((entry, _),) = read([data])
    return entry


def sample(format_: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format_) as archive:
        for name, kind, data in (
            ("dir", tarfile.DIRTYPE, b""),
            ("dir/file", tarfile.REGTYPE, b"x" * 1000),
            ("dir/" + "n" * 90 + "/" + "m" * 60, tarfile.REGTYPE, b"long"),
            ("link", tarfile.SYMTYPE, b""),
            ("hard", tarfile.LNKTYPE, b""),
            ("device", tarfile.CHRTYPE, b""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.size, info.mode = kind, len(data), 0o640
            info.uid, info.gid, info.mtime = 1000, 2000, 1_234_567_890
            info.linkname = "dir/file" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            info.devmajor, info.devminor = (5, 1) if kind == tarfile.CHRTYPE else (0, 0)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("size", [1 << 20, 700, 512, 1])
def test_common_formats_however_the_stream_is_cut(format_: int, size: int) -> None:
    found = read(sliced(sample(format_), size))
    assert [(entry.name.rstrip(b"/"), chr(entry.kind), data) for entry, data in found] == [
        (b"dir", "5", b""),
        (b"dir/file", "0", b"x" * 1000),
        (b"dir/" + b"n" * 90 + b"/" + b"m" * 60, "0", b"long"),
        (b"link", "2", b""),
        (b"hard", "1", b""),
        (b"device", "3", b""),
    ]
    for entry, data in found:
        assert (entry.uid, entry.gid, entry.mode) == (1000, 2000, 0o640)
        assert entry.mtime == 1_234_567_890 * 10**9
        assert entry.size == entry.stored == len(data)
    assert found[3][0].link == found[4][0].link == b"dir/file"
    assert (found[5][0].major, found[5][0].minor) == (5, 1)


def test_unread_data_is_skipped() -> None:
    reader = TarReader(sliced(sample(tarfile.PAX_FORMAT), 100))
    names = []
    while (entry := reader.next()) is not None:
        names.append(entry.name)
        reader.piece(3)
    assert len(names) == 6


def test_old_v7_header_has_no_magic_and_marks_directories_by_a_slash() -> None:
    data = header(b"d/", kind=b"\0", magic=b"", size=b"00000000777\0") + header(
        b"f", kind=b"\0", magic=b"", size=b"00000000003\0"
    )
    found = read([data + padded(b"abc") + END])
    assert [(e.name, chr(e.kind), d) for e, d in found] == [(b"d/", "5", b""), (b"f", "0", b"abc")]


def test_a_slash_makes_no_directory_of_a_file_that_says_it_is_one() -> None:
    assert only(header(b"f/") + END).kind == tar.REGULAR


def test_prefixes() -> None:
    ustar = header(b"name", rest=bytes(80) + b"prefix")
    assert only(ustar + END).name == b"prefix/name"
    star = header(b"name", rest=(bytes(80) + b"prefix").ljust(211, b"\0") + b"00000000012\0")
    star = star[:508] + b"tar\0"
    star = star[:148] + b" " * 8 + star[156:]
    star = star[:148] + b"%06o\0 " % sum(star) + star[156:]
    entry = only(star + END)
    assert (entry.name, entry.atime) == (b"prefix/name", 10 * 10**9)
    gnu = header(b"name", magic=b"ustar  \0", rest=bytes(80) + b"00000000012\0")
    entry = only(gnu + END)
    assert (entry.name, entry.atime) == (b"name", 10 * 10**9)
    odd = header(b"name", magic=b"ustar  \0", rest=bytes(80) + b"prefix")
    assert only(odd + END).name == b"prefix/name"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"\x80\0\0\0\0\0\x01\0", 256),
        (b"\xff\xff\xff\xff\xff\xff\xff\xfe", -2),
        (b"  1750 \0", 0o1750),
        (b"00001750", 0o1750),
        (b"\0\0\0\0\0\0\0\0", 0),
        (b"        ", 0),
        (b"1750\0\0\0\0", 0o1750),
    ],
)
def test_numbers(field: bytes, value: int) -> None:
    assert only(header(uid=field) + END).uid == value


@pytest.mark.parametrize(
    "field", [b"0000x00\0", b"0000800\0", b"-000001\0", b"0x00001\0", b"1_0\0\0\0\0\0"]
)
def test_bad_numbers(field: bytes) -> None:
    with pytest.raises(TarError, match="bad number"):
        read([header(uid=field) + END])


def test_base256_sizes_are_bounded() -> None:
    with pytest.raises(TarError, match="range"):
        read([header(size=b"\x80" + b"\x7f" * 11) + END])
    with pytest.raises(TarError, match="negative"):
        read([header(size=b"\xff" * 12) + END])


def test_checksums() -> None:
    good = header(b"\xff\xfe name")
    assert only(good + END).name == b"\xff\xfe name"
    signed = sum(good[:148]) + 256 + sum(good[156:]) - 2 * 256
    assert only(header(b"\xff\xfe name", checksum=b"%06o\0 " % signed) + END)
    for off in (1, -1, 256, 65521, -65521, 65536):
        total = sum(good[:148]) + 256 + sum(good[156:]) + off
        if total < 0:
            continue
        with pytest.raises(TarError, match="checksum"):
            read([header(b"\xff\xfe name", checksum=b"%07o\0" % total) + END])


def test_pax_overrides() -> None:
    data = pax(
        (b"path", b"p" * 300),
        (b"linkpath", b"t" * 300),
        (b"uid", b"4294967294"),
        (b"gid", b"-2"),
        (b"mtime", b"1.0000000019"),
        (b"atime", b"-1.5"),
        (b"SCHILY.xattr.user.k=v", b""),
        (b"SCHILY.xattr.security.capability", b"\x01\0\n\xff"),
        (b"SCHILY.xattr.user.empty", b""),
        (b"uname", b"nobody"),
        (b"size", b"5"),
    )
    ((entry, content),) = read([data + header(size=b"00000000000\0") + padded(b"12345") + END])
    assert entry.name == b"p" * 300
    assert entry.link == b"t" * 300
    assert (entry.uid, entry.gid) == (4294967294, -2)
    assert (entry.mtime, entry.atime) == (1_000_000_001, -1_500_000_000)
    assert entry.xattrs == {
        b"user.k": b"v=",
        b"security.capability": b"\x01\0\n\xff",
        b"user.empty": b"",
    }
    assert content == b"12345"


def test_pax_applies_to_the_next_entry_only_and_empty_values_to_none() -> None:
    data = pax((b"path", b"one")) + header() + pax((b"path", b"")) + header(b"two") + END
    assert [entry.name for entry, _ in read([data])] == [b"one", b"two"]


def test_global_pax_headers_are_passed_over() -> None:
    data = pax((b"path", b"no"), kind=b"g") + header(b"yes") + END
    assert only(data).name == b"yes"


@pytest.mark.parametrize(
    "data",
    [
        b"abc",
        b"5 a=\nx",
        b"99 path=x\n",
        b"-5 a=b\n",
        b"7 a=b\n",
        b"6 =bc\n",
        b"6 abc\n",
        b"6 a=bc",
        b"0 a=b\n",
        b"11 path=a\0b\n",
        b"9 k\0=abc\n",
        b" 6 a=b\n",
        b"28 GNU.sparse.numbytes=1000\n",
        b"99999999999999999999999999 a=b\n",
    ],
)
def test_malformed_pax_records(data: bytes) -> None:
    with pytest.raises(TarError):
        parse_records(data)


@pytest.mark.parametrize("value", [b"1.x", b"1,5", b"", b"--1", b"1.5.5", b"9" * 30, b"1e5", b" 1"])
def test_malformed_pax_times(value: bytes) -> None:
    data = pax((b"mtime", value)) + header() + END
    if not value:
        assert only(data).mtime == 10**9
        return
    with pytest.raises(TarError):
        read([data])


def test_metadata_is_bounded() -> None:
    for kind in b"xLK":
        data = header(kind=bytes([kind]), size=b"77777777777\0")
        with pytest.raises(TarError, match="of 8589934591 bytes"):
            read([data])


def test_the_end() -> None:
    assert read([]) == []
    assert read([END]) == []
    assert read([bytes(BLOCK)]) == []
    assert len(read([header()])) == 1
    assert len(read([header() + END + b"whatever follows"])) == 1
    with pytest.raises(TarError, match="lone zero block"):
        read([bytes(BLOCK) + header()])


def test_truncation() -> None:
    whole = header(size=b"00000002000\0") + padded(b"x" * 1024)
    for length in (1, 100, 511, 513, 1000, 1535):
        with pytest.raises(Truncated):
            read([whole[:length]])
    short = header(size=b"00000000012\0") + b"0123456789"
    assert read([short])[0][1] == b"0123456789"  # the padding may be missing


def test_failures_of_the_stream_are_not_the_end_of_the_archive() -> None:
    def broken(good: bytes) -> Iterator[bytes]:
        yield good
        raise Truncated("gzip stream")

    entry = header(size=b"00000000005\0") + padded(b"12345")
    for good in (entry, entry[:600], entry + bytes(BLOCK), entry[:100]):
        with pytest.raises(Truncated, match="gzip stream"):
            read(broken(good))


def test_unknown_types_are_told_not_judged() -> None:
    ((entry, data),) = read([header(kind=b"Z", size=b"00000000003\0") + padded(b"abc") + END])
    assert (entry.kind, data) == (ord("Z"), b"abc")


SPARSE = [(0, 4096), (1 << 20, 4096), (3 << 20, 4096)]


@pytest.fixture
def sparse_file(tmp_path: Path) -> Path:
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        for offset, length in SPARSE:
            file.seek(offset)
            file.write(bytes([1 + offset % 251]) * length)
        file.truncate(4 << 20)
    return path


@pytest.mark.skipif(not shutil.which("tar"), reason="needs GNU tar")
@pytest.mark.parametrize(
    "words",
    [
        ["--format=gnu"],
        ["--format=pax", "--sparse-version=0.0"],
        ["--format=pax", "--sparse-version=0.1"],
        ["--format=pax", "--sparse-version=1.0"],
    ],
)
@pytest.mark.parametrize("pieces", [3, 100])
def test_sparse_files_of_gnu_tar(sparse_file: Path, words: list[str], pieces: int) -> None:
    if pieces > 3:
        with open(sparse_file, "r+b") as file:
            for n in range(pieces):
                os.pwrite(file.fileno(), b"p" * 4096, (n + 4) << 20)
            file.truncate((pieces + 8) << 20)
    command = ["tar", *words, "--sparse", "-C", str(sparse_file.parent), "-cf", "-", "sparse"]
    made = subprocess.run(command, check=True, capture_output=True).stdout
    if len(made) > 2 << 20:
        pytest.skip("the file system has no holes")
    for size in (len(made), 333):
        ((entry, data),) = read(sliced(made, size))
        assert (entry.name, entry.kind) == (b"sparse", tar.REGULAR)
        assert entry.size == sparse_file.stat().st_size
        content = bytearray(entry.size)
        at = 0
        for offset, length in entry.sparse or ():
            content[offset : offset + length] = data[at : at + length]
            at += length
        assert bytes(content) == sparse_file.read_bytes()


def sparse_pax(*records: tuple[bytes, bytes], data: bytes = b"") -> bytes:
    return pax(*records) + header(size=b"%011o\0" % len(data)) + padded(data) + END


@pytest.mark.parametrize(
    ("pieces", "size", "data"),
    [
        (b"0,5,3,5", b"100", b"x" * 10),
        (b"50,5,0,5", b"100", b"x" * 10),
        (b"96,5", b"100", b"x" * 5),
        (b"0,5", b"100", b"x" * 6),
        (b"0,5", b"100", b"x" * 4),
        (b"0", b"100", b""),
        (b"0,-5", b"100", b""),
        (b"0,99999999999999999999", b"100", b""),
        (b"9223372036854775807,1", b"9223372036854775807", b"x"),
    ],
)
def test_sparse_maps_that_lie(pieces: bytes, size: bytes, data: bytes) -> None:
    records = [(b"GNU.sparse.name", b"n"), (b"GNU.sparse.size", size), (b"GNU.sparse.map", pieces)]
    with pytest.raises(ArchiveError):
        read([sparse_pax(*records, data=data)])


@pytest.mark.parametrize("text", [b"1\n0\n", b"999999999999\n", b"x\n", b"", b"1\n5", b"-1\n"])
def test_sparse_maps_in_the_data_that_lie(text: bytes) -> None:
    records = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"),
               (b"GNU.sparse.realsize", b"100")]  # fmt: skip
    with pytest.raises(ArchiveError):
        read([sparse_pax(*records, data=text.ljust(BLOCK, b"\0"))])


def test_unknown_sparse_forms_are_ordinary_files() -> None:
    records = [(b"GNU.sparse.major", b"2"), (b"GNU.sparse.minor", b"0")]
    ((entry, data),) = read([sparse_pax(*records, data=b"abc")])
    assert entry.sparse is None
    assert data == b"abc"


def test_old_gnu_sparse_needs_its_magic() -> None:
    with pytest.raises(TarError, match="not GNU"):
        read([header(kind=b"S") + END])


def test_old_gnu_sparse_map_is_bounded() -> None:
    def extension() -> bytes:
        return (b"00000000000\x0000000000000\0" * 21 + b"\1").ljust(BLOCK, b"\0")

    first = bytearray(header(kind=b"S", magic=b"ustar  \0"))
    first[482] = 1
    first[148:156] = b" " * 8
    first[148:156] = b"%06o\0 " % sum(first)

    def endless() -> Iterator[bytes]:
        yield bytes(first)
        while True:
            yield extension()

    with pytest.raises(TarError, match="without end"):
        read(endless())
