"""Async. Clean-up of what was done so far when a later step fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

log = logging.getLogger(__name__)

STEP_SECONDS = 10.0


class Undo:
    """Steps that take back what was done, run last first unless ``commit`` was reached.

        async with Undo() as undo:
            await bundle.create()
            undo.push("remove bundle", bundle.remove)
            ...
            undo.commit()

    The steps run to their end even if the task is cancelled meanwhile, each within
    ``STEP_SECONDS``. What they raise is noted on the error that caused them and never replaces it.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[str, Callable[..., Awaitable[Any]], tuple[Any, ...]]] = []

    def push(self, name: str, step: Callable[..., Awaitable[Any]], *args: Any) -> None:
        """Have ``await step(*args)`` run on failure; ``name`` is for the notes."""
        self._steps.append((name, step, args))

    def commit(self) -> None:
        """All went well: nothing is taken back."""
        self._steps.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._steps:
            return
        running = asyncio.ensure_future(self._run(exc))
        cancelled: asyncio.CancelledError | None = None
        while not running.done():
            try:
                await asyncio.shield(running)
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    async def _run(self, cause: BaseException | None) -> None:
        while self._steps:
            name, step, args = self._steps.pop()
            try:
                async with asyncio.timeout(STEP_SECONDS):
                    await step(*args)
            except Exception as error:
                text = f"{name} failed: {error!r}"
                log.warning("undo: %s", text)
                if cause is not None:
                    cause.add_note(text)
