"""Blocking. Traces to a collector, by the environment variables of OpenTelemetry.

Off unless ``OTEL_EXPORTER_OTLP_ENDPOINT`` or ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`` is set;
``configured`` reads those that decide whether and how. All else (headers, timeouts, compression,
certificates, the sampler, batches, resource attributes) is read by OpenTelemetry's own SDK, which
is an extra (``cradled[otlp]``). It is imported by a thread of ours, so that the start of the daemon
waits for none of it; that thread also turns our spans into its own. A collector that is slow or
away costs a bounded queue, what is beyond is dropped and counted.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from queue import Empty, Full, Queue
from typing import TYPE_CHECKING, Any, NamedTuple

from cradled import spans
from cradled.spans import Record, Trace
from cradled.version import SERVER_VERSION

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

log = logging.getLogger(__name__)

PROTOCOLS = ("http/protobuf", "grpc")
SERVICE_NAME = "containerd"

_QUEUE = 2048
"""Traces that wait while the SDK is imported, or is behind."""

_CLOSE_SECONDS = 5.0


class Settings(NamedTuple):
    protocol: str
    service_name: str
    """Empty where the environment names it."""


class Off(Exception):
    """Nothing is to be exported; the text says why."""


def configured(environ: Mapping[str, str]) -> Settings:
    """What the environment asks for. Raises Off."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        raise Off("tracing is disabled by OTEL_SDK_DISABLED")
    endpoint = _either(environ, "ENDPOINT")
    if not endpoint:
        raise Off("tracing endpoint not configured")
    exporter = environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    if exporter != "otlp":
        raise Off(f'unsupported OTEL_TRACES_EXPORTER "{exporter}"')
    protocol = _either(environ, "PROTOCOL") or PROTOCOLS[0]
    if protocol not in PROTOCOLS:
        raise Off(f'unsupported OTLP protocol "{protocol}"')
    resource = environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    named = environ.get("OTEL_SERVICE_NAME") or "service.name=" in resource.replace(" ", "")
    return Settings(protocol, "" if named else SERVICE_NAME)


def _either(environ: Mapping[str, str], name: str) -> str:
    prefix = "OTEL_EXPORTER_OTLP"
    return environ.get(f"{prefix}_TRACES_{name}") or environ.get(f"{prefix}_{name}", "")


class Exporter:
    """Implements ``spans.Sink``: made by ``start`` for a process, ended by ``close``."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._queue: Queue[Trace | None] = Queue(_QUEUE)
        self._converter: _Converter | None = None
        self._thread = threading.Thread(target=self._export, name="cradled-otlp", daemon=True)
        self.dropped = 0

    @classmethod
    def start(cls, settings: Settings) -> Exporter:
        """Be the sink of this process' spans."""
        exporter = cls(settings)
        spans.sink = exporter
        exporter._thread.start()
        return exporter

    def ended(self, trace: Trace, /) -> None:
        """On the loop: queue what has ended."""
        try:
            self._queue.put_nowait(trace)
        except Full:
            self.dropped += 1

    def samples(self, trace_id: int, /) -> bool:
        """Whether a trace that begins here will be exported."""
        converter = self._converter
        return converter is None or converter.samples(trace_id, None)

    def close(self) -> None:
        """Send what has ended, within a few seconds, and be the sink no more."""
        if spans.sink is self:
            spans.sink = None
        try:
            self._queue.put(None, timeout=_CLOSE_SECONDS)
        except Full:
            log.warning("traces were not sent: the collector does not keep up")
            return
        self._thread.join(_CLOSE_SECONDS)
        if self._thread.is_alive():
            log.warning("traces were not sent: the collector does not answer")
        if self.dropped:
            log.warning("%d traces were dropped: the collector did not keep up", self.dropped)

    def _export(self) -> None:
        """In the thread."""
        try:
            converter = _Converter(self._settings)
        except ImportError as error:
            log.warning("traces are not exported: %s; install cradled[otlp]", error)
            self._discard()
            return
        except Exception as error:  # whatever the SDK thinks of the environment
            log.warning("traces are not exported: %s", error)
            self._discard()
            return
        self._converter = converter
        while (trace := self._queue.get()) is not None:
            try:
                converter.convert(trace)
            except Exception:  # a trace that cannot be told is no reason to tell none
                log.exception("cannot export a trace")
        converter.close()

    def _discard(self) -> None:
        if spans.sink is self:
            spans.sink = None
        while True:
            try:
                self._queue.get_nowait()
            except Empty:
                break


class _Converter:
    """Our traces as the SDK's spans, handed to its batching exporter."""

    def __init__(self, settings: Settings) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        attributes = {"service.name": settings.service_name} if settings.service_name else {}
        self._resource = Resource.create({**attributes, "service.version": SERVER_VERSION})
        provider = TracerProvider(resource=self._resource, shutdown_on_exit=False)
        self._sampler: Any = provider.sampler  # as the environment says
        self._scope = InstrumentationScope("cradled", SERVER_VERSION)
        self._processor: Any = BatchSpanProcessor(_exporter(settings.protocol))

    def samples(self, trace_id: int, parent: Any) -> bool:
        return bool(self._sampler.should_sample(parent, trace_id, "").decision.is_sampled())

    def convert(self, trace: Trace) -> None:
        first = trace.spans[0]
        if not self.samples(trace.id, self._remote(trace, first)):
            return
        since = spans.epoch(0)
        for record in trace.spans:
            self._processor.on_end(self._span(trace, record, since))

    def close(self) -> None:
        self._processor.shutdown()

    def _remote(self, trace: Trace, first: Record) -> Any:
        """The context that a sampler is told of: that of a caller who has a wish."""
        if trace.sampled is None:
            return None
        from opentelemetry import trace as api

        remote = self._context(trace.id, first.parent, sampled=trace.sampled, is_remote=True)
        return api.set_span_in_context(api.NonRecordingSpan(remote))

    def _span(self, trace: Trace, record: Record, since: int) -> ReadableSpan:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import Status, StatusCode

        parent = self._context(trace.id, record.parent) if record.parent else None
        status = Status(StatusCode.ERROR, record.error) if record.error else Status()
        return ReadableSpan(
            record.name,
            context=self._context(trace.id, record.id),
            parent=parent,
            resource=self._resource,
            attributes={key: _plain(value) for key, value in record.attributes.items()},
            kind=_kind(record.name),
            status=status,
            start_time=record.start + since,
            end_time=record.end + since,
            instrumentation_scope=self._scope,
        )

    @staticmethod
    def _context(trace: int, span: int, *, sampled: bool = True, is_remote: bool = False) -> Any:
        from opentelemetry.trace import SpanContext, TraceFlags

        return SpanContext(trace, span, is_remote, TraceFlags(int(sampled)))


def _exporter(protocol: str) -> SpanExporter:
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        return Grpc()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

    return Http()


def _kind(name: str) -> Any:
    from opentelemetry.trace import SpanKind

    if "/" in name:
        return SpanKind.SERVER
    return SpanKind.CLIENT if name.startswith("shim.") else SpanKind.INTERNAL


def _plain(value: Any) -> str | bool | int | float:
    return value if isinstance(value, str | bool | int | float) else str(value)
