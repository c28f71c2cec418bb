"""Traces to a collector: what the environment asks for, and what the collector gets."""

from __future__ import annotations

import contextvars
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from harness.collector import Collector, grpc_collector, http_collector

from cradled import spans
from cradled.daemon import otlp
from cradled.daemon.otlp import Exporter, Off, Settings, configured
from cradled.rpc.call import Call
from cradled.spans import span

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
REMOTE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("environ", "settings"),
    [
        (ENDPOINT, ("http/protobuf", "containerd")),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, ("http/protobuf", "containerd")),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ("grpc", "containerd")),
        (
            {
                **ENDPOINT,
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            },
            ("http/protobuf", "containerd"),
        ),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "otlp"}, ("http/protobuf", "containerd")),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "false"}, ("http/protobuf", "containerd")),
        ({**ENDPOINT, "OTEL_SERVICE_NAME": "mine"}, ("http/protobuf", "")),
        ({**ENDPOINT, "OTEL_RESOURCE_ATTRIBUTES": "a=b, service.name=x"}, ("http/protobuf", "")),
    ],
)
def test_what_is_asked_for(environ: Mapping[str, str], settings: tuple[str, str]) -> None:
    assert configured(environ) == settings


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({}, "tracing endpoint not configured"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, "tracing endpoint not configured"),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "TRUE"}, "tracing is disabled by OTEL_SDK_DISABLED"),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, 'unsupported OTEL_TRACES_EXPORTER "none"'),
        (
            {**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
            'unsupported OTLP protocol "http/json"',
        ),
    ],
)
def test_reasons_to_export_nothing(environ: Mapping[str, str], reason: str) -> None:
    with pytest.raises(Off) as caught:
        configured(environ)
    assert str(caught.value) == reason


@pytest.fixture(autouse=True)
def empty() -> Iterator[None]:
    spans.clear()
    yield
    spans.clear()
    assert spans.sink is None
    assert not [thread for thread in threading.enumerate() if thread.name == "cradled-otlp"]


@pytest.fixture(params=otlp.PROTOCOLS)
def collector(request: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    serve = grpc_collector if request.param == "grpc" else http_collector
    with serve() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", request.param)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-token=secret")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
        yield collector


@contextmanager
def exporting(environ: Mapping[str, str]) -> Iterator[Exporter]:
    exporter = Exporter.start(configured(environ))
    try:
        yield exporter
    finally:
        exporter.close()


def attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


def test_a_trace_arrives_whole(collector: Collector) -> None:
    def fails() -> None:
        with span("a.v1.Tasks/Create", namespace="ns"):
            with span("shim.Create", pid=3, path=os):
                pass
            raise KeyError("x")

    with exporting(os.environ):
        with pytest.raises(KeyError):
            fails()
        request, headers = collector.requests.get(timeout=20)
    assert headers["x-token"] == "secret"
    (resource,) = request.resource_spans
    told = attributes(resource.resource.attributes)
    assert told["service.name"] == "containerd"
    assert told["telemetry.sdk.language"] == "python"
    found = {one.name: one for scope in resource.scope_spans for one in scope.spans}
    create, shim = found["a.v1.Tasks/Create"], found["shim.Create"]
    (trace,) = spans.traces()
    assert create.trace_id == shim.trace_id == trace.id.to_bytes(16, "big")
    assert create.span_id == shim.parent_span_id == trace.spans[0].id.to_bytes(8, "big")
    assert create.parent_span_id == b""
    assert create.kind == create.SPAN_KIND_SERVER
    assert shim.kind == shim.SPAN_KIND_CLIENT
    assert create.status.code == create.status.STATUS_CODE_ERROR
    assert create.status.message == "'x'"
    assert attributes(create.attributes) == {"namespace": "ns"}
    assert attributes(shim.attributes) == {"pid": 3, "path": str(os)}
    assert create.start_time_unix_nano <= shim.start_time_unix_nano
    assert shim.end_time_unix_nano <= create.end_time_unix_nano
    assert abs(create.end_time_unix_nano - spans.epoch(trace.spans[0].end)) < 10**9


def test_what_was_recorded_before_the_end_is_sent(collector: Collector) -> None:
    environ = {**os.environ, "OTEL_SERVICE_NAME": "mine"}
    with exporting(environ), span("last"):
        pass
    assert [one.name for one in collector.spans()] == ["last"]


@contextmanager
def http(monkeypatch: pytest.MonkeyPatch, **environ: str) -> Iterator[Collector]:
    with http_collector() as collector:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, **environ}
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        with exporting(environ):
            yield collector


def serve(traceparent: str) -> None:
    """As a transport does it, in a context of its own."""

    def run() -> None:
        call = Call("grpc", {"traceparent": traceparent}, {})
        call.open("served")
        call.close()

    contextvars.copy_context().run(run)


def test_callers_decide_where_they_have_a_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    with http(monkeypatch) as collector:
        serve(REMOTE[:-1] + "0")
        serve(REMOTE)
    sent = collector.spans()
    assert [one.parent_span_id.hex() for one in sent] == ["b7ad6b7169203331"]
    assert collector.requests.empty()


def test_the_sampler_decides_where_nobody_has(monkeypatch: pytest.MonkeyPatch) -> None:
    with http(monkeypatch, OTEL_TRACES_SAMPLER="parentbased_always_off") as collector:
        with span("mine"):
            pass
        serve(REMOTE)
    assert [one.name for one in collector.spans()] == ["served"]
    assert collector.requests.empty()


def test_a_share_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    share = {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.5"}
    with http(monkeypatch, **share, OTEL_BSP_SCHEDULE_DELAY="60000") as collector:
        for _ in range(200):
            with span("one"):
                pass
    assert 60 < len(collector.spans()) < 140


def test_a_collector_that_is_away_costs_nothing_but_traces(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(otlp, "_QUEUE", 3)
    release = threading.Event()
    monkeypatch.setattr(otlp._Converter, "convert", lambda self, trace: release.wait())
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    exporter = Exporter.start(configured(ENDPOINT))
    for _ in range(20):
        with span("one"):
            pass
    assert exporter.dropped >= 16
    release.set()
    exporter.close()
    assert "traces were dropped" in caplog.text


def test_without_the_sdk_it_is_said_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    exporter = Exporter.start(Settings("grpc", ""))
    exporter._thread.join(20)
    assert "install cradled[otlp]" in caplog.text
    assert spans.sink is None
    exporter.close()
