"""The configuration that Debian's containerd writes is one that ours runs with as it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from harness.program import call, started

pytestmark = [
    pytest.mark.skipif(shutil.which("containerd") is None, reason="needs containerd"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    path = tmp_path / "theirs.toml"
    command = ["containerd", "config", "default"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    path.write_text(told.stdout)
    return path


def test_it_is_without_fault(theirs: Path) -> None:
    checked = call(theirs.parent, "--strict", "config", "check", str(theirs))
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_migrating_it_loses_nothing(theirs: Path) -> None:
    migrated = call(theirs.parent, "config", "migrate", str(theirs)).stdout
    before, after = tomllib.loads(theirs.read_text()), tomllib.loads(migrated)
    assert after["version"] == 4
    assert sorted(leaves(after)) == sorted(leaves(before))
    (theirs.parent / "ours.toml").write_text(migrated)
    assert call(theirs.parent, "config", "migrate", "ours.toml").stdout == migrated
    assert call(theirs.parent, "--strict", "config", "check", "ours.toml").returncode == 0


def leaves(tables: dict[str, object]) -> list[str]:
    """Keys with their values, without the tables they are in; keys that migration renames."""
    found: list[str] = []
    for key, value in tables.items():
        if isinstance(value, dict) and value:
            found += leaves(value)
        elif key not in ("version", "plugins"):
            name = {"sandbox_image": "sandbox"}.get(key, key.removeprefix("tcp_"))
            found.append(f"{name} = {value!r}")
    return [leaf for leaf in found if not leaf.startswith("sched_core")]


def test_the_daemon_runs_with_it(theirs: Path, tmp_path: Path) -> None:
    with started(tmp_path, "-c", str(theirs)) as program:
        log = program.log.read_text()
        assert "level=warning" not in log
        assert "level=error" not in log
        command = ["ctr", "-a", str(program.socket), "version"]
        subprocess.run(command, capture_output=True, check=True, timeout=30)
        assert program.stop() == 0
