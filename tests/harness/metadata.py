"""A database on real SQLite over backends in memory, and what it published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cradled.core.events import Envelope
from cradled.core.scope import Scope
from cradled.gc.scheduler import Scheduler
from cradled.metadata.db import Database, ScopedDatabase
from cradled.testing.memory_content import MemoryContentStore
from cradled.testing.memory_snapshots import MemorySnapshotter


@dataclass
class Recorder:
    """A publisher that remembers (namespace, topic)."""

    told: list[tuple[str, str]] = field(default_factory=list)
    envelopes: list[Envelope] = field(default_factory=list)

    def publish(self, envelopes: Sequence[Envelope], /) -> None:
        self.envelopes += envelopes
        self.told += [(envelope.namespace, envelope.topic) for envelope in envelopes]

    def take(self) -> list[tuple[str, str]]:
        told, self.told = self.told, []
        return told


@dataclass
class World:
    """A database with its surroundings; ``reopen`` is a restart of the daemon."""

    path: Path
    blobs: MemoryContentStore
    layers: MemorySnapshotter
    events: Recorder
    db: Database
    isolated: bool = False

    def scoped(self, namespace: str = "ns", lease: str = "") -> ScopedDatabase:
        return self.db.scoped(Scope(namespace, lease))

    async def collect(self) -> dict[str, int]:
        """One collection; how many objects of each kind went."""
        scheduler = Scheduler(self.db)
        try:
            return dict((await scheduler.collect()).removed)
        finally:
            await scheduler.aclose()

    async def settled(self) -> None:
        """Until the janitor has nothing left to do."""
        await self.db.janitor.clean_content()
        await self.db.janitor.clean_snapshots("layers")

    async def reopen(self) -> None:
        await self.db.aclose()
        self.db = await open_database(
            self.path, self.blobs, self.layers, self.events, self.isolated
        )


async def open_database(
    path: Path,
    blobs: MemoryContentStore,
    layers: MemorySnapshotter,
    events: Recorder,
    isolated: bool = False,
) -> Database:
    return await Database.open(
        str(path),
        content=blobs,
        snapshotters={"layers": layers},
        publisher=events,
        isolated=isolated,
    )
