"""The proof that nothing is left is worth what it sees: everything a daemon has around it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from harness import leaks
from harness.daemon import Daemon, target
from harness.images import LayerTar, TestImage

IMAGE = "docker.io/library/busybox:test"


@pytest.mark.skipif(target() != "cradled", reason="the original has other processes")
def test_what_a_daemon_has(daemon: Daemon, tmp_path: Path) -> None:
    daemon.ctr("run", "-d", IMAGE, "c", "sleep", "1000")
    other = TestImage("docker.io/library/other:1", [LayerTar().add("file").bytes()])
    daemon.ctr("images", "import", str(other.write_oci_layout(tmp_path / "other.tar")))
    left = leaks.remains(daemon.mark, str(daemon.directory))
    processes = {int(line.split()[1].rstrip(":")) for line in left if line.startswith("process")}
    assert daemon.process is not None
    own = daemon.process.pid
    zygote = set(map(int, Path(f"/proc/{own}/task/{own}/children").read_text().split()))
    assert len(zygote) == 1
    assert {own} | zygote <= processes
    names = {Path(f"/proc/{pid}/comm").read_text().strip() for pid in processes}
    assert {"cradled-shim", "cradled-worker"} <= names
    kinds = (("mount", "rootfs"), ("socket", "d.sock"), ("socket", "/s/"), ("cgroup", daemon.mark))
    for kind, path in kinds:
        assert any(line.startswith(kind) and path in line for line in left), (kind, path, left)


def test_states_below_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "RUN", (str(tmp_path),))
    mark = f"mark-{os.urandom(8).hex()}"
    nowhere = f"/nowhere/{mark}"
    own = tmp_path / "runc" / mark
    (own / "box").mkdir(parents=True)
    assert leaks.states_named(mark) == [str(own)]
    assert f"state {own}" in leaks.remains(mark, nowhere)
    (own / "box").rmdir()
    assert leaks.remains(mark, nowhere) == []
    leaks.remove_parents(mark)
    assert not own.exists()


def test_shared_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "SHARED", (str(tmp_path), str(tmp_path / "none")))
    (tmp_path / "before").touch()
    places = leaks.Places()
    assert places.added() == []
    os.mkfifo(tmp_path / "after")
    assert places.added() == [str(tmp_path / "after")]
