"""Async. The metrics of many tasks at once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence

from cradled import errors, filters
from cradled.core.values import AnyValue
from cradled.runtime.task import Task

log = logging.getLogger(__name__)

_AT_ONCE = 16

Metric = tuple[str, int, AnyValue]
"""Task id, time in nanoseconds, what the shim measured."""


async def collect(
    tasks: Iterable[Task], expressions: Sequence[str], timeout: float | None
) -> list[Metric]:
    """Ask the shims of all tasks that match (``id``, ``namespace``); those that fail, or take more
    than ``timeout`` seconds, are left out.

    Raises InvalidArgument for a bad filter.
    """
    parsed = filters.parse(expressions)
    turn = asyncio.Semaphore(_AT_ONCE)

    async def one(task: Task) -> Metric | None:
        async with turn:
            try:
                value = await task.client.stats(task.id, timeout=timeout)
            except errors.Error as error:
                log.debug("metrics of %s: %s", task.id, error)
                return None
            return task.id, time.time_ns(), value

    selected = [task for task in tasks if parsed.match(_fields(task))]
    found = await asyncio.gather(*map(one, selected))
    return [metric for metric in found if metric is not None]


def _fields(task: Task) -> filters.Adaptor:
    namespace, id = task.key
    values: dict[tuple[str, ...], str] = {("id",): id, ("namespace",): namespace}
    return values.get
