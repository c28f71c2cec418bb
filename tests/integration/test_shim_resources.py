"""Limits, figures and the out-of-memory killer, on the cgroups of real containers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.shims import Fifos, Shim, Status, eventually, running

from cradled.api import cgroups_v1_pb2, cgroups_v2_pb2

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

UNIFIED = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
MIB = 1 << 20


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shim]:
    with running(tmp_path_factory.mktemp("shim")) as shim:
        yield shim


def metrics(shim: Shim, id: str) -> Any:
    stats = shim.call("Stats", id=id).stats
    if UNIFIED:
        assert stats.type_url == "io.containerd.cgroups.v2.Metrics"
        return cgroups_v2_pb2.Metrics.FromString(stats.value)
    assert stats.type_url == "io.containerd.cgroups.v1.Metrics"
    return cgroups_v1_pb2.Metrics.FromString(stats.value)


def group(shim: Shim, id: str, controller: str) -> Path:
    root = Path("/sys/fs/cgroup") / ("" if UNIFIED else controller)
    lines = Path(f"/proc/{shim.state(id).pid}/cgroup").read_text().splitlines()
    wanted = "" if UNIFIED else controller
    path = next(line.split(":")[2] for line in lines if wanted in line.split(":")[1].split(","))
    return root / path.lstrip("/")


def finish(shim: Shim, id: str) -> None:
    shim.call("Kill", id=id, signal=9)
    shim.wait(id)
    shim.call("Delete", id=id)


def number(path: Path) -> int:
    return int(path.read_text())


@pytest.mark.skipif(UNIFIED, reason="the host has no legacy hierarchies")
def test_legacy_figures(shim: Shim) -> None:
    resources = {
        "memory": {"limit": 64 * MIB},
        "pids": {"limit": 77},
        "cpu": {"quota": 20000, "period": 100000},
    }
    script = "dd if=/dev/zero of=/tmp/x bs=1M count=5; i=0; while :; do i=$((i+1)); done"
    shim.create("v1", "/bin/sh", "-c", script, spec={"resources": resources})
    shim.call("Start", id="v1")
    eventually(lambda: metrics(shim, "v1").cpu.throttling.throttled_periods)
    before, found = group(shim, "v1", "cpuacct"), metrics(shim, "v1")
    assert found.pids.limit == 77
    assert found.pids.current >= 1
    assert found.memory.usage.limit == 64 * MIB
    assert found.memory.usage.usage >= 5 * MIB > 0
    assert found.memory.usage.max >= found.memory.usage.usage
    assert found.memory.hierarchical_memory_limit == 64 * MIB
    assert found.memory.cache >= 5 * MIB
    assert found.memory.total_cache == found.memory.cache
    assert found.memory.pg_fault > 0
    assert found.memory.HasField("swap") == (group(shim, "v1", "memory") /
                                             "memory.memsw.usage_in_bytes").exists()  # fmt: skip
    assert 0 < found.cpu.usage.total <= number(before / "cpuacct.usage")
    assert found.cpu.usage.user % 10_000_000 == 0
    assert found.cpu.usage.user + found.cpu.usage.kernel > 0
    assert sum(found.cpu.usage.per_cpu) > 0
    assert len(found.cpu.usage.per_cpu) == len(
        (before / "cpuacct.usage_percpu").read_text().split()
    )
    assert found.cpu.throttling.periods >= found.cpu.throttling.throttled_periods
    assert found.HasField("memory_oom_control")
    assert found.HasField("blkio")
    finish(shim, "v1")


@pytest.mark.skipif(UNIFIED, reason="the host has no legacy hierarchies")
def test_every_legacy_memory_line_has_its_field(shim: Shim) -> None:
    shim.create("lines", "/bin/sh", "-c", "dd if=/dev/zero of=/tmp/x bs=1M count=3; sleep 1000")
    shim.call("Start", id="lines")
    eventually(lambda: metrics(shim, "lines").memory.cache >= 3 * MIB)
    text = (group(shim, "lines", "memory") / "memory.stat").read_text()
    lines = dict(line.split() for line in text.splitlines())
    found = metrics(shim, "lines").memory
    names = {
        "pgpgin": "pg_pg_in", "pgpgout": "pg_pg_out", "pgfault": "pg_fault",
        "pgmajfault": "pg_maj_fault", "hierarchical_memsw_limit": "hierarchical_swap_limit",
    }  # fmt: skip
    checked = 0
    for key, value in lines.items():
        total = key.startswith("total_")
        name = names.get(key.removeprefix("total_"), key.removeprefix("total_"))
        name = "total_" + name if total else name
        if isinstance(getattr(found, name, None), int):
            assert getattr(found, name) == int(value), key
            checked += 1
    assert checked >= 25
    finish(shim, "lines")


@pytest.mark.skipif(not UNIFIED, reason="the host has legacy hierarchies")
def test_unified_figures(shim: Shim) -> None:
    resources = {"memory": {"limit": 64 * MIB}, "pids": {"limit": 77}}
    shim.create("v2", "/bin/sh", "-c", "dd if=/dev/zero of=/tmp/x bs=1M count=5; sleep 1000",
                spec={"resources": resources})  # fmt: skip
    shim.call("Start", id="v2")
    eventually(lambda: metrics(shim, "v2").memory.file >= 5 * MIB)
    found = metrics(shim, "v2")
    assert (found.pids.limit, found.memory.usage_limit) == (77, 64 * MIB)
    assert found.cpu.usage_usec > 0
    assert found.HasField("memory_events")
    finish(shim, "v2")


def test_update(shim: Shim) -> None:
    shim.create("upd", "/bin/sleep", "1000", spec={"resources": {"pids": {"limit": 50}}})
    shim.call("Start", id="upd")
    resources = {"pids": {"limit": 99}, "memory": {"limit": 80 * MIB}}
    url = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
    value = json.dumps(resources).encode()
    shim.call("Update", id="upd", resources={"type_url": url, "value": value})
    found = metrics(shim, "upd")
    assert found.pids.limit == 99
    limit = found.memory.usage_limit if UNIFIED else found.memory.usage.limit
    assert limit == 80 * MIB
    with pytest.raises(Status, match="OCI runtime update failed: "):
        shim.call("Update", id="upd", resources={"type_url": url, "value": b"{"})
    with pytest.raises(Status, match="no resources to update"):
        shim.call("Update", id="upd")
    finish(shim, "upd")


def test_figures_after_the_end(shim: Shim) -> None:
    shim.create("gone", "/bin/true")
    shim.call("Start", id="gone")
    shim.wait("gone")
    metrics(shim, "gone")
    for controller in ("",) if UNIFIED else ("devices", "memory"):
        for path in Path("/sys/fs/cgroup", controller, shim.mark).glob("gone"):
            path.rmdir()
    with pytest.raises(Status, match="cgroup does not exist") as caught:
        shim.call("Stats", id="gone")
    assert caught.value.code == 5
    assert shim.call("Pids", id="gone").processes == []
    shim.call("Delete", id="gone")


def test_out_of_memory(shim: Shim) -> None:
    resources = {"memory": {"limit": 16 * MIB, "swap": 16 * MIB}}
    # tail keeps a line without an end in memory.
    script = "tail /dev/zero; echo $? > /status; sleep 1000"
    shim.create("oom", "/bin/sh", "-c", script, spec={"resources": resources})
    shim.call("Start", id="oom")
    assert shim.ear.wait("oom").container_id == "oom"
    status = shim.bundles / "oom" / "rootfs" / "status"
    eventually(lambda: status.exists() and status.read_text() == "137\n")
    assert shim.state("oom").status == 2
    if not UNIFIED:
        eventually(lambda: metrics(shim, "oom").memory_oom_control.oom_kill == 1)
    finish(shim, "oom")
    eventually(lambda: "delete" in shim.ear.topics()[-1:])
    assert shim.ear.topics().count("oom") == 1


def test_pause_freezes(shim: Shim, tmp_path: Path) -> None:
    fifos = Fifos(tmp_path / "fifos", "stdout")
    shim.create("pause", "/bin/sh", "-c", "while :; do echo tick; sleep 0.01; done",
                stdout=fifos.paths["stdout"])  # fmt: skip
    shim.call("Start", id="pause")
    fifos.read(until=b"tick\ntick\n")
    shim.call("Pause", id="pause")
    state = group(shim, "pause", "freezer") / ("cgroup.freeze" if UNIFIED else "freezer.state")
    assert state.read_text().strip() in ("1", "FROZEN")
    shim.call("Resume", id="pause")
    fifos.read(until=b"tick\ntick\n")
    finish(shim, "pause")
    fifos.close()
    assert [t for t in shim.ear.topics() if t in ("paused", "resumed")] == ["paused", "resumed"]
