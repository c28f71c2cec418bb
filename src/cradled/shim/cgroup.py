"""Blocking. The figures the kernel keeps about a container's cgroup, as metrics messages.

A file that the kernel does not have leaves its fields at zero; ``max`` is the largest number in
the unified format and zero in the legacy one, as clients expect.
"""

from __future__ import annotations

import os

from cradled.linux.cgroup import NO_LIMIT, assignments, listed, number, table, text
from cradled.shim import messages as m

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any, TypeVar

    from cradled.linux.cgroup import Cgroup
    from cradled.ttrpc.codec import Message

    M = TypeVar("M", bound=Message)

_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_MAX_UINT32 = 0xFFFFFFFF

# Lines of the legacy memory.stat whose fields have other names.
_LEGACY_MEMORY = {
    "pgpgin": "pg_pg_in",
    "pgpgout": "pg_pg_out",
    "pgfault": "pg_fault",
    "pgmajfault": "pg_maj_fault",
    "hierarchical_memsw_limit": "hierarchical_swap_limit",
    "total_pgpgin": "total_pg_pg_in",
    "total_pgpgout": "total_pg_pg_out",
    "total_pgfault": "total_pg_fault",
    "total_pgmajfault": "total_pg_maj_fault",
}
_LEGACY_ENTRIES = {"usage": "", "swap": ".memsw", "kernel": ".kmem", "kernel_tcp": ".kmem.tcp"}
_LEGACY_ENTRY = {"limit": "limit_in_bytes", "usage": "usage_in_bytes", "max": "max_usage_in_bytes",
                 "failcnt": "failcnt"}  # fmt: skip
_BLKIO = {name: name for _, (name, _, _) in m.V1BlkIOStat.FIELDS.items()}
_BLKIO["io_time_recursive"] = "time_recursive"
# Which I/O scheduler keeps a count depends on the kernel; the throttling layer always does.
_BLKIO_KEEPERS = ("", "bfq.", "throttle.")

_UNIFIED_MEMORY = {
    "usage": "memory.current",
    "usage_limit": "memory.max",
    "max_usage": "memory.peak",
    "swap_usage": "memory.swap.current",
    "swap_limit": "memory.swap.max",
    "swap_max_usage": "memory.swap.peak",
}


def metrics(group: Cgroup) -> m.V1Metrics | m.V2Metrics:
    """Everything the kernel tells about a group."""
    return _unified(group.directory("")) if group.unified else _legacy(group)


def _legacy(group: Cgroup) -> m.V1Metrics:
    memory, pids, blkio = (group.directory(name) for name in ("memory", "pids", "blkio"))
    oom = table(f"{memory}/memory.oom_control")
    return m.V1Metrics(
        hugetlb=list(_legacy_hugetlb(group.directory("hugetlb"))),
        pids=_legacy_pids(pids) if pids else None,
        cpu=_legacy_cpu(group.directory("cpu"), group.directory("cpuacct")),
        memory=_legacy_memory(memory) if memory else None,
        blkio=_legacy_blkio(blkio) if blkio else None,
        rdma=_rdma(group.directory("rdma"), m.V1RdmaStat, m.V1RdmaEntry),
        memory_oom_control=_filled(m.V1MemoryOomControl(), oom) if oom else None,
    )


def _unified(directory: str) -> m.V2Metrics:
    events = table(f"{directory}/memory.events")
    cpu = _filled(m.V2CPUStat(), table(f"{directory}/cpu.stat"))
    cpu.psi = _pressure(f"{directory}/cpu.pressure")
    memory = _filled(m.V2MemoryStat(), _whole(table(f"{directory}/memory.stat")))
    _filled(memory, _numbers(f"{directory}/", _UNIFIED_MEMORY))
    memory.psi = _pressure(f"{directory}/memory.pressure")
    return m.V2Metrics(
        pids=m.V2PidsStat(**_numbers(f"{directory}/pids.", {"current": "current", "limit": "max"})),
        cpu=cpu,
        memory=memory,
        rdma=_rdma(directory, m.V2RdmaStat, m.V2RdmaEntry),
        io=_unified_io(directory),
        hugetlb=list(_unified_hugetlb(directory)),
        memory_events=_filled(m.V2MemoryEvents(), events) if events else None,
    )


def _whole(lines: dict[str, int]) -> dict[str, int]:
    """Add what older kernels counted as one (since 5.9 they tell two kinds of pages apart)."""
    for key in ("workingset_refault", "workingset_activate"):
        if f"{key}_anon" in lines:
            lines.setdefault(key, lines[f"{key}_anon"] + lines.get(f"{key}_file", 0))
    return lines


def _legacy_pids(directory: str) -> m.V1PidsStat:
    limit = number(f"{directory}/pids.max")
    current = number(f"{directory}/pids.current")
    return m.V1PidsStat(current=current, limit=0 if limit == NO_LIMIT else limit)


def _legacy_cpu(cpu: str, cpuacct: str) -> m.V1CPUStat:
    throttling = table(f"{cpu}/cpu.stat")
    ticks = table(f"{cpuacct}/cpuacct.stat")
    usage = m.V1CPUUsage(
        total=number(f"{cpuacct}/cpuacct.usage"),
        kernel=ticks.get("system", 0) * _TICK,
        user=ticks.get("user", 0) * _TICK,
        per_cpu=[int(word) for word in text(f"{cpuacct}/cpuacct.usage_percpu").split()],
    )
    throttle = m.V1Throttle(
        periods=throttling.get("nr_periods", 0),
        throttled_periods=throttling.get("nr_throttled", 0),
        throttled_time=throttling.get("throttled_time", 0),
    )
    return m.V1CPUStat(usage=usage, throttling=throttle)


def _legacy_memory(directory: str) -> m.V1MemoryStat:
    lines = table(f"{directory}/memory.stat")
    values = {_LEGACY_MEMORY.get(key, key): value for key, value in lines.items()}
    stat = _filled(m.V1MemoryStat(), values)
    for name, part in _LEGACY_ENTRIES.items():
        prefix = f"{directory}/memory{part}."
        if os.path.exists(prefix + "usage_in_bytes"):
            setattr(stat, name, m.V1MemoryEntry(**_numbers(prefix, _LEGACY_ENTRY)))
    return stat


def _legacy_hugetlb(directory: str) -> Iterator[m.V1HugetlbStat]:
    files = {key: file for key, file in _LEGACY_ENTRY.items() if key != "limit"}
    for size, prefix in _hugepages(directory, ".usage_in_bytes"):
        yield m.V1HugetlbStat(pagesize=size, **_numbers(prefix + ".", files))


def _legacy_blkio(directory: str) -> m.V1BlkIOStat:
    stat = m.V1BlkIOStat()
    there = set(listed(directory))
    names: dict[str, str] = {}
    for field, file in _BLKIO.items():
        for keeper in _BLKIO_KEEPERS:
            name = f"blkio.{keeper}{file}"
            lines = text(f"{directory}/{name}") if name in there else ""
            if ":" in lines:
                names = names or _block_devices()
                setattr(stat, field, list(_blkio_entries(lines, names)))
                break
    return stat


def _blkio_entries(lines: str, names: dict[str, str]) -> Iterator[m.V1BlkIOEntry]:
    """Lines ``8:0 Read 1`` or ``8:0 1``; the sums at the end have no device."""
    for line in lines.split("\n"):
        device, *operation, value = line.split() or ("", "0")
        major, colon, minor = device.partition(":")
        if colon:
            yield m.V1BlkIOEntry(
                op=operation[0] if operation else "", device=names.get(device, ""),
                major=int(major), minor=int(minor), value=int(value),
            )  # fmt: skip


def _block_devices() -> dict[str, str]:
    rows = (line.split(None, 3) for line in text("/proc/diskstats").split("\n"))
    return {f"{row[0]}:{row[1]}": f"/dev/{row[2]}" for row in rows if len(row) > 3}


def _unified_io(directory: str) -> m.V2IOStat:
    usage = []
    for line in text(f"{directory}/io.stat").split("\n"):
        device, *words = line.split() or ("",)
        major, colon, minor = device.partition(":")
        if colon:
            entry = m.V2IOEntry(major=int(major), minor=int(minor))
            usage.append(_filled(entry, assignments(words)))
    return m.V2IOStat(usage=usage, psi=_pressure(f"{directory}/io.pressure"))


def _unified_hugetlb(directory: str) -> Iterator[m.V2HugeTlbStat]:
    for size, prefix in _hugepages(directory, ".current"):
        figures = _numbers(prefix + ".", {"current": "current", "max": "max"})
        failures = table(prefix + ".events").get("max", 0)
        yield m.V2HugeTlbStat(pagesize=size, failcnt=failures, **figures)


def _pressure(path: str) -> m.V2PSIStats | None:
    """Lines ``some avg10=0.00 avg60=0.00 avg300=0.00 total=0``."""
    stats = m.V2PSIStats()
    for line in text(path).split("\n"):
        kind, *words = line.split() or ("",)
        if kind in ("some", "full"):
            values = dict(word.split("=", 1) for word in words)
            total = int(values.pop("total"))
            averages = {key: float(value) for key, value in values.items()}
            setattr(stats, kind, m.V2PSIData(total=total, **averages))
    return stats if stats.some or stats.full else None


def _rdma(directory: str, stat: Any, entry: Any) -> Any:
    """Lines ``mlx4_0 hca_handle=2 hca_object=2000``; either version of the messages."""
    if not directory or not os.path.exists(f"{directory}/rdma.current"):
        return None
    lists = []
    for file in ("rdma.current", "rdma.max"):
        entries = []
        for words in filter(None, map(str.split, text(f"{directory}/{file}").split("\n"))):
            counts = assignments(words[1:])
            handles, objects = (counts.get(key, 0) for key in ("hca_handle", "hca_object"))
            limited = {"hca_handles": min(handles, _MAX_UINT32),
                       "hca_objects": min(objects, _MAX_UINT32)}  # fmt: skip
            entries.append(entry(device=words[0], **limited))
        lists.append(entries)
    return stat(current=lists[0], limit=lists[1])


def _hugepages(directory: str, suffix: str) -> Iterator[tuple[str, str]]:
    """(page size, path up to it) of each size that a group accounts for."""
    for name in sorted(listed(directory)) if directory else ():
        size = name.removeprefix("hugetlb.").removesuffix(suffix)
        if name == f"hugetlb.{size}{suffix}" and "." not in size:
            yield size, f"{directory}/hugetlb.{size}"


def _numbers(prefix: str, files: Mapping[str, str]) -> dict[str, int]:
    """The numbers in files, by field."""
    return {field: number(prefix + file) for field, file in files.items()}


def _filled(message: M, values: Mapping[str, int]) -> M:
    """Set the numbers that have a value of their name."""
    for name, _, inner in message.FIELDS.values():
        if name in values and inner is None:
            setattr(message, name, values[name])
    return message
