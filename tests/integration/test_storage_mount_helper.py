"""Mounts that a program makes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cradled.linux import mount, mounthelper

HELPER = """#!/bin/sh
echo "$*" > "$0.said"
case "$1" in
  bad) echo "no such  thing" >&2; exit 3;;
  silent) exit 4;;
  slow) sleep 100;;
esac
"""


@pytest.fixture(params=["fuse", "fuse3"])
def helper(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / f"mount.{request.param}"
    path.write_text(HELPER)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return path


def make(helper: Path, source: str) -> None:
    mount.mount(f"{helper.suffix[1:]}.sshfs", source, ["ro", "allow_other"], "/mnt")


def test_what_it_is_told(helper: Path) -> None:
    make(helper, "host:/x")
    said = Path(f"{helper}.said").read_text()
    assert said == "host:/x /mnt -o ro -o allow_other -t sshfs\n"


def test_what_it_says(helper: Path) -> None:
    for source, text in (("bad", "no such thing"), ("silent", "exit status 4")):
        with pytest.raises(OSError, match=f"{helper.name}: {text}: '/mnt'"):
            make(helper, source)


def test_one_that_hangs(helper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounthelper, "_PATIENCE", 0.1)
    with pytest.raises(OSError, match="exit status 137"):
        make(helper, "slow")


def test_one_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError, match=r"mount\.fuse3 is not installed"):
        mount.mount("fuse3.x", "a", [], "/mnt")
