"""The suites every store runs: the namespaced stores, and the fakes they are tested over."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness.metadata import World

from cradled.aio import threads
from cradled.content.local import open_store
from cradled.core.content import ContentStore
from cradled.core.scope import Scope
from cradled.core.snapshots import Snapshotter
from cradled.metadata.db import Database
from cradled.snapshotters.overlay import OverlaySnapshotter
from cradled.testing.content_suite import ContentLabelSuite, ContentSuite
from cradled.testing.memory_content import MemoryContentStore
from cradled.testing.memory_snapshots import MemorySnapshotter
from cradled.testing.snapshot_suite import SnapshotSuite


class TestMemoryContent(ContentSuite):
    @pytest.fixture
    def store(self) -> ContentStore:
        return MemoryContentStore()


class TestMemorySnapshotter(SnapshotSuite):
    @pytest.fixture
    def snapshotter(self) -> Snapshotter:
        return MemorySnapshotter()


class TestContent(ContentSuite, ContentLabelSuite):
    @pytest.fixture
    def store(self, world: World) -> ContentStore:
        return world.scoped().content


class TestSnapshots(SnapshotSuite):
    @pytest.fixture
    def snapshotter(self, world: World) -> Snapshotter:
        return world.scoped().snapshots("layers")


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[Database]:
    """A database over the backends the daemon uses."""
    overlay = OverlaySnapshotter(str(tmp_path / "overlay"))
    await overlay.start()
    db = await Database.open(
        str(tmp_path / "meta.db"),
        content=await open_store(str(tmp_path / "content")),
        snapshotters={"overlayfs": overlay},
    )
    yield db
    await db.aclose()
    await overlay.aclose()
    threads.close()


class TestContentOnFiles(ContentSuite, ContentLabelSuite):
    @pytest.fixture
    def store(self, real: Database) -> ContentStore:
        return real.scoped(Scope("ns")).content


class TestSnapshotsOnOverlay(SnapshotSuite):
    @pytest.fixture
    def snapshotter(self, real: Database) -> Snapshotter:
        return real.scoped(Scope("ns")).snapshots("overlayfs")
