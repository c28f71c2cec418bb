"""Pure. What shims measure of containers, of either version of control groups, as ``Usage``."""

from __future__ import annotations

from typing import Any

from cradled.api import cgroups_v1_pb2, cgroups_v2_pb2
from cradled.core.usage import Usage
from cradled.core.values import AnyValue

_UNLIMITED = 1 << 62  # the kernel's own "none" is the largest number less a page


def from_any(measured: AnyValue, time: int) -> Usage:
    """All zero for a kind of measurement that is not known here."""
    kind = measured.type_url.rpartition("/")[2]
    if kind == cgroups_v1_pb2.Metrics.DESCRIPTOR.full_name:
        return _v1(cgroups_v1_pb2.Metrics.FromString(measured.value), time)
    if kind == cgroups_v2_pb2.Metrics.DESCRIPTOR.full_name:
        return _v2(cgroups_v2_pb2.Metrics.FromString(measured.value), time)
    return Usage(time)


def _v1(found: Any, time: int) -> Usage:
    moved = {"read": 0, "write": 0}
    for entry in found.blkio.io_service_bytes_recursive:
        if entry.op.lower() in moved:
            moved[entry.op.lower()] += entry.value
    memory = found.memory
    return Usage(
        time,
        cpu=found.cpu.usage.total,
        memory=max(memory.usage.usage - memory.total_inactive_file, 0),
        memory_limit=_limit(memory.usage.limit),
        pids=found.pids.current,
        pids_limit=_limit(found.pids.limit),
        read=moved["read"],
        written=moved["write"],
    )


def _v2(found: Any, time: int) -> Usage:
    memory = found.memory
    return Usage(
        time,
        cpu=found.cpu.usage_usec * 1000,
        memory=max(memory.usage - memory.inactive_file, 0),
        memory_limit=_limit(memory.usage_limit),
        pids=found.pids.current,
        pids_limit=_limit(found.pids.limit),
        read=sum(entry.rbytes for entry in found.io.usage),
        written=sum(entry.wbytes for entry in found.io.usage),
    )


def _limit(value: int) -> int:
    return 0 if value >= _UNLIMITED else value
