"""Upgrade in place under clients that know nothing of it: a Go program, ctr, containers."""

from __future__ import annotations

import base64
import os
import re
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness.daemon import Daemon, rows, target, wait_until
from harness.peers import go_program
from harness.upgrades import Stranger, upgrade

from cradled.api import events_pb2
from cradled.api.types_pb2 import Envelope

pytestmark = pytest.mark.skipif(target() != "cradled", reason="containerd has to be restarted")

IMAGE = "docker.io/library/busybox:test"
CONTAINERS, UPGRADES = 6, 3


class Watcher:
    """The Go program, and what it told so far."""

    def __init__(self, socket: Path) -> None:
        self.process = subprocess.Popen(
            [str(go_program("watcher_go")), str(socket)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.told: list[list[str]] = []
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.told.append(line.rstrip("\n").split(" ", 1))

    def all(self, kind: str) -> list[str]:
        return [told for what, told in list(self.told) if what == kind]

    def events(self) -> list[Envelope]:
        return [Envelope.FromString(base64.b64decode(told)) for told in self.all("event")]

    def exits(self) -> list[tuple[str, int]]:
        found = [event for event in self.events() if event.topic == "/tasks/exit"]
        ends = [events_pb2.TaskExit.FromString(event.event.value) for event in found]
        return [(end.container_id, end.exit_status) for end in ends]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(20)
        self._thread.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def watching(daemon: Daemon) -> Iterator[Watcher]:
    watcher = Watcher(daemon.socket)
    try:
        number = 0

        def subscribed() -> bool:
            nonlocal number
            number += 1
            daemon.ctr("namespaces", "label", daemon.namespace, f"seen={number}")
            return bool(watcher.events())

        wait_until(subscribed, "it has subscribed")
        yield watcher
    finally:
        watcher.close()


def tasks(daemon: Daemon) -> dict[str, tuple[int, str]]:
    return {row[0]: (int(row[1]), row[2]) for row in rows(daemon.ctr("tasks", "ls"))}


@contextmanager
def running_containers(daemon: Daemon) -> Iterator[dict[str, tuple[int, str]]]:
    """One short container after another; in the end how each of them went, by name."""
    stop, lives = threading.Event(), {}

    def run() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            command = ("run", "--rm", "--null-io", IMAGE, f"short-{number}", "sh", "-c", "exit 5")
            done = daemon.try_ctr(*command)
            lives[f"short-{number}"] = (done.returncode, done.stderr)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield lives
    finally:
        stop.set()
        thread.join()


def test_nothing_is_lost_or_told_twice(own_daemon: Daemon) -> None:
    daemon = own_daemon
    names = [f"long-{number}" for number in range(CONTAINERS)]
    script = "trap 'exit 9' TERM; sleep 100000 & wait"
    for name in names:
        daemon.ctr("run", "-d", "--null-io", IMAGE, name, "sh", "-c", script)
    before = tasks(daemon)
    for name in names:
        shell = Path(f"/proc/{before[name][0]}/comm")
        wait_until(lambda shell=shell: shell.read_text() == "sh\n", "the shell is there")
    ended: list[str] = []
    with watching(daemon) as watcher, running_containers(daemon) as lives:
        for _ in range(UPGRADES):
            name = names[len(ended)]
            ended.append(name)
            killer = threading.Timer(0.05, os.kill, (before[name][0], signal.SIGTERM))
            killer.start()
            old = daemon.process
            done = upgrade(daemon.socket)
            assert old is not None
            assert old.wait(20) == 0
            daemon.process = Stranger(done.pid)  # type: ignore[assignment]
            killer.join()
            seen = len(lives)
            wait_until(lambda seen=seen: len(lives) > seen + 1, "containers are run again")
        wait_until(lambda: set(ended) <= dict(watcher.exits()).keys(), "all exits are told")
    after = tasks(daemon)
    for name in names:
        state = "STOPPED" if name in ended else "RUNNING"
        assert after[name] == (before[name][0], state)
    exits = Counter(watcher.exits())
    assert {exit: exits[exit] for exit in exits if exit[0] in names} == {
        (name, 9): 1 for name in ended
    }
    for name, (status, text) in lives.items():
        if status == 5:
            assert exits[name, 5] == 1, name
        else:  # it was cut off: as by a restart
            assert re.search("unavailable|closed|the server is stopping", text), text
        assert exits[name, 5] <= 1, name
    assert sum(status == 5 for status, _ in lives.values()) > UPGRADES
    assert watcher.all("cut") == ["Unavailable"] * UPGRADES
    assert {code.split(" ")[0] for code in watcher.all("lost")} <= {"Unavailable"}
    assert not any("connection refused" in told for told in watcher.all("lost"))
    daemon.remove_containers()
