"""``cradle doctor`` on this host: without a daemon, with one, and with one that was killed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.cradle import IMAGE, Cradle, running_cradle

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="module")
def cradle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cradle]:
    with running_cradle(tmp_path_factory.mktemp("c")) as cradle:
        config = (
            f'version = 4\nroot = "{cradle.daemon.root}"\nstate = "{cradle.daemon.state}"\n'
            '[plugins."io.containerd.server.v1.grpc"]\n'
            f'address = "{cradle.daemon.socket}"\n'
        )
        (cradle.daemon.directory / "doctor.toml").write_text(config)
        yield cradle


def examine(cradle: Cradle, *, status: int = 0) -> dict[str, dict[str, Any]]:
    config = cradle.daemon.directory / "doctor.toml"
    done = cradle.run("doctor", "--json", "--config", str(config))
    assert "Traceback" not in done.stderr
    assert done.returncode == status, done.stdout
    return {f"{one['area']} {one['name']}": one for one in json.loads(done.stdout)}


def test_a_daemon_that_works_and_one_that_was_killed(cradle: Cradle) -> None:
    cradle.ok("run", "-d", "--name", "c1", IMAGE, "sleep", "1000")
    found = examine(cradle)
    assert "listens" in found["daemon socket"]["text"]
    assert "cradled" in found["daemon answer"]["text"]
    assert found["daemon plugins"]["status"] == "ok"
    assert found["containers tasks"]["text"] == "1 have a shim"
    assert found["runtimes runc"]["status"] == "ok"
    assert found["config file"]["status"] == "ok"
    assert {one["status"] for one in found.values()} <= {"ok", "warn"}

    cradle.daemon.kill()
    found = examine(cradle)
    assert found["daemon socket"]["status"] == "warn"
    assert found["containers tasks"]["text"].endswith("the next daemon takes them over")

    cradle.daemon.start()
    cradle.remove_containers()
    assert examine(cradle)["containers tasks"]["text"] == "0 have a shim"


def test_a_socket_for_everybody_fails(cradle: Cradle) -> None:
    cradle.daemon.socket.chmod(0o666)
    try:
        found = examine(cradle, status=1)
    finally:
        cradle.daemon.socket.chmod(0o660)
    assert found["daemon socket"]["status"] == "fail"


def test_a_report_to_paste(cradle: Cradle) -> None:
    report = cradle.ok("doctor")
    assert report.splitlines()[0] == "cradle"
    assert " failed, " in report.splitlines()[-1]
    assert "\x1b" not in report


def test_without_a_daemon_none_is_started(tmp_path: Path, cradle: Cradle) -> None:
    home = tmp_path / "home"
    elsewhere = Cradle(cradle.daemon, home)
    done = elsewhere.run("doctor", "--address", str(tmp_path / "none.sock"))
    assert done.returncode == 0, done.stdout
    assert "no daemon runs" in done.stdout
    assert not home.exists()
