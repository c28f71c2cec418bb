"""A file read while it grows, with changes told and without."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from cradled.client import growth
from cradled.errors import NotFound
from cradled.linux import inotify


@pytest.fixture(params=["told", "looked for"])
def log(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[int]:
    """A file of two words, open for reading and appending."""
    if request.param == "looked for":
        monkeypatch.setattr(inotify, "writes_to", _refuse)
    fd = os.open(tmp_path / "log", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.write(fd, b"one two ")
    os.lseek(fd, 4, os.SEEK_SET)
    yield fd
    os.close(fd)


def _refuse(fd: int) -> int:
    raise OSError(24, "Too many open files")


def append(directory: Path, data: bytes) -> None:
    with open(directory / "log", "ab") as other:
        other.write(data)


async def test_from_its_position_to_the_end(log: int, tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    async with aclosing(growth.follow(log, ended)) as chunks:
        assert await anext(chunks) == b"two "
        following = asyncio.ensure_future(anext(chunks))
        append(tmp_path, b"three ")
        assert await following == b"three "
        os.truncate(tmp_path / "log", 0)
        following = asyncio.ensure_future(anext(chunks))
        append(tmp_path, b"anew")
        assert await following == b"anew"
        ended.set_result(None)
        append(tmp_path, b"last")
        assert [chunk async for chunk in chunks] == [b"last"]
    assert os.listdir("/proc/self/fd") == before


async def test_what_ends_it_may_fail(log: int) -> None:
    async def fail() -> None:
        raise NotFound("it")

    read: list[bytes] = []

    async def follow() -> None:
        async for chunk in growth.follow(log, fail()):
            read.append(chunk)

    with pytest.raises(NotFound):
        await follow()
    assert read == [b"two "]
