"""Layer streams: gzip, zstd and plain, whole and broken, and the thread behind them."""

from __future__ import annotations

import gzip
import hashlib
import os
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cradled.archive.decompress import (
    QUEUE,
    LayerStream,
    compression,
    positional,
    sequential,
    uncompressed,
)
from cradled.archive.errors import ArchiveError, CompressionError, Truncated

if sys.version_info >= (3, 14):
    from compression import zstd as zstandard
else:
    from backports import zstd as zstandard

DATA = b"".join(hashlib.sha256(b"%d" % n).digest() + b"text " * 20 for n in range(20_000))
SKIPPABLE = b"\x50\x2a\x4d\x18\x05\0\0\0hello"


def zstd(data: bytes) -> bytes:
    return zstandard.compress(data, options={zstandard.CompressionParameter.checksum_flag: 1})


def reading(data: bytes, most: int = 1 << 30) -> Callable[[int], bytes]:
    at = 0

    def read(length: int) -> bytes:
        nonlocal at
        piece = data[at : at + min(length, most)]
        at += len(piece)
        return piece

    return read


def whole(data: bytes, most: int = 1 << 30) -> bytes:
    return b"".join(uncompressed(reading(data, most)))


@pytest.mark.parametrize("pack", [gzip.compress, zstd, bytes])
@pytest.mark.parametrize("most", [1 << 30, 1000, 1])
def test_round_trip(pack: Callable[[bytes], bytes], most: int) -> None:
    data = DATA if most > 1 else DATA[:5000]
    assert whole(pack(data), most) == data


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_many_members(pack: Callable[[bytes], bytes]) -> None:
    packed = b"".join(pack(b"%d" % n * 10) for n in range(500)) + pack(b"") + pack(b"end")
    assert whole(packed, 700) == b"".join(b"%d" % n * 10 for n in range(500)) + b"end"


def test_skippable_zstd_frames() -> None:
    assert whole(SKIPPABLE + zstd(b"abc") + SKIPPABLE + zstd(b"def")) == b"abcdef"


def test_what_it_is_by_its_first_bytes() -> None:
    assert compression(gzip.compress(b"")) == "gzip"
    assert compression(zstd(b"")) == compression(SKIPPABLE) == "zstd"
    assert compression(b"\x1f\x8b\x09") == compression(b"") == compression(b"usr/") == ""
    assert b"".join(uncompressed(reading(gzip.compress(b"x")), sniff=False)) != b"x"


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
@pytest.mark.parametrize("trailer", [b"garbage behind", b"\0" * 512, b"\x1f", b"\x1f\x8b\x09\0"])
def test_trailing_garbage(pack: Callable[[bytes], bytes], trailer: bytes) -> None:
    with pytest.raises(CompressionError, match="invalid header"):
        whole(pack(b"data") + trailer)


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_truncation_anywhere(pack: Callable[[bytes], bytes]) -> None:
    packed = pack(DATA[:3000])
    for length in range(4, len(packed), 13):
        with pytest.raises(Truncated):
            whole(packed[:length])
    with pytest.raises(Truncated):
        whole(packed[:-1])


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_damage(pack: Callable[[bytes], bytes]) -> None:
    packed = bytearray(pack(DATA[:100_000]))
    packed[len(packed) // 2] ^= 0x55
    with pytest.raises(ArchiveError):
        whole(bytes(packed))


def test_gzip_trailer_is_checked() -> None:
    packed = bytearray(gzip.compress(b"data"))
    for at in (-8, -1):  # checksum, length
        damaged = packed.copy()
        damaged[at] ^= 1
        with pytest.raises(CompressionError):
            whole(bytes(damaged))


@pytest.mark.parametrize("flags", [0, 4, 8, 12, 16, 24, 28, 2, 30])
def test_gzip_headers_with_optional_fields_cut_anywhere(flags: int) -> None:
    packer = zlib.compressobj(wbits=-15)
    body = packer.compress(b"data") + packer.flush()
    head = b"\x1f\x8b\x08" + bytes([flags]) + b"\0\0\0\0\0\x03"
    head += b"\x03\0a\0c" * bool(flags & 4) + b"name\0" * bool(flags & 8)
    head += b"comment\0" * bool(flags & 16)
    head += (zlib.crc32(head) & 0xFFFF).to_bytes(2, "little") * bool(flags & 2)
    trailer = zlib.crc32(b"data").to_bytes(4, "little") + (4).to_bytes(4, "little")
    member = head + body + trailer
    for most in range(1, len(member)):
        assert whole(member * 3, most) == b"data" * 3
    for length in range(4, len(head)):
        with pytest.raises(Truncated):
            whole(member[:length])


def test_endless_gzip_header() -> None:
    with pytest.raises(CompressionError, match="invalid header"):
        next(uncompressed(lambda length: b"\x1f\x8b\x08\x08".ljust(length, b"x")))


def test_zstd_windows_are_bounded() -> None:
    packer = zstandard.ZstdCompressor(options={zstandard.CompressionParameter.window_log: 28})
    packed = packer.compress(b"x" * 10_000) + packer.flush()
    with pytest.raises(CompressionError):
        whole(packed)


def test_blocks_stay_small_however_well_it_was_packed() -> None:
    for packed in (gzip.compress(bytes(50 << 20)), zstd(bytes(50 << 20))):
        assert len(packed) < 100_000
        assert max(map(len, uncompressed(reading(packed)))) <= 256 * 1024


def test_digest_and_size_and_small_members_joined() -> None:
    packed = b"".join(gzip.compress(DATA[at : at + 1000]) for at in range(0, len(DATA), 1000))
    with LayerStream(reading(packed)) as stream:
        blocks = list(stream)
    assert b"".join(blocks) == DATA
    assert len(blocks) < len(DATA) // 50_000
    assert stream.size == len(DATA)
    assert stream.digest == "sha256:" + hashlib.sha256(DATA).hexdigest()


def test_drain_after_some() -> None:
    with LayerStream(reading(gzip.compress(DATA))) as stream:
        next(stream)
        stream.drain()
        assert list(stream) == []
    assert stream.size == len(DATA)


def test_failures_of_the_thread_are_raised_here_once_read() -> None:
    packed = gzip.compress(DATA)
    with LayerStream(reading(packed[:-4])) as stream:
        got: list[bytes] = []
        with pytest.raises(Truncated):
            got.extend(stream)
        assert b"".join(got) == DATA
        with pytest.raises(Truncated):
            stream.drain()


def test_failing_reads_are_raised() -> None:
    def read(_length: int) -> bytes:
        raise OSError(5, "broken disk")

    with LayerStream(read) as stream, pytest.raises(OSError, match="broken disk"):
        next(stream)


def test_leaving_early_ends_the_thread() -> None:
    asked = 0

    def endless(length: int) -> bytes:
        nonlocal asked
        asked += 1
        return bytes(length)

    before = threading.active_count()
    with LayerStream(endless, sniff=False) as stream:
        next(stream)
    assert threading.active_count() == before
    assert asked <= QUEUE + 4


def test_waiting_blocks_are_bounded() -> None:
    reads = threading.Semaphore(0)
    count = 0

    def read(length: int) -> bytes:
        nonlocal count
        count += 1
        reads.release()
        return bytes(length) if count < 1000 else b""

    with LayerStream(read, sniff=False) as stream:
        for _ in range(QUEUE + 1):
            reads.acquire(timeout=10)
        assert not reads.acquire(timeout=0.05) or count <= QUEUE + 2
        stream.drain()
    assert count == 1000


def test_ways_to_read(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"0123456789")
    fd = os.open(path, os.O_RDONLY)
    first, second = positional(fd), positional(fd, 5)
    assert (first(3), second(3), first(9), second(9), first(1)) == (
        b"012", b"567", b"3456789", b"89", b"")  # fmt: skip
    assert os.read(fd, 2) == b"01"
    assert sequential(fd)(2) == b"23"
    os.close(fd)


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before
