"""The configuration chooses shims; what runs keeps its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.daemon import Daemon, rows, target, wait_until
from harness.pairings import GO_SHIM, PAIRINGS

IMAGE = "docker.io/library/busybox:test"

pytestmark = [
    pytest.mark.skipif(shutil.which(GO_SHIM) is None, reason="needs containerd's runc shim"),
    pytest.mark.skipif(target() != "cradled", reason="the original has no such settings"),
]


@pytest.fixture
def daemon(tmp_path: Path, image_tar: Path) -> Iterator[Daemon]:
    directory = tmp_path / "d"
    directory.mkdir()
    daemon = PAIRINGS["go-shim"].daemon(directory)
    daemon.start()
    try:
        daemon.ctr("images", "import", str(image_tar))
        yield daemon
        daemon.remove_containers()
    finally:
        daemon.destroy()


def detached(daemon: Daemon, name: str, *flags: str) -> int:
    """Run a container in the background; its pid."""
    daemon.ctr("run", "-d", "--null-io", *flags, IMAGE, name, "sleep", "1000")
    return next(int(row[1]) for row in rows(daemon.ctr("tasks", "ls")) if row[0] == name)


def is_go_shim(daemon: Daemon, name: str) -> bool:
    """Whether the shim that a bundle names is the original's."""
    bundle = daemon.state / "io.containerd.runtime.v2.task" / daemon.namespace / name
    return os.path.basename((bundle / "shim-binary-path").read_text()) == GO_SHIM


def test_the_choice_may_change_while_containers_run(daemon: Daemon) -> None:
    before = detached(daemon, "before")
    daemon.runtime = "io.containerd.cradled.v2"  # a type that is not spoken of
    detached(daemon, "ours")
    daemon.runtime = "io.containerd.runc.v2"
    daemon.stop()
    (daemon.directory / "config.toml").unlink()
    daemon.settings = ""
    daemon.start()
    detached(daemon, "after")
    assert {name: is_go_shim(daemon, name) for name in ("before", "ours", "after")} == {
        "before": True,
        "ours": False,
        "after": False,
    }
    for name in ("before", "ours", "after"):
        words = ("tasks", "exec", "--exec-id", "e", name, "sh", "-c", "echo here; exit 4")
        done = daemon.try_ctr(*words)
        assert (done.stdout, done.returncode) == ("here\n", 4)
    daemon.ctr("tasks", "kill", "-s", "KILL", "before")
    wait_until(lambda: not os.path.exists(f"/proc/{before}"), "its shim has reaped it")
    assert "exit code 137" in daemon.try_ctr("tasks", "rm", "before").stderr


def test_a_shim_that_is_not_there(daemon: Daemon) -> None:
    daemon.stop()
    daemon.settings = daemon.settings.replace(GO_SHIM, "no-such-shim")
    daemon.start()
    done = daemon.try_ctr("run", "--rm", IMAGE, "c1", "true")
    assert "invalid custom binary path: " in done.stderr
    assert "no-such-shim: no such file or directory" in done.stderr
    assert daemon.ctr("tasks", "ls", "-q") == ""
