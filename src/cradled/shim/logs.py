"""Async. A container's output as a logging program reads it (``binary://``).

The program gets ``CONTAINER_ID`` and ``CONTAINER_NAMESPACE`` and nothing else as environment, the
container's stdout and stderr as descriptors 3 and 4, and the writing end of a pipe as 5, which it
closes, or writes to, when it is ready (``binary-v2``: it has to write). It reads to the end of its
input; when the container is deleted it is told to stop by SIGTERM, and after 12 s by SIGKILL.
"""

from __future__ import annotations

import os

from cradled.errors import Error
from cradled.linux import fds
from cradled.linux.signals import SIGKILL, SIGTERM
from cradled.linux.spawn import spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cradled.shim.loop import Loop
    from cradled.shim.reaper import Reaper

GRACE = 12.0
_FIRST = 6  # the first descriptor above those the program gets


class Logger:
    """A running logging program."""

    __slots__ = ("_ended", "_loop", "_pid")

    def __init__(self, loop: Loop, reaper: Reaper, pid: int) -> None:
        self._loop = loop
        self._pid = pid
        self._ended = reaper.watch(pid)

    async def stop(self) -> None:
        """End it."""
        if not self._ended.done:
            os.kill(self._pid, SIGTERM)
            if not await self._loop.within(self._ended, GRACE):
                os.kill(self._pid, SIGKILL)
                await self._ended


async def start_logger(
    loop: Loop,
    reaper: Reaper,
    argv: list[str],
    environment: dict[str, str],
    outputs: Sequence[int],
    must_write: bool,
) -> Logger:
    """Start a program on the reading ends of stdout and stderr, which are closed here.

    Returns when it says that it is ready. Raises Error when it cannot be started or, where it
    ``must_write``, did not say so.
    """
    ready, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    given = [fds.above(fd, _FIRST) for fd in (*outputs, theirs)]
    try:
        pid = spawn(argv, environment, (None, None, None, *given))
    except OSError as error:
        loop.close(ready)
        raise Error(f'failed to start binary process "{argv[0]}": {error.strerror}') from None
    finally:
        for fd in given:
            os.close(fd)
    logger = Logger(loop, reaper, pid)
    try:
        await loop.readable(ready)
        said = os.read(ready, 1)
    finally:
        loop.close(ready)
    if must_write and not said:
        await logger.stop()
        raise Error(f'logging binary did not call ready: "{argv[0]}"')
    return logger
