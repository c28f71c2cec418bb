"""Async. Out-of-memory news of a container, for as long as its cgroup lives."""

from __future__ import annotations

import os

from cradled.linux import oom
from cradled.shim.loop import Closed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cradled.linux.cgroup import Cgroup
    from cradled.shim.loop import Loop


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
                loop.spawn(self._watch_unified())
            elif self._directory:
                self._fd = oom.open_legacy_events(self._directory)
                loop.spawn(self._watch_legacy())
        except OSError:
            pass

    def close(self) -> None:
        """Stop watching."""
        if self._fd >= 0:
            self._loop.close(self._fd)
            self._fd = -1

    async def _watch_legacy(self) -> None:
        try:
            while True:
                await self._loop.readable(self._fd)
                os.eventfd_read(self._fd)
                if not os.path.exists(self._directory):  # the removal counts as well
                    break
                self._killed()
            self.close()
        except Closed:
            pass

    async def _watch_unified(self) -> None:
        try:
            seen = oom.kills(self._fd)
            while True:
                await self._loop.urgent(self._fd)
                count = oom.kills(self._fd)
                if count > seen:
                    self._killed()
                seen = count
        except OSError:
            self.close()
        except Closed:
            pass
