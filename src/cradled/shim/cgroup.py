"""Blocking. The figures the kernel keeps about a container's cgroup, as metrics messages.

A file that the kernel does not have leaves its fields at zero; ``max`` is the largest number in
the unified format and zero in the legacy one, as clients expect.
"""

from __future__ import annotations

import os

from cradled.linux.cgroup import read
from cradled.shim import messages as m

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, TypeVar

    from cradled.linux.cgroup import Cgroup
    from cradled.shim.codec import Message

    M = TypeVar("M", bound=Message)

_NO_LIMIT = (1 << 64) - 1
_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")

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
_MEMORY_ENTRIES = {"usage": "", "swap": ".memsw", "kernel": ".kmem", "kernel_tcp": ".kmem.tcp"}
_BLKIO = {
    "io_service_bytes_recursive": "io_service_bytes_recursive",
    "io_serviced_recursive": "io_serviced_recursive",
    "io_queued_recursive": "io_queued_recursive",
    "io_service_time_recursive": "io_service_time_recursive",
    "io_wait_time_recursive": "io_wait_time_recursive",
    "io_merged_recursive": "io_merged_recursive",
    "io_time_recursive": "time_recursive",
    "sectors_recursive": "sectors_recursive",
}
# Which I/O scheduler keeps the count depends on the kernel; the throttling layer always does.
_BLKIO_KEEPERS = ("", "bfq.", "throttle.")


def metrics(group: Cgroup) -> m.V1Metrics | m.V2Metrics:
    """Everything the kernel tells about a group."""
    return unified(group.directory("")) if group.unified else legacy(group)


def legacy(group: Cgroup) -> m.V1Metrics:
    """The figures of a group of the legacy hierarchies."""
    memory = group.directory("memory")
    oom = _table(f"{memory}/memory.oom_control")
    return m.V1Metrics(
        hugetlb=list(_legacy_hugetlb(group.directory("hugetlb"))),
        pids=_legacy_pids(group.directory("pids")),
        cpu=_legacy_cpu(group.directory("cpu"), group.directory("cpuacct")),
        memory=_legacy_memory(memory),
        blkio=_blkio(group.directory("blkio")),
        rdma=_rdma(group.directory("rdma"), m.V1RdmaStat, m.V1RdmaEntry),
        memory_oom_control=_filled(m.V1MemoryOomControl(), oom) if oom else None,
    )


def unified(directory: str) -> m.V2Metrics:
    """The figures of a group of the unified hierarchy."""
    events = _table(f"{directory}/memory.events")
    return m.V2Metrics(
        pids=_unified_pids(directory),
        cpu=_unified_cpu(directory),
        memory=_unified_memory(directory),
        rdma=_rdma(directory, m.V2RdmaStat, m.V2RdmaEntry),
        io=_unified_io(directory),
        hugetlb=list(_unified_hugetlb(directory)),
        memory_events=_filled(m.V2MemoryEvents(), events) if events else None,
    )


def _legacy_pids(directory: str) -> m.V1PidsStat | None:
    if not directory:
        return None
    limit = _number(f"{directory}/pids.max")
    return m.V1PidsStat(
        current=_number(f"{directory}/pids.current"), limit=0 if limit == _NO_LIMIT else limit
    )


def _legacy_cpu(cpu: str, cpuacct: str) -> m.V1CPUStat:
    throttling = _table(f"{cpu}/cpu.stat")
    ticks = _table(f"{cpuacct}/cpuacct.stat")
    return m.V1CPUStat(
        usage=m.V1CPUUsage(
            total=_number(f"{cpuacct}/cpuacct.usage"),
            kernel=ticks.get("system", 0) * _TICK,
            user=ticks.get("user", 0) * _TICK,
            per_cpu=[int(word) for word in _text(f"{cpuacct}/cpuacct.usage_percpu").split()],
        ),
        throttling=m.V1Throttle(
            periods=throttling.get("nr_periods", 0),
            throttled_periods=throttling.get("nr_throttled", 0),
            throttled_time=throttling.get("throttled_time", 0),
        ),
    )


def _legacy_memory(directory: str) -> m.V1MemoryStat | None:
    if not directory:
        return None
    table = _table(f"{directory}/memory.stat")
    stat = _filled(
        m.V1MemoryStat(), {_LEGACY_MEMORY.get(key, key): value for key, value in table.items()}
    )
    for name, part in _MEMORY_ENTRIES.items():
        prefix = f"{directory}/memory{part}."
        if os.path.exists(prefix + "usage_in_bytes"):
            entry = m.V1MemoryEntry(
                limit=_number(prefix + "limit_in_bytes"),
                usage=_number(prefix + "usage_in_bytes"),
                max=_number(prefix + "max_usage_in_bytes"),
                failcnt=_number(prefix + "failcnt"),
            )
            setattr(stat, name, entry)
    return stat


def _legacy_hugetlb(directory: str) -> Iterator[m.V1HugetlbStat]:
    for size, prefix in _hugepages(directory, ".usage_in_bytes"):
        yield m.V1HugetlbStat(
            usage=_number(prefix + ".usage_in_bytes"),
            max=_number(prefix + ".max_usage_in_bytes"),
            failcnt=_number(prefix + ".failcnt"),
            pagesize=size,
        )


def _blkio(directory: str) -> m.V1BlkIOStat | None:
    if not directory:
        return None
    stat = m.V1BlkIOStat()
    names = _block_devices()
    for field, file in _BLKIO.items():
        for keeper in _BLKIO_KEEPERS:
            entries = list(_blkio_entries(_text(f"{directory}/blkio.{keeper}{file}"), names))
            if entries:
                setattr(stat, field, entries)
                break
    return stat


def _blkio_entries(text: str, names: dict[str, str]) -> Iterator[m.V1BlkIOEntry]:
    """Lines ``8:0 Read 1`` or ``8:0 1``; the sums at the end have no device."""
    for line in text.split("\n"):
        device, *operation, value = line.split() or ("", "0")
        major, colon, minor = device.partition(":")
        if colon:
            yield m.V1BlkIOEntry(
                op=operation[0] if operation else "",
                device=names.get(device, ""),
                major=int(major),
                minor=int(minor),
                value=int(value),
            )


def _block_devices() -> dict[str, str]:
    devices = {}
    for line in _text("/proc/diskstats").split("\n"):
        words = line.split(None, 3)
        if len(words) > 3:
            devices[f"{words[0]}:{words[1]}"] = f"/dev/{words[2]}"
    return devices


def _unified_pids(directory: str) -> m.V2PidsStat:
    return m.V2PidsStat(
        current=_number(f"{directory}/pids.current"), limit=_number(f"{directory}/pids.max")
    )


def _unified_cpu(directory: str) -> m.V2CPUStat:
    stat = _filled(m.V2CPUStat(), _table(f"{directory}/cpu.stat"))
    stat.psi = _pressure(f"{directory}/cpu.pressure")
    return stat


def _unified_memory(directory: str) -> m.V2MemoryStat:
    stat = _filled(m.V2MemoryStat(), _table(f"{directory}/memory.stat"))
    stat.usage = _number(f"{directory}/memory.current")
    stat.usage_limit = _number(f"{directory}/memory.max")
    stat.max_usage = _number(f"{directory}/memory.peak")
    stat.swap_usage = _number(f"{directory}/memory.swap.current")
    stat.swap_limit = _number(f"{directory}/memory.swap.max")
    stat.swap_max_usage = _number(f"{directory}/memory.swap.peak")
    stat.psi = _pressure(f"{directory}/memory.pressure")
    return stat


def _unified_io(directory: str) -> m.V2IOStat:
    usage = []
    for line in _text(f"{directory}/io.stat").split("\n"):
        device, *words = line.split() or ("",)
        major, colon, minor = device.partition(":")
        if colon:
            entry = m.V2IOEntry(major=int(major), minor=int(minor))
            usage.append(_filled(entry, _assignments(words)))
    return m.V2IOStat(usage=usage, psi=_pressure(f"{directory}/io.pressure"))


def _unified_hugetlb(directory: str) -> Iterator[m.V2HugeTlbStat]:
    for size, prefix in _hugepages(directory, ".current"):
        yield m.V2HugeTlbStat(
            current=_number(prefix + ".current"),
            max=_number(prefix + ".max"),
            pagesize=size,
            failcnt=_table(prefix + ".events").get("max", 0),
        )


def _pressure(path: str) -> m.V2PSIStats | None:
    """Lines ``some avg10=0.00 avg60=0.00 avg300=0.00 total=0``."""
    stats = m.V2PSIStats()
    for line in _text(path).split("\n"):
        kind, *words = line.split() or ("",)
        if kind in ("some", "full"):
            values = dict(word.split("=", 1) for word in words)
            data = m.V2PSIData(
                avg10=float(values["avg10"]),
                avg60=float(values["avg60"]),
                avg300=float(values["avg300"]),
                total=int(values["total"]),
            )
            setattr(stats, kind, data)
    return stats if stats.some or stats.full else None


def _rdma(directory: str, stat: Any, entry: Any) -> Any:
    """Lines ``mlx4_0 hca_handle=2 hca_object=2000``; either version of the messages."""
    if not directory or not os.path.exists(f"{directory}/rdma.current"):
        return None
    lists = []
    for file in ("rdma.current", "rdma.max"):
        lines = (line.split() for line in _text(f"{directory}/{file}").split("\n"))
        values = [(words[0], _assignments(words[1:])) for words in lines if words]
        lists.append(
            [
                entry(
                    device=device,
                    hca_handles=min(counts.get("hca_handle", 0), 0xFFFFFFFF),
                    hca_objects=min(counts.get("hca_object", 0), 0xFFFFFFFF),
                )
                for device, counts in values
            ]
        )
    return stat(current=lists[0], limit=lists[1])


def _hugepages(directory: str, suffix: str) -> Iterator[tuple[str, str]]:
    """(page size, path up to it) of each size that a group accounts for."""
    if not directory:
        return
    for name in sorted(os.listdir(directory)):
        size = name.removeprefix("hugetlb.").removesuffix(suffix)
        if name == f"hugetlb.{size}{suffix}" and "." not in size:
            yield size, f"{directory}/hugetlb.{size}"


def _filled(message: M, values: dict[str, int]) -> M:
    """Set the numbers that have a value of their name."""
    for name, _, inner in message.FIELDS.values():
        if name in values and inner is None:
            setattr(message, name, values[name])
    return message


def _table(path: str) -> dict[str, int]:
    """A file of lines ``key value``."""
    pairs = (line.split() for line in _text(path).split("\n"))
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}


def _assignments(words: list[str]) -> dict[str, int]:
    pairs = (word.partition("=") for word in words)
    return {key: _NO_LIMIT if value == "max" else int(value) for key, _, value in pairs}


def _number(path: str) -> int:
    text = _text(path).strip()
    return _NO_LIMIT if text == "max" else int(text or 0)


def _text(path: str) -> str:
    try:
        return read(path)
    except OSError:
        return ""
