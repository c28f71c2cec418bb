"""Garbage in any file that a daemon keeps does not keep the next one from starting."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.daemon import Daemon, rows
from harness.images import busybox_image

IMAGE = "docker.io/library/busybox:test"
ROUNDS = int(os.environ.get("CRADLED_GARBAGE_ROUNDS", "2"))
SEED = int(os.environ.get("CRADLED_FUZZ_SEED", "1"))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    directory = tmp_path_factory.mktemp("d")
    daemon = Daemon(directory)
    daemon.start()
    try:
        daemon.ctr("images", "import", str(busybox_image(IMAGE).write_oci_layout(directory / "i")))
        daemon.ctr("containers", "create", IMAGE, "box")
        yield daemon
        daemon.remove_containers()
    finally:
        daemon.destroy()
        shutil.rmtree(directory)


def files(daemon: Daemon) -> list[Path]:
    """Of the daemon itself: what is in images is nothing to it."""
    found = []
    for base in (daemon.root, daemon.state):
        for path in sorted(base.rglob("*")):
            inside = "/fs/" in str(path) or "/blobs/" in str(path)
            if path.is_file() and not inside and path.name != "lock":
                found.append(path)
    return found


@pytest.mark.parametrize("seed", range(SEED, SEED + ROUNDS))
def test_it_starts(daemon: Daemon, seed: int) -> None:
    """Each time every file is hit with a chance of one half, and one of them surely."""
    dice = random.Random(seed)
    daemon.kill() if dice.random() < 0.5 else daemon.stop()
    hit = [path for path in files(daemon) if dice.random() < 0.5] or files(daemon)[:1]
    for path in hit:
        sizes = (10, 50_000) if path.name.endswith("-wal") else (0, 10, 50_000)  # 0: none was made
        path.write_bytes(dice.randbytes(dice.choice(sizes)))
    daemon.start()
    names = [row[0] for row in rows(daemon.ctr("images", "ls"))]
    assert names, hit
    assert daemon.ctr("run", "--rm", names[0], f"new{seed}", "echo", "hello") == "hello\n", hit
    broken = [row for row in rows(daemon.ctr("plugins", "ls")) if row[-1] == "error"]
    assert broken == [], hit
