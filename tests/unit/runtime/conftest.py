"""What tests of the runtime's logic share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness.task_world import World

from cradled.aio import threads


@pytest.fixture(params=["ttrpc", "grpc"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    directory = Path(tempfile.mkdtemp(prefix="crm"))  # short: sockets are in it
    world = World(directory, request.param)
    yield world
    await world.manager.aclose()
    await world.shims.aclose()
    threads.close()
    left = [path for path in directory.rglob("*") if path.name.startswith(".")]
    shutil.rmtree(directory)
    assert left == []
