"""Processes found by their working directory."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from cradled.linux import processes


def test_those_in_a_directory_are_ended_and_nobody_else(tmp_path: Path) -> None:
    here, below = tmp_path / "here", tmp_path / "here" / "below"
    below.mkdir(parents=True)
    inside, deeper, other = (
        subprocess.Popen(["sleep", "1000"], cwd=directory) for directory in (here, below, tmp_path)
    )
    try:
        processes.end_those_in(str(here))
        assert inside.wait() == -9
        assert deeper.poll() is None
        assert other.poll() is None
    finally:
        for process in (inside, deeper, other):
            process.kill()
            process.wait()


def test_one_that_is_gone_is_none(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"], cwd=tmp_path)
    gone.wait()
    processes._end(gone.pid, str(tmp_path))
    processes.end_those_in(os.path.join(tmp_path, "nowhere"))
