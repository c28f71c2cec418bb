from __future__ import annotations

import asyncio
import logging
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from cradled.daemon.config import Config
from cradled.daemon.config_check import Problem
from cradled.daemon.listeners import Sockets
from cradled.daemon.serve import Signals, Start

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("loops", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_stacks_are_told_though_the_loop_is_held(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    loops: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    caplog.set_level(logging.INFO)
    path = tmp_path / f"cradled.{os.getpid()}.stacks.log"

    def hold() -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        until = time.monotonic() + 10
        while not path.exists() and time.monotonic() < until:
            pass

    async def main() -> None:
        loop = asyncio.get_running_loop()
        start = Start(Config(), [], never, Sockets(), (-1, -1), 0.0, 0.0)
        signals = Signals(loop, start)
        hold()
        assert "hold" in path.read_text()
        assert "BEGIN task stack dump" not in caplog.text
        os.kill(os.getpid(), signal.SIGTERM)
        await signals.stop.wait()
        assert "=== BEGIN task stack dump ===" in caplog.text
        # And though the loop has nothing to do.
        path.unlink()
        timer = loop.call_later(0.05, os.kill, os.getpid(), signal.SIGUSR1)
        async with asyncio.timeout(10):
            while not path.exists():  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)
        timer.cancel()

    with asyncio.Runner(loop_factory=loops) as runner:
        runner.run(main())


def never() -> tuple[Config, list[Problem]]:
    raise AssertionError
