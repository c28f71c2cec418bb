"""``/v1/metrics`` as Prometheus and dashboards know it, of us and of the original."""

from __future__ import annotations

import os
import shutil
import socket
import urllib.request
from collections.abc import Iterator

import pytest
from harness.daemon import Daemon
from harness.images import BUSYBOX
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

Samples = dict[str, list[tuple[dict[str, str], float]]]

UNIFIED = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
CONTAINER = {
    "container_pids_current",
    *(
        ("container_memory_usage_bytes", "container_cpu_usage_usec_microseconds")
        if UNIFIED
        else (
            "container_memory_usage_usage_bytes",
            "container_memory_total_rss_bytes",
            "container_memory_usage_failcnt_total",
            "container_cpu_total_nanoseconds",
            "container_per_cpu_nanoseconds",
        )
    ),
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Measured(Daemon):
    """Serves metrics, by the configuration that both daemons read."""

    port = 0

    def command(self) -> list[str]:
        self.port = free_port()
        words = super().command()
        config = self.directory / "config.toml"
        if self.kind == "cradled":
            config.write_text("version = 2\n")
            words += ["--config", str(config)]
        with open(config, "a", encoding="utf-8") as file:
            file.write(f'[metrics]\naddress = "127.0.0.1:{self.port}"\ngrpc_histogram = true\n')
        return words

    def samples(self) -> Samples:
        found: Samples = {}
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v1/metrics") as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            page = answer.read().decode()
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
        return found


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Samples]:
    """What a daemon with one running container tells."""
    directory = tmp_path_factory.mktemp("d")
    rootfs = directory / "rootfs" / "bin"
    rootfs.mkdir(parents=True)
    shutil.copy(BUSYBOX, rootfs / "busybox")
    daemon = Measured(directory)
    daemon.start()
    try:
        command = ["/bin/busybox", "sleep", "1000"]
        daemon.ctr("run", "--rootfs", "--detach", str(rootfs.parent), "c1", *command)
        assert daemon.try_ctr("containers", "info", "nobody").returncode == 1
        yield {"namespace": [({"": daemon.namespace}, 0)], **daemon.samples()}
    finally:
        daemon.remove_containers()
        daemon.destroy()


def value(samples: Samples, name: str, /, **labels: str) -> float:
    (found,) = [value for given, value in samples[name] if labels.items() <= given.items()]
    return found


def test_calls(samples: Samples) -> None:
    create = {
        "grpc_service": "containerd.services.tasks.v1.Tasks",
        "grpc_method": "Create",
        "grpc_type": "unary",
    }
    assert value(samples, "grpc_server_started_total", **create) == 1
    assert value(samples, "grpc_server_msg_received_total", **create) == 1
    assert value(samples, "grpc_server_msg_sent_total", **create) == 1
    assert value(samples, "grpc_server_handled_total", grpc_code="OK", **create) == 1
    assert value(samples, "grpc_server_handled_total", grpc_code="NotFound", **create) == 0
    assert value(samples, "grpc_server_handling_seconds_count", **create) == 1
    assert value(samples, "grpc_server_handling_seconds_bucket", le="+Inf", **create) == 1
    bounds = {given["le"] for given, _ in samples["grpc_server_handling_seconds_bucket"]}
    assert {"0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "+Inf"} <= bounds
    service = {"grpc_service": "containerd.services.containers.v1.Containers"}
    get = {**service, "grpc_method": "Get", "grpc_code": "NotFound"}
    assert value(samples, "grpc_server_handled_total", **get) == 1


def test_methods_nobody_called_are_there(samples: Samples) -> None:
    delete = {"grpc_method": "Delete", "grpc_service": "containerd.services.images.v1.Images"}
    assert value(samples, "grpc_server_started_total", **delete) == 0
    kinds = {given["grpc_type"] for given, _ in samples["grpc_server_started_total"]}
    assert kinds == {"unary", "server_stream", "bidi_stream"}


def test_containers(samples: Samples) -> None:
    assert samples.keys() >= CONTAINER
    ((scope, _),) = samples["namespace"]
    for name in CONTAINER:
        for labels, _ in samples[name]:
            assert labels["container_id"] == "c1"
            assert labels["namespace"] == scope[""]
            assert labels["runtime"] == "io.containerd.runc.v2"
    assert value(samples, "container_pids_current", container_id="c1") == 1


def test_the_daemon_itself(samples: Samples) -> None:
    ((labels, number),) = samples["containerd_build_info_total"]
    assert set(labels) == {"version", "revision"}
    assert number == 1
    memory = ("resident_memory_bytes", "virtual_memory_bytes", "virtual_memory_max_bytes")
    for name in (*memory, "cpu_seconds_total", "max_fds", "open_fds", "start_time_seconds"):
        assert value(samples, f"process_{name}") > 0
