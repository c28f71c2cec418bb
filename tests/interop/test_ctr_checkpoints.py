"""Checkpoints by ctr: as an image, and in a directory; and what is restored from them.

criu needs a kernel that lets it; here a runtime stands for it (``harness.checkpoints``).
"""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import checkpoints
from harness.daemon import Daemon, wait_until

IMAGE = "docker.io/library/busybox:test"
REF = "checkpoint:1"

pytestmark = pytest.mark.parametrize("pairing", ["ours", "go-shim"], indirect=True, scope="module")


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write(tmp_path_factory.mktemp("runtime"))


@pytest.fixture
def running(daemon: Daemon, runtime: Path) -> Daemon:
    """With a container ``c``."""
    daemon.ctr("run", "-d", "--null-io", "--runc-binary", str(runtime), IMAGE, "c", "sleep", "1000")
    return daemon


def status(daemon: Daemon, id: str) -> str:
    rows = [line.split() for line in daemon.ctr("tasks", "ls").splitlines()]
    return next((row[2] for row in rows if row[0] == id), "")


def temporary(daemon: Daemon) -> list[Path]:
    """What lies in the work directories of tasks, apart from criu's own logs."""
    found = daemon.root.glob("io.containerd.runtime.v2.task/*/*/*")
    return [path for path in found if path.name != "criu-work"]


def test_an_image_and_back(running: Daemon) -> None:
    daemon = running
    daemon.ctr("containers", "checkpoint", "--task", "--image", "c", REF)
    try:
        assert status(daemon, "c") == "RUNNING"
        daemon.ctr("containers", "restore", "--live", "d", REF)
        assert status(daemon, "d") == "RUNNING"
        assert daemon.ctr("tasks", "exec", "--exec-id", "e", "d", "cat", "/restored") == (
            "pages of c\n"
        )
        if daemon.kind == "cradled":  # the original forgets its own in a temporary directory
            wait_until(lambda: temporary(daemon) == [], lambda: f"{temporary(daemon)}")
    finally:
        daemon.ctr("images", "rm", REF)


def test_a_directory(running: Daemon, tmp_path: Path) -> None:
    daemon = running
    image, work = tmp_path / "image", tmp_path / "work"
    work.mkdir()
    daemon.ctr(
        "tasks", "checkpoint", "--exit", "--image-path", str(image), "--work-path", str(work), "c"
    )
    assert (image / "deep" / "pages-1.img").read_text() == "pages of c\n"
    wait_until(lambda: status(daemon, "c") == "STOPPED", "c stopped")
    daemon.ctr("tasks", "rm", "c")
    before = daemon.ctr("content", "ls", "-q")
    daemon.ctr("tasks", "start", "-d", "--null-io", "c")
    assert daemon.try_ctr("tasks", "exec", "--exec-id", "e", "c", "cat", "/restored").returncode
    assert daemon.ctr("content", "ls", "-q") == before


def test_a_refusal(running: Daemon, runtime: Path) -> None:
    daemon = running
    refuse = runtime.with_name("refuse")
    refuse.write_text("")
    try:
        done = daemon.try_ctr("containers", "checkpoint", "--task", "c", REF)
    finally:
        refuse.unlink()
    assert done.returncode == 1
    # The Go shim names the log that criu would have written.
    assert "criu refuses" in done.stderr or "criu-dump.log" in done.stderr
    assert status(daemon, "c") == "RUNNING"
    assert daemon.try_ctr("images", "ls", "-q", f"name=={REF}").stdout == ""
