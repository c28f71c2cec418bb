"""A daemon whose metadata is damaged or gone starts, and knows again what can be known.

Real images, a running container; then the files are damaged in ever new ways.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.daemon import Daemon, rows, wait_until
from harness.images import busybox_image

IMAGE = "docker.io/library/busybox:test"
METADATA = "io.containerd.metadata.v1.bolt/meta.db"
RECORDS = "io.containerd.snapshotter.v1.overlayfs/metadata.db"
SCRIPT = "trap 'exit 7' TERM; echo written >/file; while :; do sleep 0.1; done"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return busybox_image(IMAGE).write_oci_layout(tmp_path_factory.mktemp("image") / "image.tar")


@pytest.fixture
def daemon(tmp_path: Path, image: Path) -> Iterator[Daemon]:
    """With an image, a running container, one that was never started, and an upload."""
    daemon = Daemon(tmp_path)
    daemon.start()
    try:
        daemon.ctr("images", "import", str(image))
        daemon.ctr("run", "-d", "--null-io", "--label", "a=b", IMAGE, "runs", "sh", "-c", SCRIPT)
        daemon.ctr("containers", "create", IMAGE, "never")
        pid = rows(daemon.ctr("tasks", "ls"))[0][1]
        wait_until(lambda: Path(f"/proc/{pid}/root/file").exists(), "the file is written")
        collect(daemon)
        yield daemon
        if daemon.process is not None:
            daemon.remove_containers()
    finally:
        daemon.destroy()
        shutil.rmtree(tmp_path)


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(100_000))


def middle(path: Path) -> None:
    """All but the first pages, where the tables are defined."""
    data = bytearray(path.read_bytes())
    data[3 * 4096 :] = os.urandom(len(data) - 3 * 4096)
    path.write_bytes(data)


def collect(daemon: Daemon) -> None:
    daemon.ctr("leases", "create", "--id", "short")
    daemon.ctr("leases", "rm", "--sync", "short")


def state_of(daemon: Daemon) -> dict[str, object]:
    return {
        "images": sorted(row[2] for row in rows(daemon.ctr("images", "ls"))),
        "blobs": sorted(daemon.ctr("content", "ls", "-q").split()),
        "snapshots": sorted(rows(daemon.ctr("snapshots", "ls"))),
        "tasks": rows(daemon.ctr("tasks", "ls")),
    }


def still_works(daemon: Daemon) -> None:
    """What runs can be used and ended as if nothing had been, and new things can be made."""
    out = daemon.ctr("tasks", "exec", "--exec-id", "e", "runs", "cat", "/file")
    assert out == "written\n"
    (name,) = daemon.ctr("images", "ls", "-q").split()
    assert daemon.ctr("run", "--rm", name, "new", "echo", "hello") == "hello\n"
    assert daemon.ctr("containers", "ls", "-q").split().count("runs") == 1
    daemon.ctr("tasks", "kill", "-s", "TERM", "runs")
    wait_until(lambda: "STOPPED" in daemon.ctr("tasks", "ls"), "it has stopped")
    done = daemon.try_ctr("tasks", "rm", "runs")
    assert "code 7" in done.stderr
    daemon.ctr("containers", "rm", "runs")


def release(daemon: Daemon) -> None:
    """Let go of all that a rebuilding keeps."""
    (lease,) = daemon.ctr("leases", "ls", "-q").split()
    assert lease.startswith("recovered-")
    daemon.ctr("leases", "rm", "--sync", lease)


@pytest.mark.parametrize("how", [Path.unlink, middle])
def test_damaged_metadata(daemon: Daemon, how: Callable[[Path], None]) -> None:
    before = state_of(daemon)
    daemon.stop()
    how(daemon.root / METADATA)
    daemon.start()
    assert state_of(daemon) == before
    assert daemon.ctr("images", "ls", "-q").split() == [IMAGE]
    assert '"a": "b"' in daemon.ctr("containers", "info", "runs")
    assert "never" in daemon.ctr("containers", "ls", "-q").split()
    still_works(daemon)
    release(daemon)
    after = state_of(daemon)
    assert (after["images"], after["blobs"]) == (before["images"], before["blobs"])


def test_damaged_records(daemon: Daemon) -> None:
    before = state_of(daemon)
    daemon.kill()
    path = daemon.root / RECORDS
    for side in ("-wal", "-shm"):
        (path.parent / f"metadata.db{side}").unlink(missing_ok=True)
    garbage(path)
    daemon.start()
    assert state_of(daemon) == before
    still_works(daemon)


def test_both_at_once_and_no_container_record(daemon: Daemon) -> None:
    before = state_of(daemon)
    daemon.stop()
    for name in (METADATA, RECORDS):
        garbage(daemon.root / name)
    (daemon.root / f"{METADATA}.copy").unlink()
    daemon.start()
    assert state_of(daemon) == before
    told = daemon.ctr("containers", "info", "runs")
    assert f'"Image": "{daemon.ctr("images", "ls", "-q").strip()}"' in told
    assert '"SnapshotKey": "runs"' in told
    assert '"Snapshotter": "overlayfs"' in told
    assert "never" not in daemon.ctr("containers", "ls", "-q").split()  # nobody knows it any more
    assert len(list((daemon.root / METADATA).parent.glob("meta.db.damaged-*Z"))) == 1
    daemon.stop()
    daemon.start()
    assert state_of(daemon) == before
    assert daemon.log.read_text().count("metadata was rebuilt") == 1
    still_works(daemon)


def test_what_was_removed_after_a_rebuilding_stays_removed(daemon: Daemon) -> None:
    daemon.stop()
    garbage(daemon.root / METADATA)
    daemon.start()
    daemon.remove_containers()
    daemon.ctr("images", "rm", *daemon.ctr("images", "ls", "-q").split())
    release(daemon)
    assert daemon.ctr("content", "ls", "-q") == ""
    daemon.stop()
    daemon.start()
    assert daemon.ctr("content", "ls", "-q") == ""
    assert rows(daemon.ctr("snapshots", "ls")) == []


def test_damage_that_is_met_is_repaired_at_the_next_start(daemon: Daemon) -> None:
    """Somebody overwrites the file under the daemon's feet."""
    daemon.stop()
    path = daemon.root / METADATA
    daemon.start()
    data = path.read_bytes()
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (len(data) - 4096))
    answers = [daemon.try_ctr("images", "ls"), daemon.try_ctr("namespaces", "create", "more")]
    assert any("metadata is damaged" in done.stderr for done in answers)
    assert "restart the daemon to have it repaired" in daemon.log.read_text()
    daemon.kill()
    daemon.start()
    still_works(daemon)
