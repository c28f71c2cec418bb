"""Blocking. Tells what held the event loop: in a thread of its own.

Every ``interval`` the thread asks the loop for a sign of life; how long that takes is counted
(``lag.LATE``). When none comes within ``limit`` it looks at the stack of the loop's thread, and
when the sign has come it logs how long that took, where the loop was, and for whom. Costs wake-ups
all the time, so a daemon runs it only when it is debugged or its metrics are wanted.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import NamedTuple, Self

from cradled.aio import lag

log = logging.getLogger(__name__)

LIMIT = 0.005
INTERVAL = 0.02
_FRAMES = 6
_CULPRITS = 64

held: dict[str, int] = {}
"""How often the loop was held beyond the limit, by rpc, or else by function."""


class Culprit(NamedTuple):
    """``at`` has the innermost frames, ``handler`` the rpc that is served, ``task`` its name."""

    at: str
    handler: str
    task: str


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

        def answer() -> None:
            lag.since(asked)
            alive.set()

        try:
            self._loop.call_soon_threadsafe(answer)
        except RuntimeError:  # the loop is closed
            return
        if alive.wait(self._limit):
            return
        culprit = self._culprit()
        while not alive.wait(0.5):
            if self._stopped.is_set():
                return
        _count(culprit)
        seconds = (time.monotonic() - asked) * 1000
        fields = {key: value for key, value in culprit._asdict().items() if value}
        log.debug("loop was held for %.1f ms", seconds, extra={"fields": fields})

    def _culprit(self) -> Culprit:
        frame = sys._current_frames().get(self._watched)
        try:
            task = asyncio.current_task(self._loop)
        except RuntimeError:  # newer Pythons tell it in the loop's own thread only
            task = None
        return Culprit(_where(frame), _handler(frame), "" if task is None else task.get_name())


def _count(culprit: Culprit) -> None:
    name = culprit.handler or culprit.at.partition(" ")[0]
    if name in held or len(held) < _CULPRITS:
        held[name] = held.get(name, 0) + 1


def _where(frame: FrameType | None) -> str:
    """The innermost frames as ``function (file:line)``, innermost first."""
    frames: list[str] = []
    while frame is not None and len(frames) < _FRAMES:
        code = frame.f_code
        name = code.co_filename.rpartition("/")[2]
        frames.append(f"{code.co_name} ({name}:{frame.f_lineno})")
        frame = frame.f_back
    return " < ".join(frames)


def _handler(frame: FrameType | None) -> str:
    """The rpc whose handler is running: that of the innermost frame of ``rpc.observe``."""
    while frame is not None:
        if frame.f_code.co_name == "observed":
            return getattr(frame.f_locals.get("calls"), "name", "")
        frame = frame.f_back
    return ""
