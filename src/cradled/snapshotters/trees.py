"""Async. Measuring and removing the trees of snapshots."""

from __future__ import annotations

from typing import Protocol

from cradled.aio import threads
from cradled.core.snapshots import Usage
from cradled.linux import tree


class Trees(Protocol):
    """Who walks big trees: threads, or worker processes that leave the loop its time."""

    async def usage(self, path: str, /) -> Usage:
        """Allocated bytes and inodes below a path, itself included."""
        ...

    async def remove(self, path: str, /) -> None:
        """Remove a path and all below it; nothing there is fine."""
        ...


class ThreadTrees:
    """Implements ``Trees`` in the pool ``fs``."""

    async def usage(self, path: str, /) -> Usage:
        return Usage(*await threads.run("fs", tree.usage, path))

    async def remove(self, path: str, /) -> None:
        await threads.run("fs", tree.remove_tree, path)
