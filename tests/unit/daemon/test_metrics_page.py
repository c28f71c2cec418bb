"""The text format, and the names of containers' metrics."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from prometheus_client.parser import text_string_to_metric_families

from cradled.api import cgroups_v1_pb2 as v1
from cradled.api import cgroups_v2_pb2 as v2
from cradled.core.values import AnyValue
from cradled.daemon.container_metrics import Sample, samples
from cradled.daemon.exposition import Page
from cradled.measures import Histogram

V1 = """
cpu_kernel_nanoseconds cpu_throttle_periods_total cpu_throttled_periods_total
cpu_throttled_time_nanoseconds cpu_total_nanoseconds cpu_user_nanoseconds
memory_active_anon_bytes memory_active_file_bytes memory_cache_bytes memory_dirty_bytes
memory_hierarchical_memory_limit_bytes memory_hierarchical_memsw_limit_bytes
memory_inactive_anon_bytes memory_inactive_file_bytes memory_kernel_failcnt_total
memory_kernel_limit_bytes memory_kernel_max_bytes memory_kernel_usage_bytes
memory_kerneltcp_failcnt_total memory_kerneltcp_limit_bytes memory_kerneltcp_max_bytes
memory_kerneltcp_usage_bytes memory_mapped_file_bytes memory_pgfault_bytes memory_pgmajfault_bytes
memory_pgpgin_bytes memory_pgpgout_bytes memory_rss_bytes memory_rss_huge_bytes
memory_swap_failcnt_total memory_swap_limit_bytes memory_swap_max_bytes memory_swap_usage_bytes
memory_total_active_anon_bytes memory_total_active_file_bytes memory_total_cache_bytes
memory_total_dirty_bytes memory_total_inactive_anon_bytes memory_total_inactive_file_bytes
memory_total_mapped_file_bytes memory_total_pgfault_bytes memory_total_pgmajfault_bytes
memory_total_pgpgin_bytes memory_total_pgpgout_bytes memory_total_rss_bytes
memory_total_rss_huge_bytes memory_total_unevictable_bytes memory_total_writeback_bytes
memory_unevictable_bytes memory_usage_failcnt_total memory_usage_limit_bytes memory_usage_max_bytes
memory_usage_usage_bytes memory_writeback_bytes per_cpu_nanoseconds pids_current pids_limit
""".split()  # noqa: SIM905 - as a containerd of 1.6 tells them of a container
V1_MORE = """
memory_oom_total hugetlb_usage_bytes hugetlb_failcnt_total hugetlb_max_bytes
blkio_io_merged_recursive_total blkio_io_queued_recursive_total
blkio_io_service_bytes_recursive_bytes blkio_io_service_time_recursive_total
blkio_io_serviced_recursive_total blkio_io_time_recursive_total blkio_sectors_recursive_total
""".split()  # noqa: SIM905
V2 = """
cpu_usage_usec_microseconds cpu_user_usec_microseconds cpu_system_usec_microseconds
cpu_nr_periods_total cpu_nr_throttled_total cpu_throttled_usec_microseconds
memory_usage_bytes memory_usage_limit_bytes memory_swap_usage_bytes memory_swap_limit_bytes
memory_file_mapped_bytes memory_file_dirty_bytes memory_file_writeback_bytes
memory_pgactivate_bytes memory_pgdeactivate_bytes memory_pgfault_bytes memory_pgmajfault_bytes
memory_pglazyfree_bytes memory_pgrefill_bytes memory_pglazyfreed_bytes memory_pgscan_bytes
memory_pgsteal_bytes memory_inactive_anon_bytes memory_active_anon_bytes
memory_inactive_file_bytes memory_active_file_bytes memory_unevictable_bytes memory_anon_bytes
memory_file_bytes memory_kernel_stack_bytes memory_slab_bytes memory_sock_bytes memory_shmem_bytes
memory_anon_thp_bytes memory_slab_reclaimable_bytes memory_slab_unreclaimable_bytes
memory_workingset_refault_bytes memory_workingset_activate_bytes
memory_workingset_nodereclaim_bytes memory_thp_fault_alloc_bytes memory_thp_collapse_alloc_bytes
memory_oom_total pids_current pids_limit io_rbytes_bytes io_wbytes_bytes io_rios_total io_wios_total
""".split()  # noqa: SIM905


def measured(message: v1.Metrics | v2.Metrics) -> dict[str, list[Sample]]:
    value = AnyValue(message.DESCRIPTOR.full_name, message.SerializeToString())
    found: dict[str, list[Sample]] = {}
    for sample in samples(value):
        found.setdefault(sample.name.removeprefix("container_"), []).append(sample)
    return found


def entry(value: int) -> v1.BlkIOEntry:
    return v1.BlkIOEntry(op="Read", device="/dev/x", major=8, minor=1, value=value)


def test_cgroups_of_version_1() -> None:
    blkio = {field.name: [entry(n)] for n, field in enumerate(v1.BlkIOStat.DESCRIPTOR.fields)}
    message = v1.Metrics(
        cpu=v1.CPUStat(
            usage=v1.CPUUsage(total=3, kernel=1, user=2, per_cpu=[5, 6]),
            throttling=v1.Throttle(throttled_periods=7),
        ),
        memory=v1.MemoryStat(
            total_pg_maj_fault=11,
            hierarchical_swap_limit=12,
            usage=v1.MemoryEntry(usage=13),
            swap=v1.MemoryEntry(max=14),
            kernel=v1.MemoryEntry(limit=15),
            kernel_tcp=v1.MemoryEntry(failcnt=16),
        ),
        pids=v1.PidsStat(current=17, limit=18),
        hugetlb=[v1.HugetlbStat(pagesize="2MB", usage=19)],
        blkio=v1.BlkIOStat(**blkio),
        memory_oom_control=v1.MemoryOomControl(oom_kill=20),
    )
    found = measured(message)
    assert set(found) == {*V1, *V1_MORE}
    assert [(s.value, s.labels) for s in found["per_cpu_nanoseconds"]] == [
        (5, {"cpu": "0"}),
        (6, {"cpu": "1"}),
    ]
    values = {name: many[0].value for name, many in found.items()}
    assert {
        "cpu_total_nanoseconds": 3,
        "cpu_throttled_periods_total": 7,
        "memory_total_pgmajfault_bytes": 11,
        "memory_hierarchical_memsw_limit_bytes": 12,
        "memory_usage_usage_bytes": 13,
        "memory_swap_max_bytes": 14,
        "memory_kernel_limit_bytes": 15,
        "memory_kerneltcp_failcnt_total": 16,
        "pids_current": 17,
        "pids_limit": 18,
        "hugetlb_usage_bytes": 19,
        "memory_oom_total": 20,
    }.items() <= values.items()
    assert found["hugetlb_usage_bytes"][0].labels == {"page": "2MB"}
    assert found["blkio_sectors_recursive_total"][0].labels == {
        "op": "Read",
        "device": "/dev/x",
        "major": "8",
        "minor": "1",
    }


def test_cgroups_of_version_2() -> None:
    message = v2.Metrics(
        cpu=v2.CPUStat(usage_usec=1, nr_throttled=2),
        memory=v2.MemoryStat(usage=3, thp_collapse_alloc=4),
        memory_events=v2.MemoryEvents(oom=5),
        pids=v2.PidsStat(current=6),
        io=v2.IOStat(usage=[v2.IOEntry(major=8, minor=0, rbytes=7, wios=8)]),
    )
    found = measured(message)
    assert set(found) == set(V2)
    values = {name: many[0].value for name, many in found.items()}
    assert values["cpu_usage_usec_microseconds"] == 1
    assert values["cpu_nr_throttled_total"] == 2
    assert values["memory_usage_bytes"] == 3
    assert values["memory_thp_collapse_alloc_bytes"] == 4
    assert values["memory_oom_total"] == 5
    assert values["pids_current"] == 6
    assert values["io_wios_total"] == 8
    assert found["io_rbytes_bytes"][0].labels == {"major": "8", "minor": "0"}


def test_what_was_not_measured_is_not_told() -> None:
    assert measured(v1.Metrics()) == measured(v2.Metrics()) == {}
    assert set(measured(v2.Metrics(pids=v2.PidsStat()))) == {"pids_current", "pids_limit"}


def test_measurements_of_another_kind() -> None:
    assert list(samples(AnyValue("kata.Metrics", b"x"))) == []
    with pytest.raises(DecodeError):
        list(samples(AnyValue("io.containerd.cgroups.v2.Metrics", b"\xff")))


def test_a_page() -> None:
    page = Page()
    page.gauge("b", "what\nb\\is", 1.5, z="1", a='q"\\\n')
    page.gauge("b", "", 2, a="x")
    page.counter("a_total", "counts", 12345678901234567890)
    assert page.text() == (
        "# HELP a_total counts\n"
        "# TYPE a_total counter\n"
        "a_total 12345678901234567890\n"
        "# HELP b what\\nb\\\\is\n"
        "# TYPE b gauge\n"
        'b{a="q\\"\\\\\\n",z="1"} 1.5\n'
        'b{a="x"} 2\n'
    )


def test_a_histogram_is_read_as_one() -> None:
    values = Histogram((0.005, 1.0))
    for value in (0.001, 0.5, 0.5, 7):
        values.observe(value)
    page = Page()
    page.histogram("waits_seconds", "waits", values, pool="fs")
    (family,) = text_string_to_metric_families(page.text())
    assert family.type == "histogram"
    assert [(s.name, s.labels.get("le", ""), s.value) for s in family.samples] == [
        ("waits_seconds_bucket", "0.005", 1),
        ("waits_seconds_bucket", "1", 3),
        ("waits_seconds_bucket", "+Inf", 4),
        ("waits_seconds_sum", "", 8.001),
        ("waits_seconds_count", "", 4),
    ]
    assert {s.labels["pool"] for s in family.samples} == {"fs"}
