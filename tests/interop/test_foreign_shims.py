"""Daemons and shims of different makes: what they tell each other, and outlive each other.

What one client sees of a container's life is in ``test_ctr_run``.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness.daemon import Daemon, rows, wait_until
from harness.pairings import GO_SHIM, PAIRINGS, RUNC
from harness.shims import has_ended

IMAGE = "docker.io/library/busybox:test"
EATS = "x=a; while :; do x=$x$x; done"

OF_SHIMS = [name for name in PAIRINGS if not name.endswith(("runc", "crun"))]

pytestmark = pytest.mark.parametrize("pairing", OF_SHIMS, indirect=True, scope="module")


def statuses(daemon: Daemon) -> dict[str, str]:
    return {row[0]: row[2] for row in rows(daemon.ctr("tasks", "ls"))}


def pid_of(daemon: Daemon, name: str) -> int:
    return int(next(row[1] for row in rows(daemon.ctr("tasks", "ls")) if row[0] == name))


def detached(daemon: Daemon, name: str) -> int:
    """Run a container in the background that exits with 9 when it is asked to; its pid."""
    script = "trap 'exit 9' TERM; while :; do sleep 0.1; done"
    daemon.ctr("run", "-d", "--null-io", IMAGE, name, "sh", "-c", script)
    pid = pid_of(daemon, name)
    wait_until(Path(f"/proc/{pid}/task/{pid}/children").read_text, "the trap is set")
    return pid


def shim_of(pid: int) -> int:
    """Containers are adopted by their shims."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("PPid:"):
            return int(line.split()[1])
    raise AssertionError(f"{pid} has no parent")


def is_go_shim(daemon: Daemon) -> bool:
    """Whether containers are expected to have the original's shim."""
    if daemon.runtime == RUNC:
        return daemon.kind == "containerd" or GO_SHIM in daemon.settings
    return GO_SHIM in daemon.runtime


def address_of(daemon: Daemon, name: str) -> str:
    """The socket of a container's shim, as its bundle tells it."""
    bundle = daemon.state / "io.containerd.runtime.v2.task" / daemon.namespace / name
    told = bundle / "bootstrap.json"
    if told.exists():
        address = str(json.loads(told.read_text())["address"])
    else:  # before 1.7
        address = (bundle / "address").read_text()
    return address.removeprefix("unix://")


class Listener:
    """``ctr events``; what it tells of tasks."""

    def __init__(self, daemon: Daemon, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self._lines = process.stdout
        # The subscription is there once an event that we have caused comes back.
        while not select.select([self._lines], [], [], 0.05)[0]:
            daemon.ctr("namespaces", "label", daemon.namespace, "ready=yes")

    def until(self, topic: str, container: str) -> list[tuple[str, dict[str, Any]]]:
        """Topics and events of a container, up to the first of ``topic``."""
        heard: list[tuple[str, dict[str, Any]]] = []
        while not heard or heard[-1][0] != topic:
            *_, name, event = self._lines.readline().split(maxsplit=6)
            told = json.loads(event)
            if name.startswith("/tasks/") and told["container_id"] == container:
                heard.append((name.removeprefix("/tasks/"), told))
        return heard


@contextmanager
def listening(daemon: Daemon) -> Iterator[Listener]:
    command = daemon.ctr_command("events")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=daemon.env) as process:
        try:
            yield Listener(daemon, process)
        finally:
            process.terminate()


def test_who_serves(daemon: Daemon) -> None:
    pid = detached(daemon, "c1")
    program = Path(f"/proc/{shim_of(pid)}/exe").resolve().name
    assert (program == GO_SHIM) == is_go_shim(daemon)


def test_what_is_told_of_a_life(daemon: Daemon) -> None:
    with listening(daemon) as listener:
        pid = detached(daemon, "c1")
        assert daemon.try_ctr("tasks", "exec", "--exec-id", "e", "c1", "false").returncode == 1
        daemon.ctr("tasks", "pause", "c1")
        daemon.ctr("tasks", "resume", "c1")
        daemon.ctr("tasks", "kill", "c1")
        wait_until(lambda: statuses(daemon) == {"c1": "STOPPED"}, "ended")
        assert "exit code 9" in daemon.try_ctr("tasks", "rm", "c1").stderr
        heard = listener.until("delete", "c1")
    assert [topic for topic, _ in heard] == [
        "create", "start", "exec-added", "exec-started", "exit", "paused", "resumed", "exit",
        "delete",
    ]  # fmt: skip
    told = dict(heard)
    assert [event.get("id") for topic, event in heard if topic == "exit"] == ["e", "c1"]
    assert (told["exit"]["exit_status"], told["delete"]["exit_status"]) == (9, 9)
    assert {told[topic]["pid"] for topic in ("create", "start", "exit", "delete")} == {pid}


def test_killed_for_memory(daemon: Daemon) -> None:
    with listening(daemon) as listener:
        limit = ("--memory-limit", str(16 << 20))
        assert daemon.try_ctr("run", *limit, IMAGE, "c1", "sh", "-c", EATS).returncode == 137
        topics = [topic for topic, _ in listener.until("oom", "c1")]
    assert topics in (["create", "start", "oom"], ["create", "start", "exit", "oom"])


def test_output_into_a_file(daemon: Daemon, tmp_path: Path) -> None:
    log = tmp_path / "deep" / "log"
    uri = f"file://{log}"
    daemon.ctr("run", "-d", "--log-uri", uri, IMAGE, "c1", "sh", "-c", "echo out; echo err >&2")
    wait_until(lambda: statuses(daemon) == {"c1": "STOPPED"}, "ended")
    daemon.ctr("tasks", "rm", "c1")
    # The original's shim may close the file after one of both.
    wanted = {"out"} if is_go_shim(daemon) else {"out", "err"}
    assert set(log.read_text().split()) >= wanted


def test_output_to_a_program(daemon: Daemon, tmp_path: Path) -> None:
    logger = tmp_path / "logger"
    logger.write_text(
        "#!/bin/sh\ntrap '' TERM\nexec 5>&-\n"
        'cat <&3 >"$2/out" & cat <&4 >"$2/err"; wait\n'
        'echo "$CONTAINER_NAMESPACE $CONTAINER_ID" > "$2/who"\n'
    )
    logger.chmod(0o755)
    script = "echo out; echo err >&2"
    uri = f"binary://{logger}?to={tmp_path}"
    daemon.ctr("run", "-d", "--log-uri", uri, IMAGE, "c1", "sh", "-c", script)
    wait_until(lambda: statuses(daemon) == {"c1": "STOPPED"}, "ended")
    daemon.ctr("tasks", "rm", "c1")
    wait_until((tmp_path / "who").exists, "the logger has ended")
    told = {name: (tmp_path / name).read_text() for name in ("out", "err", "who")}
    assert told == {"out": "out\n", "err": "err\n", "who": f"{daemon.namespace} c1\n"}


def test_numbers(daemon: Daemon) -> None:
    script = "sleep 1000 & sleep 1000 & wait"
    daemon.ctr("run", "-d", "--null-io", IMAGE, "c1", "sh", "-c", script)
    wait_until(lambda: len(rows(daemon.ctr("tasks", "ps", "c1"))) == 3, "three processes")
    metrics = json.loads(daemon.ctr("tasks", "metrics", "--format", "json", "c1"))
    assert int(metrics["pids"]["current"]) == 3
    assert metrics["memory"]
    assert metrics["cpu"]


def test_the_daemon_dies_and_comes_back(daemon: Daemon) -> None:
    kept, ended = detached(daemon, "kept"), detached(daemon, "ended")
    daemon.kill()
    os.kill(ended, signal.SIGTERM)
    wait_until(lambda: has_ended(ended), "it has ended while no daemon looks")
    daemon.start()
    assert statuses(daemon)["kept"] == "RUNNING"
    if "ended" in statuses(daemon):  # an original from 1.7 on has forgotten it, without a word
        assert "exit code 9" in daemon.try_ctr("tasks", "rm", "ended").stderr
    else:
        assert daemon.kind == "containerd"
    words = ("tasks", "exec", "--exec-id", "e", "kept", "sh", "-c", "echo on; exit 3")
    with listening(daemon) as listener:
        done = daemon.try_ctr(*words)
        assert (done.stdout, done.returncode) == ("on\n", 3)
        os.kill(kept, signal.SIGTERM)
        heard = listener.until("exit", "kept") + listener.until("exit", "kept")
    exits = [(event["id"], event["exit_status"]) for topic, event in heard if topic == "exit"]
    assert exits == [("e", 3), ("kept", 9)]
    assert statuses(daemon)["kept"] == "STOPPED"


def test_the_shim_dies(daemon: Daemon) -> None:
    pid = detached(daemon, "c1")
    other = detached(daemon, "c2")
    socket = address_of(daemon, "c1")
    assert os.path.exists(socket)
    with listening(daemon) as listener:
        os.kill(shim_of(pid), signal.SIGKILL)
        heard = listener.until("delete", "c1")
    assert [topic for topic, _ in heard] == ["exit", "delete"]
    assert [(event["pid"], event["exit_status"]) for _, event in heard] == [(pid, 137)] * 2
    assert list(statuses(daemon)) == ["c2"]
    wait_until(lambda: has_ended(pid), "the container is gone")
    if daemon.kind == "containerd" and is_go_shim(daemon):  # which leaves that
        os.unlink(socket)
    assert not os.path.exists(socket)
    assert os.path.exists(f"/proc/{other}")
    daemon.ctr("containers", "rm", "c1")  # with its snapshot: nothing is mounted any more
    daemon.ctr("run", "--rm", IMAGE, "c1", "true")
