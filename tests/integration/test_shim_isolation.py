"""What containers share when they are told to, and that they share nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.shims import Fifos, Shim, eventually, finish, has_ended, running

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

UNIFIED = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
MIB = 1 << 20
RUNNING = 2
CROWD = ("/bin/sh", "-c", "sleep 1000 & sleep 1000 & exec sleep 1000")


@pytest.fixture(scope="module", params=["forked", "program"])
def shim(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shim]:
    directory = tmp_path_factory.mktemp("shim")
    with running(directory, forked=request.param == "forked") as shim:
        yield shim


def pids(shim: Shim, id: str) -> set[int]:
    return {process.pid for process in shim.call("Pids", id=id).processes}


@pytest.fixture
def guest(shim: Shim) -> Iterator[tuple[str, str]]:
    """A container, and one that is in its pid namespace."""
    host, guest = "host", "guest"
    pid = shim.create(host, "/bin/sleep", "1000")
    shim.call("Start", id=host)
    spec = shim.bundle(guest, *CROWD) / "config.json"
    changed = json.loads(spec.read_text())
    namespaces = changed["linux"]["namespaces"]
    next(n for n in namespaces if n["type"] == "pid")["path"] = f"/proc/{pid}/ns/pid"
    spec.write_text(json.dumps(changed))
    shim.create(guest)
    shim.call("Start", id=guest)
    eventually(lambda: len(pids(shim, guest)) == 3)
    yield host, guest
    if shim.state(host).status == RUNNING:
        shim.call("Kill", id=host, signal=9)
    assert finish(shim, host) == 137
    for id in (host, guest):
        (shim.bundles / id).rename(shim.bundles / f"{id}-{len(os.listdir(shim.bundles))}")


def test_a_guest_ends_with_its_init(shim: Shim, guest: tuple[str, str]) -> None:
    """The kernel ends what a first process leaves behind; of this one the shim has to."""
    host, id = guest
    there = pids(shim, id)
    assert pids(shim, host) == {shim.state(host).pid}
    shim.call("Kill", id=id, signal=9)
    assert finish(shim, id) == 137
    eventually(lambda: all(map(has_ended, there)))
    assert shim.state(host).status == RUNNING


def test_killing_all_of_a_guest_spares_its_host(shim: Shim, guest: tuple[str, str]) -> None:
    host, id = guest
    there = pids(shim, id)
    shim.call("Kill", id=id, signal=15, all=True)
    assert finish(shim, id) == 143
    eventually(lambda: all(map(has_ended, there)))
    assert shim.state(host).status == RUNNING


def test_a_guest_outlives_nobody(shim: Shim, guest: tuple[str, str]) -> None:
    """With the first of the namespace all of it ends."""
    host, id = guest
    shim.call("Kill", id=host, signal=9)
    assert shim.wait(host) == 137
    assert finish(shim, id) == 137


def test_nothing_of_ours_is_inside(shim: Shim, tmp_path: Path) -> None:
    """Neither what the shim holds, nor what it holds for others, nor how it runs."""
    fifos = Fifos(tmp_path / "others", "stdin", "stdout", "stderr")
    shim.create("other", "/bin/cat", **fifos.paths)
    shim.call("Start", id="other")
    own = Fifos(tmp_path / "own", "stdout", "stderr")
    script = "ls -l /proc/self/fd; tail -n 1 /proc/self/cgroup; env; exec sleep 1000"
    shim.create("inside", "/bin/sh", "-c", script, **own.paths)
    shim.call("Start", id="inside")
    shown = own.read(until=b"TERM=").decode()
    links = dict(line.split()[-3::2] for line in shown.splitlines() if " -> " in line)
    assert sorted(links) == ["0", "1", "2"]
    assert links["0"] == "/dev/null"
    assert links["1"].startswith("pipe:")
    assert links["2"].startswith("pipe:")
    shown_env = {line.partition("=")[0] for line in shown.splitlines() if "=" in line}
    assert shown_env <= {"PATH", "TERM", "SHLVL", "PWD", "HOME"}
    pid = shim.state("inside").pid
    eventually(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
    assert (fields["SigBlk"], fields["NoNewPrivs"]) == ("0" * 16, "1")
    assert int(fields["SigIgn"], 16) & 0x7FFFFFFF == 0  # the C library keeps two of its own
    assert os.getsid(pid) == pid
    groups = Path(f"/proc/{pid}/cgroup").read_text()
    assert all(line.endswith(f"/{shim.mark}/inside") for line in groups.split() if line)
    assert Path(f"/proc/{pid}/limits").read_text() == Path("/proc/self/limits").read_text()
    for id in ("other", "inside"):
        shim.call("Kill", id=id, signal=9)
        assert finish(shim, id) == 137
    fifos.close()
    own.close()


@pytest.mark.skipif(UNIFIED, reason="the host has no legacy hierarchies")
def test_every_kind_of_limit_can_be_changed(shim: Shim) -> None:
    """While it runs, while it is frozen, and before it was started."""
    limits = {"memory": {"limit": 64 * MIB}, "pids": {"limit": 60}}
    shim.create("limited", "/bin/sleep", "1000", spec={"resources": limits})
    _change(shim, cpu={"shares": 512})
    assert _limit(shim, "cpu", "cpu.shares") == 512
    shim.call("Start", id="limited")
    memory = {"limit": 48 * MIB, "reservation": 24 * MIB, "swap": 96 * MIB}
    _change(shim, cpu={"quota": 30000, "period": 50000, "cpus": "0"}, memory=memory)
    shim.call("Pause", id="limited")
    _change(shim, pids={"limit": 33})
    shim.call("Resume", id="limited")
    assert _limit(shim, "cpu", "cpu.cfs_quota_us") == 30000
    assert _limit(shim, "cpu", "cpu.cfs_period_us") == 50000
    assert _limit(shim, "cpuset", "cpuset.cpus") == 0
    assert _limit(shim, "memory", "memory.limit_in_bytes") == 48 * MIB
    assert _limit(shim, "memory", "memory.soft_limit_in_bytes") == 24 * MIB
    assert _limit(shim, "memory", "memory.memsw.limit_in_bytes") == 96 * MIB
    assert _limit(shim, "pids", "pids.max") == 33
    assert _limit(shim, "cpu", "cpu.shares") == 512  # what is not named stays
    shim.call("Kill", id="limited", signal=9)
    finish(shim, "limited")


def _change(shim: Shim, **resources: object) -> None:
    url = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
    value = json.dumps(resources).encode()
    notes = {"why": "a test"}
    shim.call(
        "Update", id="limited", resources={"type_url": url, "value": value}, annotations=notes
    )


def _limit(shim: Shim, controller: str, file: str) -> int:
    return int(Path("/sys/fs/cgroup", controller, shim.mark, "limited", file).read_text())
