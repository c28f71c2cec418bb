"""Blocking. Tells what held the event loop: for debugging, in a thread of its own.

Every ``interval`` the thread asks the loop for a sign of life. When none comes within ``limit`` it
looks at the stack of the loop's thread, and when the sign has come it logs how long that took and
where the loop was. Costs wake-ups all the time, so a daemon runs it only when it is debugged.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Self

log = logging.getLogger(__name__)

LIMIT = 0.005
INTERVAL = 0.02
_FRAMES = 6


class Watchdog:
    """Enter it in the loop's own thread; ``limit`` and ``interval`` are in seconds."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        limit: float = LIMIT,
        interval: float = INTERVAL,
    ) -> None:
        self._loop = loop
        self._limit = limit
        self._interval = interval
        self._watched = threading.get_ident()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(self._interval):
            self._probe()

    def _probe(self) -> None:
        alive = threading.Event()
        asked = time.monotonic()
        try:
            self._loop.call_soon_threadsafe(alive.set)
        except RuntimeError:  # the loop is closed
            return
        if alive.wait(self._limit):
            return
        where = _where(sys._current_frames().get(self._watched))
        while not alive.wait(0.5):
            if self._stopped.is_set():
                return
        held = (time.monotonic() - asked) * 1000
        log.debug("loop was held for %.1f ms", held, extra={"fields": {"at": where}})


def _where(frame: FrameType | None) -> str:
    """The innermost frames as ``function (file:line)``, innermost first."""
    frames: list[str] = []
    while frame is not None and len(frames) < _FRAMES:
        code = frame.f_code
        name = code.co_filename.rpartition("/")[2]
        frames.append(f"{code.co_name} ({name}:{frame.f_lineno})")
        frame = frame.f_back
    return " < ".join(frames)
