from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from cradled.aio.watchdog import Watchdog


async def test_tells_what_held_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    loop, told = asyncio.get_running_loop(), threading.Event()

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.set()

    handler = Told()
    logger = logging.getLogger("cradled.aio.watchdog")
    logger.addHandler(handler)
    caplog.set_level(logging.DEBUG, logger.name)
    try:
        with Watchdog(loop, limit=0.001, interval=0.001):
            hold_the_loop()
            await loop.run_in_executor(None, told.wait)
    finally:
        logger.removeHandler(handler)
    assert "loop was held for" in caplog.records[0].message
    assert any("hold_the_loop" in str(getattr(r, "fields", {})) for r in caplog.records)


def hold_the_loop() -> None:
    threading.Event().wait(0.1)


async def test_stops_when_left() -> None:
    with Watchdog(asyncio.get_running_loop()) as watchdog:
        pass
    assert not watchdog._thread.is_alive()
