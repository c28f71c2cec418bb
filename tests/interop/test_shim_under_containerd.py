"""Debian's containerd, unmodified, with our shim as its runtime."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import leaks
from harness.daemon import Daemon, rows, wait_until

IMAGE = "docker.io/library/busybox:test"
SHIM = Path(sys.executable).parent / "containerd-shim-cradled-v2"

pytestmark = pytest.mark.skipif(
    not shutil.which("containerd") or not SHIM.exists(), reason="needs containerd and our program"
)


@pytest.fixture(scope="module")
def containerd(tmp_path_factory: pytest.TempPathFactory, image_tar: Path) -> Iterator[Daemon]:
    directory = tmp_path_factory.mktemp("d")
    daemon = Daemon(directory, kind="containerd")
    daemon.start()
    try:
        daemon.ctr("images", "import", str(image_tar))
        yield daemon
    finally:
        daemon.destroy()
        shutil.rmtree(directory)


@pytest.fixture
def daemon(containerd: Daemon) -> Iterator[Daemon]:
    yield containerd
    containerd.remove_containers()


def run(daemon: Daemon, *words: str) -> list[str]:
    return ["run", "--runtime", str(SHIM), *words]


def shims(daemon: Daemon) -> list[int]:
    found = leaks.processes_with(f"-namespace {daemon.namespace}")
    return [pid for pid, command in found.items() if SHIM.name in command]


def statuses(daemon: Daemon) -> dict[str, str]:
    return {row[0]: row[2] for row in rows(daemon.ctr("tasks", "ls"))}


def detached(daemon: Daemon, name: str) -> int:
    daemon.ctr(*run(daemon, "-d", "--null-io", IMAGE, name, "sleep", "1000"))
    return int(next(row[1] for row in rows(daemon.ctr("tasks", "ls")) if row[0] == name))


def test_a_life(daemon: Daemon) -> None:
    script = "echo out; echo err >&2; head -n 1; exit 7"
    done = daemon.try_ctr(*run(daemon, "--rm", IMAGE, "c1", "sh", "-c", script), input=b"in\n")
    assert (done.stdout, done.stderr, done.returncode) == ("out\nin\n", "err\n", 7)
    wait_until(lambda: not shims(daemon), "the shim has gone")


def test_exec_pause_metrics_kill(daemon: Daemon) -> None:
    pid = detached(daemon, "c1")
    assert len(shims(daemon)) == 1
    done = daemon.try_ctr("tasks", "exec", "--exec-id", "e", "c1", "sh", "-c", "echo hi; exit 3")
    assert (done.stdout, done.returncode) == ("hi\n", 3)
    daemon.ctr("tasks", "pause", "c1")
    assert statuses(daemon) == {"c1": "PAUSED"}
    daemon.ctr("tasks", "resume", "c1")
    assert str(pid) in daemon.ctr("tasks", "ps", "c1")
    assert "memory.usage_in_bytes" in daemon.ctr("tasks", "metrics", "c1") or os.path.exists(
        "/sys/fs/cgroup/cgroup.controllers"
    )
    daemon.ctr("tasks", "kill", "-s", "SIGKILL", "c1")
    wait_until(lambda: statuses(daemon) == {"c1": "STOPPED"}, "stopped")
    assert "exit code 137" in daemon.try_ctr("tasks", "rm", "c1").stderr


def test_errors_are_those_of_the_original(daemon: Daemon) -> None:
    done = daemon.try_ctr(*run(daemon, "--rm", IMAGE, "c1", "no-such-program"))
    assert "executable file not found" in done.stderr
    assert done.returncode == 1


def test_events(daemon: Daemon) -> None:
    listener = subprocess.Popen(daemon.ctr_command("events"), env=daemon.env,
        stdout=subprocess.PIPE, text=True)  # fmt: skip
    try:
        assert listener.stdout is not None
        while not select.select([listener.stdout], [], [], 0.05)[0]:  # it has not subscribed
            daemon.ctr("namespaces", "label", daemon.namespace, "a=b")
        daemon.ctr(*run(daemon, "--rm", IMAGE, "c1", "true"))
        topics = []
        for line in listener.stdout:
            topics += [word for word in line.split() if word.startswith("/tasks/")]
            if "/tasks/delete" in topics:
                break
    finally:
        listener.terminate()
        listener.wait()
        listener.stdout.close()
    assert topics == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]


def test_the_daemon_dies_and_comes_back(daemon: Daemon) -> None:
    kept, ended = detached(daemon, "kept"), detached(daemon, "ended")
    daemon.kill()
    os.kill(ended, signal.SIGKILL)
    daemon.start()
    assert statuses(daemon)["kept"] == "RUNNING"
    assert os.path.exists(f"/proc/{kept}")
    if "ended" in statuses(daemon):  # from 1.7 on an ended task does not outlive the daemon
        assert "exit code 137" in daemon.try_ctr("tasks", "rm", "ended").stderr
    daemon.ctr("tasks", "kill", "-s", "KILL", "kept")
    wait_until(lambda: statuses(daemon) == {"kept": "STOPPED"}, "stopped")


def test_the_shim_dies(daemon: Daemon) -> None:
    pid = detached(daemon, "c1")
    wait_until(lambda: len(shims(daemon)) == 1, "those of other tests have gone")
    (shim,) = shims(daemon)
    address = Path(f"/proc/{shim}/cwd/address")
    socket = address.read_text().removeprefix("unix://")
    os.kill(shim, signal.SIGKILL)
    wait_until(lambda: statuses(daemon) == {}, "the daemon has cleaned up with our program")
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "the container is gone")
    assert not os.path.exists(socket)
