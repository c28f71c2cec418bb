"""Async. What a shim writes to its stderr, handed on to the daemon's log line by line.

The FIFO in the bundle outlives the daemon, and so may be opened again by the next. A shim that
writes more than anybody would read has to wait, and costs the daemon no more than the others.
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import suppress

from cradled.runtime.bundle import Bundle

log = logging.getLogger(__name__)

PAUSE_SECONDS = 0.05
"""Between two reads."""

_FULL = 64 << 10  # bytes in a FIFO
_READ = 16 << 10
_LINES = 100  # of one read that are logged
_LONGEST = 64 << 10


class ShimLog:
    """The reading end; has to be closed."""

    def __init__(self, bundle: Bundle) -> None:
        self._id = bundle.id
        self._rest = b""
        self._loop = asyncio.get_running_loop()
        self._fd = bundle.open_log()
        self._pause: asyncio.TimerHandle | None = None
        self._listen()

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        """Hand on what is there, and stop; idempotent."""
        if self._fd >= 0:
            if self._pause is not None:
                self._pause.cancel()
            self._loop.remove_reader(self._fd)
            for _ in range(_FULL // _READ):  # last words, as many as there may be
                self._read()
            os.close(self._fd)
            self._fd = -1

    def _listen(self) -> None:
        self._pause = None
        self._loop.add_reader(self._fd, self._come)

    def _come(self) -> None:
        self._loop.remove_reader(self._fd)
        self._pause = self._loop.call_later(PAUSE_SECONDS, self._listen)
        self._read()

    def _read(self) -> None:
        with suppress(BlockingIOError):
            *lines, self._rest = (self._rest + os.read(self._fd, _READ)).split(b"\n")
            if len(self._rest) > _LONGEST:
                lines, self._rest = [*lines, self._rest], b""
            for line in lines[:_LINES]:
                log.info("shim of %s: %s", self._id, line.decode(errors="replace"))
            if len(lines) > _LINES:
                log.info("shim of %s: and %d lines more", self._id, len(lines) - _LINES)
