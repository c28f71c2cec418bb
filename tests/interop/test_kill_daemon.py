"""kill -9 of the daemon: containers run on, and nothing that happened meanwhile is lost."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from functools import partial
from pathlib import Path

from harness.daemon import Daemon, rows, wait_until

IMAGE = "docker.io/library/busybox:test"
RUNNING, EXITING = 20, 5


def tasks(daemon: Daemon) -> dict[str, tuple[int, str]]:
    return {row[0]: (int(row[1]), row[2]) for row in rows(daemon.ctr("tasks", "ls"))}


def test_states_exits_and_events_survive(own_daemon: Daemon) -> None:
    names = [f"k{n}" for n in range(RUNNING)]
    script = "trap 'exit 42' TERM; while :; do sleep 0.1; done"
    for name in names:
        own_daemon.ctr("run", "-d", "--null-io", IMAGE, name, "sh", "-c", script)
    before = tasks(own_daemon)
    assert {state for _, state in before.values()} == {"RUNNING"}
    own_daemon.kill()
    for name in names[:EXITING]:
        os.kill(before[name][0], signal.SIGTERM)
    for name in names[:EXITING]:
        pid = before[name][0]
        wait_until(lambda pid=pid: not Path(f"/proc/{pid}").exists(), f"{pid} reaped by its shim")
    own_daemon.start()
    after = tasks(own_daemon)
    assert {name: state for name, (_, state) in after.items()} == {
        name: "STOPPED" if name in names[:EXITING] else "RUNNING" for name in names
    }
    assert all(after[name][0] == before[name][0] for name in names)
    for name in names[:EXITING]:
        done = own_daemon.try_ctr("tasks", "rm", name)
        assert "42" in done.stderr + str(done.returncode)
    for name in names[EXITING:]:
        out = own_daemon.ctr("tasks", "exec", "--exec-id", "e", name, "echo", "alive")
        assert out == "alive\n"


def test_an_exit_is_told_once_to_those_who_listen_again(own_daemon: Daemon) -> None:
    script = "trap 'exit 3' TERM; while :; do sleep 0.1; done"
    own_daemon.ctr("run", "-d", "--null-io", IMAGE, "x", "sh", "-c", script)
    pid = tasks(own_daemon)["x"][0]
    own_daemon.kill()
    own_daemon.start()
    with subprocess.Popen(own_daemon.ctr_command("events"), stdout=subprocess.PIPE, text=True,
                          env=own_daemon.env) as listener:  # fmt: skip
        assert listener.stdout is not None
        seen: list[str] = []
        while not any("/namespaces/update" in line for line in seen):
            own_daemon.ctr("namespaces", "label", own_daemon.namespace, "ready=yes")
            while select.select([listener.stdout], [], [], 0.5)[0]:
                seen.append(listener.stdout.readline())
        os.kill(pid, signal.SIGTERM)
        while not any("/tasks/exit" in line for line in seen):
            seen.append(listener.stdout.readline())
        own_daemon.ctr("namespaces", "label", own_daemon.namespace, "ready=again")
        while "again" not in seen[-1]:
            seen.append(listener.stdout.readline())
        listener.terminate()
    exits = [line for line in seen if "/tasks/exit" in line]
    assert len(exits) == 1
    assert json.loads(exits[0].split("/tasks/exit", 1)[1])["exit_status"] == 3


def test_repeated_kills_while_containers_come_and_go(own_daemon: Daemon) -> None:
    for round_number in range(5):
        running = [start_quietly(own_daemon, f"r{round_number}-{n}") for n in range(4)]
        # Somewhere in the middle of their lives: the first to be seen decides when.
        wait_until(partial(any_task_or_all_done, own_daemon, running), "a task")
        own_daemon.kill()
        for process in running:
            process.wait(60)
        own_daemon.start()
        own_daemon.remove_containers()
        assert tasks(own_daemon) == {}
    kept = [row for row in rows(own_daemon.ctr("snapshots", "ls")) if row[-1] == "Active"]
    for row in kept:
        own_daemon.ctr("snapshots", "rm", row[0])


def start_quietly(daemon: Daemon, name: str) -> subprocess.Popen[bytes]:
    command = daemon.ctr_command("run", "--rm", IMAGE, name, "true")
    null = subprocess.DEVNULL
    return subprocess.Popen(command, env=daemon.env, stdin=null, stdout=null, stderr=null)


def any_task_or_all_done(daemon: Daemon, running: list[subprocess.Popen[bytes]]) -> bool:
    listed = daemon.try_ctr("tasks", "ls", "-q").stdout.strip()
    return bool(listed) or all(process.poll() is not None for process in running)
