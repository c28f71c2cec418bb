"""Async. Have a daemon upgrade itself, and wait until that is over."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from cradled.client.session import Session
from cradled.errors import FailedPrecondition, Unavailable
from cradled.proxies.daemon import ProxyDaemon

PATIENCE = 180.0
"""Seconds for the whole of it."""

_AGAIN = 0.02  # seconds


@dataclass(frozen=True, slots=True)
class Upgraded:
    """``pid`` is of the new daemon; ``pause``, in seconds, is how long there was none."""

    old_version: str
    new_version: str
    pid: int
    pause: float


async def upgrade(session: Session) -> Upgraded:
    """Raises FailedPrecondition when the old daemon goes on, and tells why."""
    daemon = ProxyDaemon(session.transport)
    async with asyncio.timeout(PATIENCE):
        await daemon.upgrade()
        while True:
            try:
                outcome = await daemon.outcome()
                break
            except Unavailable:  # the old one is on its way out
                await asyncio.sleep(_AGAIN)
    if outcome.error:
        text = f"the daemon goes on as it was, the new program does not serve: {outcome.error}"
        raise FailedPrecondition(text)
    pause = outcome.pause / 1e9
    return Upgraded(outcome.old_version, outcome.new_version, outcome.pid, pause)
