from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cradled.aio import lag, watchdog
from cradled.aio.watchdog import Watchdog
from cradled.api import version_pb2
from cradled.api.wellknown_pb2 import Empty
from cradled.rpc.call import Call
from cradled.rpc.inprocess import InProcess
from cradled.rpc.observe import Observer
from cradled.rpc.service import Router
from cradled.rpc.stub import Stub


@contextmanager
def watched(caplog: pytest.LogCaptureFixture) -> Iterator[threading.Event]:
    """A watchdog, and the event that it has told something."""
    told = threading.Event()

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.set()

    handler = Told()
    logger = logging.getLogger("cradled.aio.watchdog")
    logger.addHandler(handler)
    caplog.set_level(logging.DEBUG, logger.name)
    try:
        with Watchdog(asyncio.get_running_loop(), limit=0.001, interval=0.001):
            yield told
    finally:
        logger.removeHandler(handler)


async def test_tells_what_held_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    late = lag.LATE.count
    with watched(caplog) as told:
        hold_the_loop()
        await loop.run_in_executor(None, told.wait)
    assert "loop was held for" in caplog.records[0].message
    assert any("hold_the_loop" in str(getattr(r, "fields", {})) for r in caplog.records)
    assert lag.LATE.count > late
    assert sum(lag.LATE.counts[7:]) > 0  # 50 ms and more


class Slow:
    async def version(self, call: Call, request: Any) -> Any:
        hold_the_loop()
        return version_pb2.VersionResponse()


async def test_names_the_rpc_and_the_task(caplog: pytest.LogCaptureFixture) -> None:
    name = "containerd.services.version.v1.Version/Version"
    router = Router(Observer().wrap)
    router.add(version_pb2.Version, Slow())
    stub = Stub(InProcess(router), version_pb2.Version)
    task = asyncio.current_task()
    assert task is not None
    task.set_name("the-task")
    watchdog.held.pop(name, None)
    with watched(caplog) as told:
        while watchdog.held.get(name) is None:
            told.clear()
            await stub.version(Empty())
            await asyncio.get_running_loop().run_in_executor(None, told.wait)
    fields = [record.fields for record in caplog.records]  # type: ignore[attr-defined]
    assert {"handler": name, "task": "the-task"}.items() <= max(fields, key=len).items()


def hold_the_loop() -> None:
    threading.Event().wait(0.1)


async def test_stops_when_left() -> None:
    with Watchdog(asyncio.get_running_loop()) as dog:
        pass
    assert not dog._thread.is_alive()
