"""Async. Out-of-memory news of a cgroup, for as long as it lives.

The kernel tells them in its own time: of a unified group once in ten milliseconds at the most,
which may be after a process that it killed has been reaped. What it counts is right at once, so
whoever has to know before something else looks.

Used by the shim: imports only ``os``, ``linux`` and C modules.
"""

from __future__ import annotations

import os

from cradled.linux import oom
from cradled.linux.coroutines import Closed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cradled.linux.cgroup import Cgroup
    from cradled.linux.coroutines import Loop


class OomWatch:
    """Calls ``killed`` each time; a host that does not tell is not watched."""

    __slots__ = ("_directory", "_fd", "_killed", "_loop", "_seen", "_unified")

    def __init__(self, loop: Loop, group: Cgroup, killed: Callable[[], None]) -> None:
        self._loop = loop
        self._killed = killed
        self._unified = group.unified
        self._directory = group.directory("" if group.unified else "memory")
        self._fd = -1
        self._seen = 0
        try:
            if group.unified:
                self._fd = oom.open_events(self._directory)
                self._seen = oom.kills(self._fd)
            else:
                self._fd = oom.open_legacy_events(self._directory)
        except OSError:
            self.close()
        else:
            loop.spawn(self._watch())

    def look(self) -> None:
        """Call ``killed`` now if something was counted since the last time."""
        if self._fd < 0:
            return
        try:
            count = oom.kills(self._fd) if self._unified else self._seen + os.eventfd_read(self._fd)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        # The removal of a legacy group counts as well.
        if count > self._seen and os.path.exists(self._directory):
            self._killed()
        self._seen = count

    def close(self) -> None:
        """Stop watching."""
        if self._fd >= 0:
            self._loop.close(self._fd)
            self._fd = -1

    async def _watch(self) -> None:
        news = self._loop.urgent if self._unified else self._loop.readable
        try:
            while self._fd >= 0 and os.path.exists(self._directory):
                await news(self._fd)
                self.look()
        except Closed:
            return
        self.close()
