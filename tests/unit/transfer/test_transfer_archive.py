"""Reading a tar stream in pieces of any size, compressed or not."""

import gzip
import io
import sys
import tarfile
from collections.abc import AsyncIterator, Iterator

import pytest
from harness.transfers import pieces, tar
from isal import igzip_lib

from cradled.aio import threads
from cradled.errors import InvalidArgument
from cradled.transfer import archive as module
from cradled.transfer.archive import Source, open_archive

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BIG = bytes(range(256)) * 9000  # 2.2 MiB
FILES = {"a": b"1", "empty": b"", "dir/" + "long" * 60: b"2" * 513, "big": BIG, "z": b"3" * 512}


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    yield
    threads.close()


async def contents(chunks: AsyncIterator[bytes]) -> dict[str, bytes]:
    archive = await open_archive(chunks)
    found = {}
    while (entry := await archive.next()) is not None:
        found[entry.name.decode()] = b"".join([piece async for piece in archive.pieces()])
    await archive.drain()
    return found


@pytest.mark.parametrize("size", [511, 512, 513, 10_000, 1 << 20, 1 << 30])
async def test_plain(size: int) -> None:
    assert await contents(pieces(tar(FILES), size)) == FILES


async def test_bytewise() -> None:
    small = {name: data for name, data in FILES.items() if name != "big"}
    assert await contents(pieces(tar(small), 1)) == small


@pytest.mark.parametrize("size", [100, 10_000, 1 << 30])
async def test_gzip(size: int) -> None:
    data = tar(FILES)
    members = gzip.compress(data[:3000]) + igzip_lib.compress(data[3000:], flag=1)
    assert await contents(pieces(members, size)) == FILES


async def test_zstd() -> None:
    data = zstd.compress(tar(FILES))
    assert await contents(pieces(data)) == FILES


async def test_what_is_not_read_is_passed_over() -> None:
    archive = await open_archive(pieces(tar(FILES)))
    names = []
    while (entry := await archive.next()) is not None:
        names.append(entry.name.decode())
        if entry.name == b"big":
            first = await anext(archive.pieces())
            assert first == BIG[: module.PIECE]
    assert names == list(FILES)


async def test_gnu_long_names() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as made:
        made.addfile(tarfile.TarInfo("n" * 300))
    assert await contents(pieces(out.getvalue(), 100)) == {"n" * 300: b""}


async def test_documents_are_bounded() -> None:
    archive = await open_archive(pieces(tar({"doc": b"x" * 100})))
    await archive.next()
    with pytest.raises(InvalidArgument, match="a document of 100 bytes"):
        await archive.read(99)
    assert await archive.read(100) == b"x" * 100


@pytest.mark.parametrize(
    "data",
    [
        tar(FILES)[:512],
        tar(FILES)[:5000],
        b"nonsense" * 100,
        b"\0" * 100 + b"x",
        gzip.compress(tar(FILES))[:-9],
        gzip.compress(tar(FILES))[:100] + b"x" * 1000,
    ],
)
async def test_damaged(data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        await contents(pieces(data))


async def test_oversized_headers() -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = b"L", 1 << 30
    with pytest.raises(InvalidArgument, match="oversized header"):
        await contents(pieces(info.tobuf()))


async def test_nothing() -> None:
    assert await contents(pieces(b"")) == {}


async def test_peeking_takes_nothing() -> None:
    source = Source(pieces(b"abcdef", 1))
    assert await source.peek(3) == b"abc"
    assert await source.piece(2) == b"ab"
    assert await source.peek(10) == b"cdef"
    assert await source.take(10) == b"cdef"
    assert await source.peek(1) == b""
