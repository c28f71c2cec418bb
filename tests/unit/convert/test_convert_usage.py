"""What shims measure, of either version of control groups, in the same words."""

from cradled.api import cgroups_v1_pb2 as v1
from cradled.api import cgroups_v2_pb2 as v2
from cradled.api import runc_options_pb2
from cradled.convert import usage
from cradled.convert.tasks import exec_id
from cradled.core.usage import Usage
from cradled.core.values import AnyValue


def test_version_1() -> None:
    found = v1.Metrics()
    found.cpu.usage.total = 7_000
    found.memory.usage.usage, found.memory.usage.limit = 900, 1 << 30
    found.memory.total_inactive_file = 100
    found.pids.current, found.pids.limit = 3, 20
    for op, value in (("Read", 5), ("Write", 6), ("Read", 10), ("Sync", 99)):
        found.blkio.io_service_bytes_recursive.add(op=op, value=value)
    value = AnyValue("io.containerd.cgroups.v1.Metrics", found.SerializeToString())
    assert usage.from_any(value, 42) == Usage(42, 7_000, 800, 1 << 30, 3, 20, 15, 6)


def test_version_2() -> None:
    found = v2.Metrics()
    found.cpu.usage_usec = 7
    found.memory.usage, found.memory.inactive_file = 900, 1_000
    found.memory.usage_limit = (1 << 64) - 1
    found.pids.current = 3
    found.io.usage.add(rbytes=5, wbytes=6)
    found.io.usage.add(rbytes=10, wbytes=20)
    value = AnyValue("io.containerd.cgroups.v2.Metrics", found.SerializeToString())
    assert usage.from_any(value, 42) == Usage(42, 7_000, 0, 0, 3, 0, 15, 26)


def test_an_unknown_kind() -> None:
    assert usage.from_any(AnyValue("what.Ever", b"\xff"), 42) == Usage(42)


def test_which_exec_a_process_is() -> None:
    details = runc_options_pb2.ProcessDetails(exec_id="e1").SerializeToString()
    assert exec_id(AnyValue("containerd.runc.v1.ProcessDetails", details)) == "e1"
    assert exec_id(AnyValue("what.Ever", details)) == ""
    assert exec_id(None) == ""
