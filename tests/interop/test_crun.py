"""Containers with crun instead of runc, chosen per container."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.daemon import Daemon, rows, wait_until

IMAGE = "docker.io/library/busybox:test"
UNIFIED = Path("/sys/fs/cgroup/unified")
# Debian 12's crun takes a hybrid hierarchy for one that it does not know.
HIDE_UNIFIED = ("unshare", "-m", "sh", "-c", f'umount {UNIFIED}; exec "$@"', "sh")


@pytest.fixture(scope="module")
def crun_daemon(tmp_path_factory: pytest.TempPathFactory, image_tar: Path) -> Iterator[Daemon]:
    directory = tmp_path_factory.mktemp("d")
    daemon = Daemon(directory, prefix=HIDE_UNIFIED if UNIFIED.is_dir() else ())
    daemon.start()
    try:
        daemon.ctr("images", "import", str(image_tar))
        yield daemon
        daemon.remove_containers()
    finally:
        daemon.destroy()
        shutil.rmtree(directory)


def run(daemon: Daemon, *args: str) -> subprocess.CompletedProcess[str]:
    return daemon.try_ctr("run", "--runc-binary", "crun", *args)


def test_output_and_exit_status(crun_daemon: Daemon) -> None:
    done = run(crun_daemon, "--rm", IMAGE, "c1", "sh", "-c", "echo out; exit 7")
    assert (done.stdout, done.returncode) == ("out\n", 7), done.stderr


def test_life_of_a_detached_one(crun_daemon: Daemon) -> None:
    assert run(crun_daemon, "-d", "--null-io", IMAGE, "c2", "sleep", "1000").returncode == 0
    out = crun_daemon.ctr("tasks", "exec", "--exec-id", "e1", "c2", "echo", "inside")
    assert out == "inside\n"
    crun_daemon.ctr("tasks", "pause", "c2")
    crun_daemon.ctr("tasks", "resume", "c2")
    crun_daemon.ctr("tasks", "kill", "-s", "SIGKILL", "c2")
    stopped = lambda: rows(crun_daemon.ctr("tasks", "ls"))[0][2] == "STOPPED"  # noqa: E731
    wait_until(stopped, "c2 stopped")


def test_a_missing_program_is_told(crun_daemon: Daemon) -> None:
    done = run(crun_daemon, "--rm", IMAGE, "c3", "no-such-program")
    assert done.returncode != 0
    assert "executable file `no-such-program` not found" in done.stderr


def test_a_missing_runtime_is_told(crun_daemon: Daemon) -> None:
    done = crun_daemon.try_ctr("run", "--rm", "--runc-binary", "no-runc", IMAGE, "c4", "true")
    assert done.returncode != 0
    assert '"no-runc"' in done.stderr
    assert "c4" not in crun_daemon.ctr("tasks", "ls", "-q")
