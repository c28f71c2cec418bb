"""Fixtures: a namespaced database over backends in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness.metadata import Recorder, World, open_database

from cradled.metadata.db import ScopedDatabase
from cradled.testing.memory_content import MemoryContentStore
from cradled.testing.memory_snapshots import MemorySnapshotter


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    blobs, layers, events = MemoryContentStore(), MemorySnapshotter(), Recorder()
    path = tmp_path / "meta.db"
    made = World(path, blobs, layers, events, await open_database(path, blobs, layers, events))
    yield made
    await made.db.aclose()
    assert len(asyncio.all_tasks()) == 1


@pytest.fixture
def ns(world: World) -> ScopedDatabase:
    return world.scoped()
