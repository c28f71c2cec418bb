"""What a shim writes to its stderr, and how it reaches the daemon's log."""

import asyncio
import fcntl
import logging
import os
import sys
import termios
from pathlib import Path

import pytest

from cradled.runtime import shim_log
from cradled.runtime.bundle import Bundle
from cradled.runtime.shim_log import ShimLog


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle(str(tmp_path), str(tmp_path / "work"), "ns", "c1")


async def test_lines_reach_the_log_whole(
    bundle: Bundle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shim_log, "PAUSE_SECONDS", 0)
    caplog.set_level(logging.INFO, "cradled.runtime.shim_log")
    log = ShimLog(bundle)

    async def written(data: bytes, count: int) -> list[str]:
        writer = os.open(bundle.log, os.O_WRONLY | os.O_NONBLOCK)
        os.write(writer, data)
        os.close(writer)
        while len(caplog.messages) < count:  # noqa: ASYNC110
            await asyncio.sleep(0)
        return caplog.messages

    assert await written(b"one\ntw", 1) == ["shim of c1: one"]
    assert await written(b"o\nthr\xffee\n", 3) == [
        "shim of c1: one", "shim of c1: two", "shim of c1: thr\ufffdee",
    ]  # fmt: skip
    caplog.clear()
    for _ in range(17):  # without an end: cut, not kept for ever
        await written(b"x" * 4096, 0)
        while readable(bundle):  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert [len(message) > 65536 for message in caplog.messages] == [True]
    os.unlink(bundle.log)
    log.close()
    log.close()


def readable(bundle: Bundle) -> int:
    """Bytes that nobody has read yet."""
    reader = os.open(bundle.log, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return int.from_bytes(fcntl.ioctl(reader, termios.FIONREAD, bytes(4)), sys.byteorder)
    finally:
        os.close(reader)


async def test_a_flood_has_to_wait(
    bundle: Bundle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "cradled.runtime.shim_log")
    monkeypatch.setattr(shim_log, "PAUSE_SECONDS", 1000)
    log = ShimLog(bundle)
    writer = os.open(bundle.log, os.O_WRONLY | os.O_NONBLOCK)
    os.write(writer, b"a\n" * (16 << 10))
    while not caplog.messages:  # noqa: ASYNC110
        await asyncio.sleep(0)
    for _ in range(10):
        await asyncio.sleep(0)
    assert readable(bundle) == 16 << 10
    assert caplog.messages == ["shim of c1: a"] * 100 + ["shim of c1: and 8092 lines more"]
    log.close()
    os.close(writer)
