"""The snapshotters with real mounts."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cradled.aio import threads
from cradled.snapshotters.native import NativeSnapshotter
from cradled.snapshotters.overlay import OverlaySnapshotter
from cradled.testing.snapshot_suite import SnapshotMountSuite

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


class TestOverlayMounts(SnapshotMountSuite):
    @pytest.fixture
    async def snapshotter(self, tmp_path: Path) -> AsyncIterator[OverlaySnapshotter]:
        made = OverlaySnapshotter(str(tmp_path / "root"))
        await made.start()
        yield made
        await made.aclose()
        threads.close()


class TestNativeMounts(SnapshotMountSuite):
    @pytest.fixture
    async def snapshotter(self, tmp_path: Path) -> AsyncIterator[NativeSnapshotter]:
        made = NativeSnapshotter(str(tmp_path / "root"))
        await made.start()
        yield made
        await made.aclose()
        threads.close()
