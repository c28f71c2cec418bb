"""What ``cradle`` does to containers while they live, on a real daemon with real runc."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from harness.cradle import Cradle
from harness.daemon import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="runs containers: needs root")

IMAGE = "busybox:test"
LABEL = "containerd.io/restart."


def run(cradle: Cradle, name: str, script: str, *flags: str) -> None:
    cradle.ok("run", "-d", "--name", name, *flags, IMAGE, "sh", "-c", script)


def listed(cradle: Cradle, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {one["name"]: one for one in cradle.json("ps", "-a")}
    described: dict[str, Any] = found[name]
    return described


def cgroup_file(pid: int, controller: str, v1: str, v2: str) -> str:
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return Path(f"/sys/fs/cgroup/{names}{path}/{v1}").read_text().strip()
        if not names and (Path("/sys/fs/cgroup") / "cgroup.controllers").exists():
            return Path(f"/sys/fs/cgroup{path}/{v2}").read_text().strip()
    raise AssertionError("no such controller")


def test_start_again(cradle: Cradle) -> None:
    run(cradle, "twice", "echo life; exit 3")
    assert cradle.ok("wait", "twice") == "twice\t3\n"
    assert cradle.ok("start", "twice") == "twice\n"
    assert cradle.ok("wait", "twice") == "twice\t3\n"
    assert cradle.ok("logs", "twice") == "life\nlife\n"
    assert listed(cradle, "twice")["restarts"] == 0


def test_start_of_one_that_was_run_in_the_foreground(cradle: Cradle) -> None:
    cradle.ok("run", "--name", "front", IMAGE, "echo", "said")
    assert cradle.ok("start", "front") == "front\n"
    cradle.ok("wait", "front")
    assert cradle.ok("logs", "front") == "said\n"


def test_start_of_one_that_runs(cradle: Cradle) -> None:
    run(cradle, "busy", "exec sleep 1000")
    assert "runs already; `cradle restart` stops it first" in cradle.fails("start", "busy")
    pid = listed(cradle, "busy")["pid"]
    assert cradle.ok("restart", "-t", "0", "busy") == "busy\n"
    assert listed(cradle, "busy")["pid"] not in (0, pid)
    assert "`cradle ps -a` lists what there is" in cradle.fails("start", "nobody")


def test_pause(cradle: Cradle) -> None:
    run(cradle, "ice", "trap 'exit 4' TERM; while :; do sleep 0.05; done")
    assert cradle.ok("pause", "ice") == "ice\n"
    assert listed(cradle, "ice")["state"] == "paused"
    assert "ice" in cradle.ok("ps", "-q")
    assert cradle.ok("unpause", "ice") == "ice\n"
    assert listed(cradle, "ice")["state"] == "running"
    cradle.ok("pause", "ice")
    cradle.ok("stop", "ice")
    assert listed(cradle, "ice")["exit_status"] == 4


def test_top(cradle: Cradle) -> None:
    run(cradle, "many", "sleep 1000 & exec sleep 2000")
    cradle.ok("exec", "-d", "many", "sleep", "3000")
    found = {one["command"]: one for one in cradle.json("top", "many")}
    assert found.keys() == {"sleep 1000", "sleep 2000", "sleep 3000"}
    assert found["sleep 3000"]["exec"].startswith("exec-")
    assert (found["sleep 1000"]["exec"], found["sleep 2000"]["exec"]) == ("", "")
    assert (
        found["sleep 1000"]["ppid"] == found["sleep 2000"]["pid"] == listed(cradle, "many")["pid"]
    )
    rows = [line.split("\t") for line in cradle.ok("top", "many").splitlines()]
    assert sorted(row[4] for row in rows) == sorted(found)


def test_stats(cradle: Cradle) -> None:
    run(cradle, "eater", "while :; do :; done", "-m", "64m", "--pids-limit", "20")
    run(cradle, "idler", "exec sleep 1000")
    told = {one["name"]: one for one in cradle.json("stats", "--no-stream")}
    assert told.keys() == {"eater", "idler"}
    eater, idler = told["eater"], told["idler"]
    assert eater["cpu_percent"] > idler["cpu_percent"]
    assert 0 < idler["memory"] < 64 << 20
    assert (eater["memory_limit"], eater["pids_limit"], eater["pids"]) == (64 << 20, 20, 1)
    assert idler["pids_limit"] is None
    (row,) = cradle.ok("stats", "--no-stream", "eater").splitlines()
    assert row.split("\t")[0] == "eater"
    assert row.split("\t")[3:5] == ["64.0 MiB", "1"]
    assert "not found" in cradle.fails("stats", "nobody")


def test_stats_go_on_until_nothing_is_left(cradle: Cradle) -> None:
    run(cradle, "short", "exec sleep 1000")
    process = cradle.popen("stats", "--json", "short", stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())[0]["name"] == "short"
    assert json.loads(process.stdout.readline())[0]["name"] == "short"
    cradle.ok("rm", "-f", "short")
    assert process.wait(30) == 0
    process.stdout.close()


def test_stats_are_interrupted(cradle: Cradle) -> None:
    process = cradle.popen("stats", "--json", stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline()) == []
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    process.stdout.close()


def test_update(cradle: Cradle) -> None:
    run(cradle, "box", "exec sleep 1000", "-m", "64m", "--cpus", "1", "--pids-limit", "20")
    for _ in range(2):  # at once, and when it runs again
        cradle.ok("update", "-m", "32m", "--cpus", "0.25", "--pids-limit", "9", "box")
        pid = listed(cradle, "box")["pid"]
        memory = cgroup_file(pid, "memory", "memory.limit_in_bytes", "memory.max")
        quota = cgroup_file(pid, "cpu", "cpu.cfs_quota_us", "cpu.max")
        assert (memory, quota.split()[0]) == (str(32 << 20), "25000")
        assert cgroup_file(pid, "pids", "pids.max", "pids.max") == "9"
        cradle.ok("restart", "-t", "0", "box")
    cradle.ok("update", "--pids-limit", "0", "box")
    assert cgroup_file(listed(cradle, "box")["pid"], "pids", "pids.max", "pids.max") == "max"
    assert "nothing to change; give -m" in cradle.fails("update", "box", status=2)
    assert "size" in cradle.fails("update", "-m", "much", "box")


def test_a_restart_policy(cradle: Cradle) -> None:
    run(cradle, "weak", "echo life; exit 3", "--restart", "on-failure:2")
    wait_until(lambda: listed(cradle, "weak")["restarts"] == 2, "it was restarted")
    wait_until(lambda: listed(cradle, "weak")["state"] == "exited", "it is given up")
    assert cradle.ok("logs", "-f", "weak") == "life\nlife\nlife\n"
    assert cradle.ok("ps", "-a").rstrip("\n").split("\t")[-1] == "2"
    cradle.ok("start", "weak")
    wait_until(lambda: listed(cradle, "weak")["restarts"] == 2, "it gets as many attempts again")


def test_logs_are_followed_from_life_to_life(cradle: Cradle) -> None:
    run(cradle, "serial", "echo life; exit 3", "--restart", "on-failure:3")
    assert cradle.ok("logs", "-f", "serial") == "life\n" * 4


def test_what_is_stopped_stays_stopped(cradle: Cradle) -> None:
    for policy in ("always", "unless-stopped"):
        run(cradle, policy, "trap 'exit 0' TERM; while :; do sleep 0.05; done", "--restart", policy)
        before = listed(cradle, policy)
        os.kill(before["pid"], signal.SIGKILL)
        wait_until(
            lambda policy=policy, pid=before["pid"]: listed(cradle, policy)["pid"] not in (0, pid),
            "it runs again",
        )
        cradle.ok("stop", policy)
        labels = listed(cradle, policy)["labels"]
        assert labels[f"{LABEL}explicitly-stopped"] == "true"
        assert labels[f"{LABEL}policy"] == policy
        assert f"{LABEL}status" not in labels
        assert listed(cradle, policy)["state"] == "exited"
        cradle.ok("start", policy)
        labels = listed(cradle, policy)["labels"]
        assert f"{LABEL}explicitly-stopped" not in labels
        assert labels[f"{LABEL}status"] == "running"


def test_what_is_removed_does_not_come_back(cradle: Cradle) -> None:
    run(cradle, "mortal", "exec sleep 1000", "--restart", "always")
    cradle.ok("rm", "-f", "mortal")
    assert cradle.ok("ps", "-aq") == ""
    run(cradle, "mortal", "exit 0", "--restart", "always")
    wait_until(lambda: listed(cradle, "mortal")["restarts"] > 0, "it comes back")
    cradle.ok("rm", "-f", "mortal")
    assert cradle.ok("ps", "-aq") == ""


def test_a_policy_is_changed(cradle: Cradle) -> None:
    run(cradle, "later", "echo a life; exec sleep 1000")
    cradle.ok("update", "--restart", "always", "later")
    pid = listed(cradle, "later")["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: listed(cradle, "later")["pid"] not in (0, pid), "it runs again")
    wait_until(lambda: cradle.ok("logs", "later") == "a life\n" * 2, "its log goes on")
    cradle.ok("update", "--restart", "no", "later")
    assert not any(label.startswith(LABEL + "s") for label in listed(cradle, "later")["labels"])


def test_policies_that_cannot_be(cradle: Cradle) -> None:
    bad = cradle.fails("run", "-d", "--restart", "sometimes", IMAGE, "true", status=125)
    assert "say no, always, unless-stopped, on-failure or on-failure:N" in bad
    bad = cradle.fails("run", "--restart", "always", IMAGE, "true", status=125)
    assert "add -d" in bad
