"""kill -9 of our shim at each of its steps, under Debian's containerd."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from harness.survival import Ledger, lives_until_all_are_reached, points, prepared

SHIM = Path(sys.executable).parent / "containerd-shim-cradled-v2"
CLEARING = {"shim.program.deleting", "shim.program.deleted"}
"""Where containerd gives up on the container."""
STEPS = sorted({*points("shim", "linux")} - CLEARING)

pytestmark = [
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("containerd") or not SHIM.exists(),
        reason="needs root, containerd and our program",
    ),
    pytest.mark.timeout(300),
]


async def test_nothing_is_left_and_every_exit_is_told(tmp_path: Path, image_tar: Path) -> None:
    runtime = {"runtime": str(SHIM)}
    async with (
        prepared(tmp_path / "d", image_tar, "containerd", options=runtime) as world,
        Ledger.open(world) as ledger,
    ):
        lives = await lives_until_all_are_reached(world, STEPS, **runtime)
        await world.settled()
        for life in lives:
            life.execs.clear()  # it does not know of those that died with their shim
            assert life.untold(ledger) == []
            life.check(ledger)
