"""A real daemon and a collector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness.collector import http_collector
from harness.daemon import Daemon

CREATE = "containerd.services.namespaces.v1.Namespaces/Create"


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    return Daemon(tmp_path, "cradled")


def plugins(daemon: Daemon) -> dict[str, str]:
    """Type and id, and the status that ``ctr`` shows."""
    lines = daemon.ctr("plugins", "ls").splitlines()[1:]
    return {f"{line.split()[0]}.{line.split()[1]}": line.split()[-1] for line in lines}


def test_what_ctr_asks_for_is_exported(daemon: Daemon) -> None:
    with http_collector() as collector:
        daemon.env["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.endpoint
        daemon.start()
        try:
            daemon.ctr("namespaces", "create", "traced")
            found = plugins(daemon)
        finally:
            daemon.stop()
        exported: list[Any] = []
        while not any(one.name == CREATE for one in exported):
            exported += collector.spans()
    assert found["io.containerd.tracing.processor.v1.otlp"] == "ok"
    assert found["io.containerd.internal.v1.tracing"] == "ok"
    (create,) = [one for one in exported if one.name == CREATE]
    steps = {one.name for one in exported if one.parent_span_id == create.span_id}
    assert steps == {"metadata.queue", "metadata.apply", "metadata.fsync"}


def test_without_an_endpoint_nothing_of_it_is_loaded(daemon: Daemon) -> None:
    daemon.start()
    try:
        found = plugins(daemon)
        assert daemon.process is not None
        maps = Path(f"/proc/{daemon.process.pid}/maps").read_text()
    finally:
        daemon.stop()
    assert found["io.containerd.tracing.processor.v1.otlp"] == "skip"
    assert found["io.containerd.internal.v1.tracing"] == "skip"
    assert "opentelemetry" not in maps
    assert "grpc" not in maps
