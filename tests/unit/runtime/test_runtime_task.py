"""What a shim writes to its stderr, and how it reaches the daemon's log."""

import asyncio
import logging
import os
from pathlib import Path

import pytest

from cradled.runtime.bundle import Bundle
from cradled.runtime.task import ShimLog


async def test_lines_reach_the_log_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cradled.runtime.task")
    bundle = Bundle(str(tmp_path), str(tmp_path / "work"), "ns", "c1")
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
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert [len(message) > 65536 for message in caplog.messages] == [True]
    os.unlink(bundle.log)
    log.close()
    log.close()
