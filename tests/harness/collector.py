"""Collectors of traces, as OpenTelemetry's exporters expect them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


class Collector:
    """What came: the requests, and the headers that came with each."""

    def __init__(self) -> None:
        self.requests: Queue[tuple[ExportTraceServiceRequest, dict[str, str]]] = Queue()
        self.endpoint = ""

    def spans(self) -> list[Any]:
        """Those of the next request."""
        request, _ = self.requests.get(timeout=10)
        return [one for resource in request.resource_spans for scope in resource.scope_spans
                for one in scope.spans]  # fmt: skip


@contextmanager
def http_collector() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == "/v1/traces"
            headers = {key.lower(): value for key, value in self.headers.items()}
            collector.requests.put((ExportTraceServiceRequest.FromString(body), headers))
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield collector
        server.shutdown()
        thread.join()


@contextmanager
def grpc_collector() -> Iterator[Collector]:
    collector = Collector()

    def export(request: ExportTraceServiceRequest, context: Any) -> ExportTraceServiceResponse:
        headers = {key: value for key, value in context.invocation_metadata()}
        collector.requests.put((request, headers))
        return ExportTraceServiceResponse()

    handler = grpc.unary_unary_rpc_method_handler(
        export, ExportTraceServiceRequest.FromString, ExportTraceServiceResponse.SerializeToString
    )
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {"Export": handler}),)
    )
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(0).wait()
