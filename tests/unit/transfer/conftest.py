from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cradled.aio import threads
from cradled.content.local import open_store
from cradled.core.scope import Scope
from cradled.events.exchange import Exchange
from cradled.events.journal import Journal
from cradled.metadata.db import Database, ScopedDatabase
from cradled.snapshotters.overlay import OverlaySnapshotter


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    content = await open_store(str(tmp_path / "content"))
    snapshotter = OverlaySnapshotter(str(tmp_path / "overlayfs"))
    await snapshotter.start()
    journal = Journal(str(tmp_path / "state"))
    database = await Database.open(
        str(tmp_path / "meta.db"),
        content=content,
        snapshotters={"overlayfs": snapshotter},
        publisher=Exchange(journal),
    )
    yield database
    await database.aclose()
    journal.close()
    await snapshotter.aclose()
    threads.close()


@pytest.fixture
async def stores(db: Database) -> ScopedDatabase:
    lease = await db.scoped(Scope("test")).leases.create("importing", {})
    return db.scoped(Scope("test", lease.id))
