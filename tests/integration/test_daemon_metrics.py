"""What a whole app with a real container tells Prometheus."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness import leaks
from harness.daemon import wait_until
from harness.images import busybox_image
from prometheus_client.parser import text_string_to_metric_families

from cradled import errors
from cradled.client import Client
from cradled.core.access import Access, Verdict
from cradled.daemon.app import App
from cradled.daemon.config import Config
from cradled.daemon.metrics import Metrics
from cradled.rpc.guard import Guard
from cradled.rpc.inprocess import InProcess

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

IMAGE = "docker.io/library/busybox:test"
CONTAINERS = "containerd.services.containers.v1.Containers"

Samples = dict[str, list[tuple[dict[str, str], float]]]


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[App]:
    for name in ("root", "state"):
        (tmp_path / name).mkdir()
    config = Config(root=str(tmp_path / "root"), state=str(tmp_path / "state"))
    async with App(config) as app:
        yield app
    await asyncio.to_thread(
        wait_until,
        lambda: not leaks.processes_with(str(tmp_path)) and not leaks.mounts_below(str(tmp_path)),
        "no process and no mount is left",
    )


@pytest.fixture
def client(app: App, tmp_path: Path) -> Client:
    return Client(InProcess(app.router), fifo_dir=tmp_path / "fifo", namespace="measured")


async def read(metrics: Metrics) -> Samples:
    """All samples by name; the whole page is one that Prometheus can read."""
    found: Samples = {}
    for family in text_string_to_metric_families((await metrics.render()).decode()):
        assert family.documentation
        assert family.type in ("counter", "gauge", "histogram")
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def value(samples: Samples, name: str, /, **labels: str) -> float:
    (found,) = [value for given, value in samples[name] if labels.items() <= given.items()]
    return found


async def test_the_numbers_of_a_running_container(app: App, client: Client, tmp_path: Path) -> None:
    tar = await asyncio.to_thread(busybox_image(IMAGE).write_oci_layout, tmp_path / "image.tar")
    await client.images.import_(tar)
    container = await client.containers.create(IMAGE, ["sleep", "1000"], name="c1")
    await container.start()
    try:
        with Metrics(app) as metrics:
            samples = await read(metrics)
    finally:
        await container.remove(force=True)
    labels = {"container_id": "c1", "namespace": "measured"}
    assert value(samples, "container_pids_current", **labels) == 1
    for name, many in samples.items():
        if name.startswith("container_"):
            assert all(given["runtime"] == "io.containerd.runc.v2" for given, _ in many)
    memory = [name for name in samples if name.startswith("container_memory_usage")]
    assert any(value(samples, name, **labels) > 0 for name in memory)
    assert value(samples, "cradled_task", status="running", **labels) == 1
    assert value(samples, "cradled_forks_total", name="cradled-shim") == 1
    assert value(samples, "cradled_zygote_starts_total") == 1
    assert value(samples, "cradled_content_bytes_total", direction="in") > 1_000_000
    assert value(samples, "cradled_events_total") > 5
    assert value(samples, "cradled_metadata_fsync_seconds_count") > 5
    assert value(samples, "cradled_metadata_batch_commands_count") > 5
    assert value(samples, "cradled_thread_wait_seconds_count", pool="fs") > 5
    assert value(samples, "cradled_loop_lag_seconds_count") > 5
    assert value(samples, "cradled_lock_wait_seconds_count") > 0
    assert value(samples, "grpc_server_msg_received_total", grpc_method="Write") >= 0


async def test_calls_are_counted_as_the_original_does(app: App, client: Client) -> None:
    with Metrics(app, histogram=True) as metrics:
        with pytest.raises(errors.NotFound):
            await client.containers.get("nobody")
        await client.version()
        samples = await read(metrics)
    get = {"grpc_service": CONTAINERS, "grpc_method": "Get", "grpc_type": "unary"}
    assert value(samples, "grpc_server_started_total", **get) == 1
    assert value(samples, "grpc_server_msg_received_total", **get) == 1
    assert value(samples, "grpc_server_msg_sent_total", **get) == 0
    assert value(samples, "grpc_server_handled_total", grpc_code="NotFound", **get) == 1
    assert value(samples, "grpc_server_handled_total", grpc_code="OK", **get) == 0
    assert value(samples, "grpc_server_handling_seconds_count", **get) == 1
    assert value(samples, "grpc_server_handling_seconds_bucket", le="10", **get) == 1
    kinds = {given["grpc_type"] for given, _ in samples["grpc_server_started_total"]}
    assert kinds == {"unary", "server_stream", "bidi_stream"}
    codes = {given["grpc_code"] for given, _ in samples["grpc_server_handled_total"]}
    assert len(codes) == 17
    assert value(samples, "containerd_build_info_total") == 1


async def test_this_process(app: App) -> None:
    began = time.time()
    with Metrics(app) as metrics:
        gc.collect()
        samples = await read(metrics)
    assert value(samples, "process_open_fds") > 5
    assert value(samples, "process_max_fds") > 5
    assert 10 << 20 < value(samples, "process_resident_memory_bytes") < 4 << 30
    assert value(samples, "process_virtual_memory_bytes") > 10 << 20
    assert 0 < value(samples, "process_start_time_seconds") <= began + 1
    assert 0 < value(samples, "process_cpu_seconds_total") < 10_000
    assert value(samples, "cradled_python_gc_seconds_count") >= 1


async def test_nothing_is_left_of_the_watching(app: App) -> None:
    callbacks = list(gc.callbacks)
    with Metrics(app):
        assert len(gc.callbacks) == len(callbacks) + 1
    assert gc.callbacks == callbacks


async def test_collections_are_counted(app: App) -> None:
    await app.get("io.containerd.gc.v1", "scheduler").collect()
    with Metrics(app) as metrics:
        samples = await read(metrics)
    assert value(samples, "containerd_gc_collections_total", status="success") >= 1
    assert value(samples, "containerd_gc_collections_total", status="fail") == 0
    assert value(samples, "containerd_gc_gc_seconds_count") >= 1


async def test_denials_are_counted_where_there_is_a_policy(app: App) -> None:
    class Never:
        def decide(self, access: Access) -> Verdict:
            return Verdict(False, "never")

        def reload(self) -> None:
            return

    with Metrics(app) as metrics:
        assert "cradled_policy_denied_total" not in await read(metrics)
        app.guard = Guard([Never()], lambda access, verdict: None)
        with pytest.raises(errors.PermissionDenied):
            app.guard.check(Access("a.B/C", "", "grpc", None))
        assert value(await read(metrics), "cradled_policy_denied_total") == 1
