"""Async. A file that another process writes to, read as it grows."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager

from cradled.linux import inotify

CHUNK = 1 << 16
_LOOK_AGAIN = 0.1  # seconds between looks at a file whose changes are not told
_LAST = 0.1  # seconds for what the writer still had in hand at the end


async def follow(fd: int, until: Awaitable[object]) -> AsyncIterator[bytes]:
    """What is in a file from its position on, then what is added, until ``until`` is done.

    A file that was cut is read from its beginning. Raises what ``until`` raises.
    """
    news = asyncio.Event()
    ended = asyncio.ensure_future(until)
    ended.add_done_callback(lambda _: news.set())
    try:
        with _watched(fd, news.set) as interval:
            while not ended.done():
                news.clear()
                for data in _new(fd):
                    yield data
                waiting = asyncio.ensure_future(news.wait())
                await asyncio.wait((waiting,), timeout=interval)
                waiting.cancel()
        await asyncio.sleep(_LAST)
        for data in _new(fd):
            yield data
        ended.result()
    finally:
        ended.cancel()


def _new(fd: int) -> Iterator[bytes]:
    if os.fstat(fd).st_size < os.lseek(fd, 0, os.SEEK_CUR):
        os.lseek(fd, 0, os.SEEK_SET)
    while data := os.read(fd, CHUNK):
        yield data


@contextmanager
def _watched(fd: int, changed: Callable[[], None]) -> Iterator[float | None]:
    """Have changes told; where that cannot be, the seconds between looks."""
    try:
        watch = inotify.writes_to(fd)
    except OSError:
        yield _LOOK_AGAIN
        return

    def take() -> None:
        os.read(watch, CHUNK)
        changed()

    loop = asyncio.get_running_loop()
    loop.add_reader(watch, take)
    try:
        yield None
    finally:
        loop.remove_reader(watch)
        os.close(watch)
