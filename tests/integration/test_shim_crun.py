"""Another OCI runtime under the same shim."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.shims import Fifos, Shim, Status, eventually, running

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("crun"), reason="needs root and crun"
)

# Debian 12's crun refuses a host with legacy and unified hierarchies: in its own mount namespace it
# sees the legacy ones only.
LEGACY_ONLY = ["unshare", "--mount", "sh", "-c", 'umount /sys/fs/cgroup/unified; exec "$@"', "sh"]


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shim]:
    wrapper = LEGACY_ONLY if os.path.ismount("/sys/fs/cgroup/unified") else ()
    with running(tmp_path_factory.mktemp("shim"), runtime="crun", wrapper=wrapper) as shim:
        yield shim


def test_a_life(shim: Shim, tmp_path: Path) -> None:
    fifos = Fifos(tmp_path / "fifos", "stdout")
    shim.create("life", "/bin/sh", "-c", "echo out; exit 7", stdout=fifos.paths["stdout"])
    assert shim.state("life").status == 1
    shim.call("Start", id="life")
    assert fifos.read() == b"out\n"
    assert shim.wait("life") == 7
    shim.call("Delete", id="life")
    shim.ear.wait("delete")
    assert shim.ear.topics() == ["create", "start", "exit", "delete"]
    fifos.close()


def test_exec_pause_pids_kill(shim: Shim) -> None:
    shim.create("run", "/bin/sh", "-c", "sleep 1000 & wait")
    shim.call("Start", id="run")
    shim.exec("run", "e", "/bin/sh", "-c", "exit 5")
    assert shim.wait("run", "e") == 5
    eventually(lambda: len(shim.call("Pids", id="run").processes) == 2)
    shim.call("Pause", id="run")
    assert shim.state("run").status == 4
    shim.call("Resume", id="run")
    assert shim.call("Stats", id="run").stats.value
    shim.call("Kill", id="run", signal=9, all=True)
    assert shim.wait("run") == 137
    shim.call("Delete", id="run")


def test_terminal(shim: Shim, tmp_path: Path) -> None:
    fifos = Fifos(tmp_path / "fifos", "stdout")
    shim.create("tty", "/bin/sh", "-c", "test -t 1 && echo terminal", terminal=True,
                spec={"terminal": True}, stdout=fifos.paths["stdout"])  # fmt: skip
    shim.call("Start", id="tty")
    assert fifos.read() == b"terminal\r\n"
    shim.wait("tty")
    shim.call("Delete", id="tty")
    fifos.close()


def test_errors(shim: Shim) -> None:
    with pytest.raises(Status, match=r"^OCI runtime create failed: .*(not found|[Nn]o such file)"):
        shim.create("bad", "/bin/nothing")
    shim.create("xbad", "/bin/sleep", "1000")
    shim.call("Start", id="xbad")
    with pytest.raises(Status, match=r"^OCI runtime exec failed: "):
        shim.exec("xbad", "e", "/bin/nothing")
    shim.call("Kill", id="xbad", signal=9)
    shim.wait("xbad")
    shim.call("Delete", id="xbad")
