"""Pure. What a shim measured of a container, as metrics with the names that the original has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from cradled.api import cgroups_v1_pb2, cgroups_v2_pb2
from cradled.core.values import AnyValue


class Sample(NamedTuple):
    """``labels`` are those beside container, namespace and runtime."""

    name: str
    help: str
    value: int
    labels: Mapping[str, str] = MappingProxyType({})


def samples(measured: AnyValue) -> Iterable[Sample]:
    """Nothing for a kind of measurement that is not known here.

    Raises google.protobuf.message.DecodeError for one that cannot be read.
    """
    kind = measured.type_url.rpartition("/")[2]
    if kind == cgroups_v1_pb2.Metrics.DESCRIPTOR.full_name:
        return _v1(cgroups_v1_pb2.Metrics.FromString(measured.value))
    if kind == cgroups_v2_pb2.Metrics.DESCRIPTOR.full_name:
        return _v2(cgroups_v2_pb2.Metrics.FromString(measured.value))
    return ()


_PAGES = {
    "pgpgin": "pg_pg_in",
    "pgpgout": "pg_pg_out",
    "pgfault": "pg_fault",
    "pgmajfault": "pg_maj_fault",
}
_V1_COMMON = """
    cache rss rss_huge mapped_file dirty writeback pgpgin pgpgout pgfault pgmajfault
    inactive_anon active_anon inactive_file active_file unevictable
""".split()  # noqa: SIM905 - a list to read
_V1_MEMORY = {
    **{name: _PAGES.get(name, name) for name in _V1_COMMON},
    **{f"total_{name}": f"total_{_PAGES.get(name, name)}" for name in _V1_COMMON},
    "hierarchical_memory_limit": "hierarchical_memory_limit",
    "hierarchical_memsw_limit": "hierarchical_swap_limit",
}
"""Of memory.stat: the metric's name, the message's field."""

_V1_ENTRIES = {"usage": "usage", "swap": "swap", "kernel": "kernel", "kerneltcp": "kernel_tcp"}
_V1_BLKIO = {
    "io_merged_recursive": "total",
    "io_queued_recursive": "total",
    "io_service_bytes_recursive": "bytes",
    "io_service_time_recursive": "total",
    "io_serviced_recursive": "total",
    "io_time_recursive": "total",
    "sectors_recursive": "total",
}
_V2_MEMORY = """
    usage usage_limit swap_usage swap_limit file_mapped file_dirty file_writeback pgactivate
    pgdeactivate pgfault pgmajfault pglazyfree pgrefill pglazyfreed pgscan pgsteal inactive_anon
    active_anon inactive_file active_file unevictable anon file kernel_stack slab sock shmem
    anon_thp slab_reclaimable slab_unreclaimable workingset_refault workingset_activate
    workingset_nodereclaim thp_fault_alloc thp_collapse_alloc
""".split()  # noqa: SIM905 - a list to read
_V2_CPU = {
    "usage_usec": "microseconds",
    "user_usec": "microseconds",
    "system_usec": "microseconds",
    "nr_periods": "total",
    "nr_throttled": "total",
    "throttled_usec": "microseconds",
}
_V2_IO = {"rbytes": "bytes", "wbytes": "bytes", "rios": "total", "wios": "total"}


def _v1(measured: Any) -> Iterator[Sample]:
    if measured.HasField("cpu"):
        yield from _v1_cpu(measured.cpu)
    if measured.HasField("memory"):
        yield from _v1_memory(measured.memory)
    if measured.HasField("memory_oom_control"):
        killed = measured.memory_oom_control.oom_kill
        yield Sample("container_memory_oom_total", "Kills for want of memory", killed)
    yield from _pids(measured)
    for page in measured.hugetlb:
        labels = {"page": page.pagesize}
        for name, unit in (("usage", "bytes"), ("failcnt", "total"), ("max", "bytes")):
            value = getattr(page, name)
            yield Sample(f"container_hugetlb_{name}_{unit}", f"hugetlb: {name}", value, labels)
    for field, unit in _V1_BLKIO.items():
        for entry in getattr(measured.blkio, field):
            yield Sample(
                f"container_blkio_{field}_{unit}",
                f"blkio: {field}",
                entry.value,
                {"op": entry.op, "device": entry.device, **_numbers(entry)},
            )


def _v1_cpu(cpu: Any) -> Iterator[Sample]:
    for name in ("total", "kernel", "user"):
        help = f"Processor time: {name}"
        yield Sample(f"container_cpu_{name}_nanoseconds", help, getattr(cpu.usage, name))
    for number, value in enumerate(cpu.usage.per_cpu):
        labels = {"cpu": str(number)}
        yield Sample("container_per_cpu_nanoseconds", "Time of each processor", value, labels)
    throttling = cpu.throttling
    yield Sample("container_cpu_throttle_periods_total", "Periods", throttling.periods)
    yield Sample(
        "container_cpu_throttled_periods_total",
        "Periods in which it was held back",
        throttling.throttled_periods,
    )
    yield Sample(
        "container_cpu_throttled_time_nanoseconds",
        "Time for which it was held back",
        throttling.throttled_time,
    )


def _v1_memory(memory: Any) -> Iterator[Sample]:
    for name, field in _V1_MEMORY.items():
        help = f"memory.stat: {name}"
        yield Sample(f"container_memory_{name}_bytes", help, getattr(memory, field))
    for name, field in _V1_ENTRIES.items():
        if not memory.HasField(field):
            continue
        entry = getattr(memory, field)
        for what in ("usage", "limit", "max", "failcnt"):
            unit = "total" if what == "failcnt" else "bytes"
            help = f"Memory, {name}: {what}"
            yield Sample(f"container_memory_{name}_{what}_{unit}", help, getattr(entry, what))


def _v2(measured: Any) -> Iterator[Sample]:
    if measured.HasField("cpu"):
        for name, unit in _V2_CPU.items():
            value = getattr(measured.cpu, name)
            yield Sample(f"container_cpu_{name}_{unit}", f"cpu.stat: {name}", value)
    if measured.HasField("memory"):
        for name in _V2_MEMORY:
            value = getattr(measured.memory, name)
            yield Sample(f"container_memory_{name}_bytes", f"Memory: {name}", value)
    if measured.HasField("memory_events"):
        oom = measured.memory_events.oom
        yield Sample("container_memory_oom_total", "Times that memory ran out", oom)
    yield from _pids(measured)
    for entry in measured.io.usage:
        for name, unit in _V2_IO.items():
            value = getattr(entry, name)
            yield Sample(f"container_io_{name}_{unit}", f"io.stat: {name}", value, _numbers(entry))


def _pids(measured: Any) -> Iterator[Sample]:
    if measured.HasField("pids"):
        yield Sample("container_pids_current", "Processes", measured.pids.current)
        yield Sample("container_pids_limit", "Processes allowed", measured.pids.limit)


def _numbers(entry: Any) -> dict[str, str]:
    return {"major": str(entry.major), "minor": str(entry.minor)}
