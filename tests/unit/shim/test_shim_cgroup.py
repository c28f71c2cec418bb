"""Figures from files as the kernel writes them, for hierarchies this host may not have."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from cradled.linux import cgroup as linux_cgroup
from cradled.linux.cgroup import Cgroup
from cradled.shim import cgroup

MAX = 2**64 - 1


def write(directory: Path, files: dict[str, str]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name).write_text(text)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(linux_cgroup, "ROOT", str(tmp_path))
    return tmp_path


def test_unified(root: Path) -> None:
    pressure = (
        "some avg10=1.50 avg60=0.25 avg300=0.00 total=12\n"
        "full avg10=0.50 avg60=0.00 avg300=0.00 total=7\n"
    )
    write(root / "ns" / "c", {
        "pids.current": "3\n", "pids.max": "max\n",
        "cpu.stat": "usage_usec 10\nuser_usec 6\nsystem_usec 4\nnr_periods 1\nnr_throttled 2\n"
                    "throttled_usec 3\nnr_bursts 8\nburst_usec 9\n",
        "cpu.pressure": pressure, "memory.pressure": pressure, "io.pressure": pressure,
        "memory.stat": "anon 1\nfile 2\nkernel_stack 3\nslab 4\npgfault 5\nunknown 6\n"
                       "workingset_refault_anon 7\nworkingset_refault_file 8\n"
                       "workingset_activate 9\n",
        "memory.current": "100\n", "memory.max": "max\n", "memory.peak": "200\n",
        "memory.swap.current": "5\n", "memory.swap.max": "50\n", "memory.swap.peak": "7\n",
        "memory.events": "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\n",
        "io.stat": "8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n7:0 \n",
        "rdma.current": "mlx4_0 hca_handle=2 hca_object=2000\n",
        "rdma.max": "mlx4_0 hca_handle=max hca_object=4000\n",
        "hugetlb.2MB.current": "2097152\n", "hugetlb.2MB.max": "max\n",
        "hugetlb.2MB.events": "max 3\n", "hugetlb.2MB.rsvd.current": "0\n",
    })  # fmt: skip
    group = Cgroup("0::/ns/c\n")
    assert group.unified
    found = cgroup.metrics(group)
    assert found.NAME == "io.containerd.cgroups.v2.Metrics"
    assert (found.pids.current, found.pids.limit) == (3, MAX)
    cpu = found.cpu
    assert (cpu.usage_usec, cpu.user_usec, cpu.system_usec) == (10, 6, 4)
    assert (cpu.nr_periods, cpu.nr_throttled, cpu.throttled_usec) == (1, 2, 3)
    assert (cpu.nr_bursts, cpu.burst_usec) == (8, 9)
    for psi in (cpu.psi, found.memory.psi, found.io.psi):
        assert (psi.some.avg10, psi.some.avg60, psi.some.total) == (1.5, 0.25, 12)
        assert (psi.full.avg10, psi.full.total) == (0.5, 7)
    memory = found.memory
    assert (memory.anon, memory.file, memory.kernel_stack, memory.slab) == (1, 2, 3, 4)
    assert (memory.workingset_refault, memory.workingset_activate) == (15, 9)
    assert (memory.usage, memory.usage_limit, memory.max_usage) == (100, MAX, 200)
    assert (memory.swap_usage, memory.swap_limit, memory.swap_max_usage) == (5, 50, 7)
    events = found.memory_events
    assert (events.low, events.high, events.max, events.oom) == (1, 2, 3, 4)
    assert (events.oom_kill, events.oom_group_kill) == (5, 6)
    (disk, loop) = found.io.usage
    assert (disk.major, disk.minor, disk.rbytes, disk.wbytes) == (8, 16, 1, 2)
    assert (disk.rios, disk.wios, loop.major, loop.rbytes) == (3, 4, 7, 0)
    assert [(e.device, e.hca_handles, e.hca_objects) for e in found.rdma.current] == [
        ("mlx4_0", 2, 2000)
    ]
    assert [(e.hca_handles, e.hca_objects) for e in found.rdma.limit] == [(0xFFFFFFFF, 4000)]
    (huge,) = found.hugetlb
    assert (huge.pagesize, huge.current, huge.max, huge.failcnt) == ("2MB", 2097152, MAX, 3)


def test_unified_without_controllers(root: Path) -> None:
    write(root / "c", {"cgroup.procs": ""})
    found = cgroup.metrics(Cgroup("0::/c\n"))
    assert found.memory_events is None
    assert found.rdma is None
    assert found.cpu.psi is None
    assert (found.io.usage, found.hugetlb) == ([], [])


TEXT = """12:memory:/m
11:cpu,cpuacct:/c
10:blkio:/b
9:hugetlb:/h
8:pids:/p
1:name=systemd:/s
0::/u
"""


def test_legacy(root: Path) -> None:
    write(root / "memory" / "m", {
        "memory.stat": "cache 1\nrss 2\npgpgin 3\nhierarchical_memsw_limit 4\n"
                       "total_pgfault 5\nswap 6\n",
        "memory.usage_in_bytes": "10\n", "memory.max_usage_in_bytes": "20\n",
        "memory.limit_in_bytes": "30\n", "memory.failcnt": "40\n",
        "memory.kmem.tcp.usage_in_bytes": "50\n",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 1\noom_kill 2\n",
    })  # fmt: skip
    write(root / "cpu" / "c", {"cpu.stat": "nr_periods 1\nnr_throttled 2\nthrottled_time 3\n"})
    write(root / "cpuacct" / "c", {
        "cpuacct.usage": "1000\n", "cpuacct.usage_percpu": "400 600 \n",
        "cpuacct.stat": "user 5\nsystem 7\n",
    })  # fmt: skip
    write(root / "blkio" / "b", {
        "blkio.throttle.io_serviced_recursive": "8:0 Read 1\n8:0 Write 2\n8:0 Total 3\nTotal 3\n",
        "blkio.bfq.io_service_bytes_recursive": "254:1 Read 9\nTotal 9\n",
        "blkio.throttle.io_service_bytes_recursive": "254:1 Read 99\nTotal 99\n",
        "blkio.sectors_recursive": "8:0 77\n",
    })  # fmt: skip
    write(root / "hugetlb" / "h", {
        "hugetlb.1GB.usage_in_bytes": "1\n", "hugetlb.1GB.max_usage_in_bytes": "2\n",
        "hugetlb.1GB.failcnt": "3\n", "hugetlb.1GB.rsvd.usage_in_bytes": "9\n",
    })  # fmt: skip
    write(root / "pids" / "p", {"pids.current": "4\n", "pids.max": "max\n"})
    found = cgroup.metrics(Cgroup(TEXT))
    assert found.NAME == "io.containerd.cgroups.v1.Metrics"
    memory = found.memory
    assert (memory.cache, memory.rss, memory.pg_pg_in) == (1, 2, 3)
    assert (memory.hierarchical_swap_limit, memory.total_pg_fault) == (4, 5)
    entry = memory.usage
    assert (entry.usage, entry.max, entry.limit, entry.failcnt) == (10, 20, 30, 40)
    assert (memory.swap, memory.kernel, memory.kernel_tcp.usage) == (None, None, 50)
    oom = found.memory_oom_control
    assert (oom.oom_kill_disable, oom.under_oom, oom.oom_kill) == (0, 1, 2)
    usage = found.cpu.usage
    assert (usage.total, usage.per_cpu) == (1000, [400, 600])
    assert usage.kernel * 5 == usage.user * 7 > 0
    throttling = found.cpu.throttling
    assert (throttling.periods, throttling.throttled_periods, throttling.throttled_time) == (
        1,
        2,
        3,
    )
    serviced = found.blkio.io_serviced_recursive
    assert [(e.op, e.major, e.minor, e.value) for e in serviced] == [
        ("Read", 8, 0, 1), ("Write", 8, 0, 2), ("Total", 8, 0, 3)]  # fmt: skip
    assert [e.value for e in found.blkio.io_service_bytes_recursive] == [9]
    assert [(e.op, e.value) for e in found.blkio.sectors_recursive] == [("", 77)]
    (huge,) = found.hugetlb
    assert (huge.pagesize, huge.usage, huge.max, huge.failcnt) == ("1GB", 1, 2, 3)
    assert (found.pids.current, found.pids.limit) == (4, 0)
    assert found.rdma is None


def test_legacy_without_controllers(root: Path) -> None:
    found = cgroup.metrics(Cgroup("1:name=systemd:/s\n0::/u\n"))
    assert (found.pids, found.memory, found.blkio, found.hugetlb) == (None, None, None, [])


def test_where_groups_are(root: Path) -> None:
    group = Cgroup(TEXT)
    assert not group.unified
    assert group.directory("cpuacct") == f"{root}/cpuacct/c"
    assert group.directory("name=systemd") == f"{root}/systemd/s"
    assert group.directory("freezer") == ""
    assert Cgroup("0::/x\n").directory("memory") == f"{root}/x"
    assert not group.exists()
    write(root / "memory" / "m", {"cgroup.procs": "1\n2\n"})
    write(root / "memory" / "m" / "below", {"cgroup.procs": "3\n"})
    (root / "memory" / "m" / "vanishing").mkdir()
    assert group.exists()
    assert sorted(group.pids()) == [1, 2, 3]


def test_directories_of_a_path(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cpu", "memory", "plain"):
        write(root / name / "g", {"cgroup.procs": ""})
    (root / "pids").mkdir()
    real = os.stat

    def stat(path: str) -> SimpleNamespace:
        """All directories but ``plain`` are mounts."""
        mode, mounted = real(path).st_mode, str(path) not in (str(root), f"{root}/plain")
        return SimpleNamespace(st_mode=mode, st_dev=int(mounted))

    monkeypatch.setattr(linux_cgroup, "os", SimpleNamespace(**{**vars(os), "stat": stat}))
    assert linux_cgroup.directories("/g") == [f"{root}/cpu/g", f"{root}/memory/g"]
    write(root, {"cgroup.controllers": ""})
    assert linux_cgroup.directories("/g") == []
    write(root / "g", {"cgroup.procs": ""})
    assert linux_cgroup.directories("g") == [f"{root}/g"]


def test_thaw(root: Path) -> None:
    write(root / "g", {"cgroup.freeze": "1"})
    Cgroup("0::/g\n").thaw()
    assert (root / "g" / "cgroup.freeze").read_text() == "0"
    write(root / "freezer" / "g", {"freezer.state": "FROZEN"})
    Cgroup("1:freezer:/g\n0::/\n").thaw()
    assert (root / "freezer" / "g" / "freezer.state").read_text() == "THAWED"
