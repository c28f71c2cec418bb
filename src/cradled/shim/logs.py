"""Async. A container's output as a logging program reads it (``binary://``).

The program gets ``CONTAINER_ID`` and ``CONTAINER_NAMESPACE`` and nothing else as environment, the
container's stdout and stderr as descriptors 3 and 4, and the writing end of a pipe as 5, which it
closes, or writes to, when it is ready (``binary-v2``: it has to write). It reads to the end of its
input; when the container is deleted it is told to stop by SIGTERM, and after 12 s by SIGKILL, but
not before it has read all that was written, and had a moment to end by itself.

The reading ends are kept here too, so that a program which dies does not end the container.
"""

from __future__ import annotations

import os
from time import monotonic

from cradled.errors import Error
from cradled.linux import fds, fifo
from cradled.linux.signals import SIGKILL, SIGTERM
from cradled.linux.spawn import spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cradled.linux.coroutines import Loop
    from cradled.linux.reaper import Reaper

READY = 60.0
"""Seconds until a program has to be ready."""
GRACE = 12.0
_LAST = 1.0  # seconds to end by itself after all has been read
_LOOK = 0.01  # seconds between looks at what is left to read
_FIRST = 6  # the first descriptor above those the program gets


class Logger:
    """A running logging program, and the pipes it reads from."""

    __slots__ = ("_loop", "_outputs", "_pid", "ended")

    def __init__(self, loop: Loop, reaper: Reaper, pid: int, outputs: Sequence[int]) -> None:
        self._loop = loop
        self._pid = pid
        self._outputs = outputs
        self.ended = reaper.watch(pid)

    async def finish(self, deadline: float) -> None:
        """Let it read what was written, and end; not beyond a time of ``monotonic``."""
        while not self.ended.done and any(fifo.waiting(fd) for fd in self._outputs):
            if monotonic() > deadline:
                return
            await self._loop.sleep(_LOOK)
        await self._loop.within(self.ended, min(_LAST, max(0.0, deadline - monotonic())))

    async def stop(self) -> None:
        """End it."""
        if not self.ended.done:
            os.kill(self._pid, SIGTERM)
            if not await self._loop.within(self.ended, GRACE):
                os.kill(self._pid, SIGKILL)
                await self.ended


async def start_logger(
    loop: Loop,
    reaper: Reaper,
    argv: list[str],
    environment: dict[str, str],
    outputs: Sequence[int],
    must_write: bool,
) -> Logger:
    """Start a program on the reading ends of stdout and stderr.

    Returns when it says that it is ready. Raises Error when it cannot be started, takes too long
    or, where it ``must_write``, did not say so.
    """
    ready, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    given = [fds.above(fd, _FIRST) for fd in (*map(os.dup, outputs), theirs)]
    try:
        pid = spawn(argv, environment, (None, None, None, *given))
    except (OSError, ValueError) as error:  # ValueError: no name at all
        loop.close(ready)
        reason = (getattr(error, "strerror", "") or str(error)).lower()
        raise Error(f"failed to start binary process: {argv[0]}: {reason}") from None
    finally:
        for fd in given:
            os.close(fd)
    logger = Logger(loop, reaper, pid, outputs)
    try:
        in_time = await loop.within(loop.readable(ready), READY)
        said = in_time and os.read(ready, 1)
    finally:
        loop.close(ready)
    if not in_time or (must_write and not said):
        await logger.stop()
        waited = "" if in_time else f" in {READY:.0f} s"
        raise Error(f'logging binary did not call ready{waited}: "{argv[0]}"')
    return logger
