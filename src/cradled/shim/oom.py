"""Async. Out-of-memory news of a container, for as long as its cgroup lives."""

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

    def __init__(self, loop: Loop, group: Cgroup, killed: Callable[[], None]) -> None:
        self._loop = loop
        self._killed = killed
        self._directory = group.directory("" if group.unified else "memory")
        self._fd = -1
        try:
            if group.unified:
                self._fd = oom.open_events(self._directory)
            elif self._directory:
                self._fd = oom.open_legacy_events(self._directory)
        except OSError:
            return
        if self._fd >= 0:
            loop.spawn(self._watch(group.unified))

    def close(self) -> None:
        """Stop watching."""
        if self._fd >= 0:
            self._loop.close(self._fd)
            self._fd = -1

    async def _watch(self, unified: bool) -> None:
        news = self._loop.urgent if unified else self._loop.readable
        try:
            seen = oom.kills(self._fd) if unified else 0
            while os.path.exists(self._directory):
                await news(self._fd)
                # The removal of a legacy group counts as well.
                count = oom.kills(self._fd) if unified else seen + os.eventfd_read(self._fd)
                if count > seen and os.path.exists(self._directory):
                    self._killed()
                seen = count
            self.close()
        except OSError:
            self.close()
        except Closed:
            pass
