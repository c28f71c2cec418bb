"""The restart monitor, by labels that ctr sets; both daemons on the same terms."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.daemon import Daemon, rows, target, wait_until

IMAGE = "docker.io/library/busybox:test"
LABEL = "containerd.io/restart."

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="runs containers: needs root")

ours = pytest.mark.skipif(target() != "cradled", reason="Debian's original has no policies")


class Impatient(Daemon):
    """Looks at its containers every second; the section has its old name."""

    def command(self) -> list[str]:
        command = super().command()
        config = self.directory / "config.toml"
        text = config.read_text() if config.exists() else "version = 2\n"
        section = '\n[plugins."io.containerd.internal.v1.restart"]\n  interval = "1s"\n'
        config.write_text(text.partition(section)[0] + section)
        return command if "-c" in command else [*command, "--config", str(config)]


@pytest.fixture(scope="module")
def empty_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Impatient(tmp_path_factory.mktemp("d"))
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.destroy()
        shutil.rmtree(daemon.directory)


@pytest.fixture
def daemon(module_daemon: Daemon) -> Iterator[Daemon]:
    yield module_daemon
    for container in module_daemon.ctr("containers", "ls", "-q").split():
        module_daemon.ctr("containers", "label", container, f"{LABEL}status=")
    module_daemon.remove_containers()


def run(daemon: Daemon, name: str, script: str, *labels: str) -> None:
    flags = [word for label in labels for word in ("--label", LABEL + label)]
    daemon.ctr("run", "-d", "--null-io", *flags, IMAGE, name, "sh", "-c", script)


def pid_of(daemon: Daemon, name: str) -> int:
    """0 while there is no task that runs."""
    found = {row[0]: row for row in rows(daemon.ctr("tasks", "ls"))}
    return int(found[name][1]) if name in found and found[name][2] == "RUNNING" else 0


def labels_of(daemon: Daemon, name: str) -> dict[str, str]:
    labels: dict[str, str] = json.loads(daemon.ctr("containers", "info", name))["Labels"]
    return labels


def test_what_shall_run_is_started_again(daemon: Daemon) -> None:
    run(daemon, "phoenix", "exec sleep 1000", "status=running")
    before = pid_of(daemon, "phoenix")
    daemon.ctr("tasks", "kill", "-s", "KILL", "phoenix")
    wait_until(lambda: pid_of(daemon, "phoenix") not in (0, before), "it runs again")


def test_what_is_without_a_task_is_started(daemon: Daemon) -> None:
    daemon.ctr("containers", "create", "--label", f"{LABEL}status=running",
        IMAGE, "lazy", "sleep", "1000")  # fmt: skip
    wait_until(lambda: pid_of(daemon, "lazy"), "it is started")


def test_output_goes_where_the_label_says(daemon: Daemon, tmp_path: Path) -> None:
    log = tmp_path / "log"
    run(daemon, "teller", "echo told; sleep 0.2; exit 1", "status=running", f"loguri=file://{log}")
    wait_until(lambda: log.exists() and log.read_text().startswith("told\ntold\n"), "two lives")


def test_what_shall_be_stopped_is_killed_and_its_task_deleted(daemon: Daemon) -> None:
    run(daemon, "doomed", "exec sleep 1000", "status=running")
    daemon.ctr("containers", "label", "doomed", f"{LABEL}status=stopped")
    wait_until(lambda: "doomed" not in daemon.ctr("tasks", "ls", "-q"), "its task is gone")


def test_without_the_label_nothing_happens(daemon: Daemon) -> None:
    run(daemon, "kept", "exec sleep 1000", "status=running")
    run(daemon, "plain", "exit 1", "policy=always")
    run(daemon, "fleeting", "exit 1", "status=running")
    daemon.ctr("containers", "label", "fleeting", f"{LABEL}status=")
    pid = pid_of(daemon, "kept")
    daemon.ctr("tasks", "kill", "-s", "KILL", "kept")
    wait_until(lambda: pid_of(daemon, "kept") not in (0, pid), "the monitor was there")
    found = {row[0]: row[2] for row in rows(daemon.ctr("tasks", "ls"))}
    assert (found["plain"], found.get("fleeting", "STOPPED")) == ("STOPPED", "STOPPED")


@ours
def test_a_failure_is_tried_again_so_many_times(daemon: Daemon, tmp_path: Path) -> None:
    log = tmp_path / "log"
    run(daemon, "weak", "echo life; exit 3",
        "status=running", "policy=on-failure:3", f"loguri=file://{log}")  # fmt: skip
    wait_until(lambda: labels_of(daemon, "weak").get(f"{LABEL}count") == "3", "three attempts")
    run(daemon, "other", "exit 3", "status=running", "policy=on-failure:4")
    wait_until(lambda: labels_of(daemon, "other").get(f"{LABEL}count") == "4", "four attempts")
    assert log.read_text() == "life\n" * 3
    assert "io.cradled.restart/pending" not in labels_of(daemon, "weak")
    wait_until(lambda: rows(daemon.ctr("tasks", "ls"))[-1][2] == "STOPPED", "the last life's end")


@ours
def test_policies(daemon: Daemon) -> None:
    run(daemon, "succeeded", "exit 0", "status=running", "policy=on-failure")
    run(daemon, "unwanted", "exit 1", "status=running", "policy=no")
    run(daemon, "stopped", "exit 1",
        "status=running", "policy=unless-stopped", "explicitly-stopped=true")  # fmt: skip
    run(daemon, "wanted", "exit 0", "status=running", "policy=unless-stopped")
    run(daemon, "strange", "exit 1", "status=running", "policy=sometimes")
    wait_until(lambda: labels_of(daemon, "wanted").get(f"{LABEL}count") == "2", "restarts")
    for name in ("succeeded", "unwanted", "stopped", "strange"):
        assert f"{LABEL}count" not in labels_of(daemon, name)


@ours
def test_the_plugin_tells_its_policies(daemon: Daemon) -> None:
    shown = daemon.ctr("plugins", "ls", "-d", "id==restart")
    assert "io.containerd.monitor.container.v1" in shown
    for policy in ("no", "always", "on-failure", "unless-stopped"):
        assert policy in shown


@ours
def test_nothing_is_lost_with_the_daemon(daemon: Daemon) -> None:
    run(daemon, "survivor", "exec sleep 1000", "status=running", "policy=always")
    run(daemon, "victim", "exec sleep 1000", "status=running", "policy=on-failure")
    pid, victim = pid_of(daemon, "survivor"), pid_of(daemon, "victim")
    daemon.kill()
    os.kill(victim, 9)
    daemon.start()
    wait_until(lambda: pid_of(daemon, "victim") not in (0, victim), "it runs again")
    assert pid_of(daemon, "survivor") == pid
