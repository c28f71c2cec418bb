"""Async. ``/v1/metrics``: what Prometheus is told.

The names are the original's where it has them: ``grpc_server_*``, ``containerd_*``,
``container_*``, ``process_*``. What only this daemon has begins with ``cradled_``. All but the
containers' numbers are counted anyway and only read here; those are asked of all shims at once, and
of one that does not answer there is nothing.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import time
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, Self

from google.protobuf.message import DecodeError

from cradled import errors, spans
from cradled.aio import keyed_lock, lag, threads, watchdog
from cradled.core.scope import Scope
from cradled.core.values import AnyValue
from cradled.daemon import container_metrics
from cradled.daemon.app import App
from cradled.daemon.exposition import Page
from cradled.measures import Histogram
from cradled.plugin import types as t
from cradled.rpc.observe import Calls
from cradled.version import REVISION, SERVER_VERSION

log = logging.getLogger(__name__)

_PROBE_SECONDS = 0.05
"""Between the watchdog's questions, where nobody debugs."""

_SLICE = 8
"""Methods that are told in one turn of the loop: all at once would hold it for too long."""

_CODES = """
    OK Canceled Unknown InvalidArgument DeadlineExceeded NotFound AlreadyExists PermissionDenied
    ResourceExhausted FailedPrecondition Aborted OutOfRange Unimplemented Internal Unavailable
    DataLoss Unauthenticated
""".split()  # noqa: SIM905 - a list to read
"""The names of the status codes as the original's metrics have them, by number."""


class Metrics:
    """Of one app. While it is entered, the loop is watched and the collector's pauses are timed.

    ``histogram``: have the durations of calls counted, too (``grpc_histogram``).
    """

    def __init__(self, app: App, *, histogram: bool = False) -> None:
        self._app = app
        self._pauses = Histogram()
        self._pause_began = 0.0
        self._stack = ExitStack()
        if histogram:
            app.observer.time_calls()

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._stack.enter_context(watchdog.Watchdog(loop, interval=_PROBE_SECONDS))
        gc.callbacks.append(self._collecting)
        self._stack.callback(gc.callbacks.remove, self._collecting)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    async def render(self) -> bytes:
        """The page, as ``exposition.CONTENT_TYPE``."""
        page = Page()
        for number, calls in enumerate(self._app.observer.methods):
            _add_calls(page, calls)
            if number % _SLICE == 0:
                await asyncio.sleep(0)
        self._daemon(page)
        self._waits(page)
        self._stores(page)
        _process(page)
        await self._containers(page)
        return page.text().encode()

    def _collecting(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._pause_began = time.monotonic()
        else:
            self._pauses.observe(time.monotonic() - self._pause_began)

    def _daemon(self, page: Page) -> None:
        page.counter(
            "containerd_build_info_total",
            "What is running",
            1,
            version=SERVER_VERSION,
            revision=REVISION,
        )
        page.histogram("cradled_python_gc_seconds", "Pauses of Python's collector", self._pauses)
        page.histogram("cradled_loop_lag_seconds", "How late the event loop is", lag.LATE)
        for name, count in watchdog.held.items():
            page.counter("cradled_loop_held_total", "Times it was over 5 ms late", count, by=name)
        page.gauge("cradled_spans_open", "Steps under way", len(spans.under_way()))
        if (guard := self._app.guard) is not None:
            page.counter("cradled_policy_denied_total", "Calls a policy denied", guard.denials)
        zygote = self._get(t.FORKED, "zygote")
        if zygote is not None:
            page.counter("cradled_zygote_starts_total", "Fork servers started", zygote.starts)
            for name, count in zygote.forks.items():
                page.counter("cradled_forks_total", "Processes forked", count, name=name)

    def _waits(self, page: Page) -> None:
        page.histogram("cradled_lock_wait_seconds", "Waits for locks by key", keyed_lock.WAITS)
        page.gauge("cradled_locks_held", "Locks by key that are held", len(keyed_lock.held()))
        for name, load in threads.loads().items():
            page.gauge("cradled_threads", "Threads of a pool", load.threads, pool=name)
            page.gauge("cradled_thread_calls", "Calls that run or wait", load.calls, pool=name)
            help = "Waits of calls for a thread"
            page.histogram("cradled_thread_wait_seconds", help, load.waits, pool=name)

    def _stores(self, page: Page) -> None:
        db, scheduler = self._get(t.METADATA, "bolt"), self._get(t.GC, "scheduler")
        content, exchange = self._get(t.CONTENT, "content"), self._get(t.EVENT, "exchange")
        if db is not None:
            measures = db.engine.measures
            prefix = "cradled_metadata"
            page.histogram(f"{prefix}_batch_commands", "Commands of a commit", measures.sizes)
            page.histogram(f"{prefix}_queue_seconds", "Waits for a commit", measures.waits)
            page.histogram(f"{prefix}_apply_seconds", "Commands of a commit", measures.applying)
            page.histogram(f"{prefix}_fsync_seconds", "Commits made durable", measures.syncs)
        if scheduler is not None:
            name, help = "containerd_gc_collections_total", "Collections of what nobody refers to"
            page.counter(name, help, scheduler.seconds.count, status="success")
            page.counter(name, help, scheduler.failures, status="fail")
            page.histogram("containerd_gc_gc_seconds", "What they took", scheduler.seconds)
        if content is not None:
            name, help = "cradled_content_bytes_total", "Content that came in and went out"
            page.counter(name, help, content.moved.written, direction="in")
            page.counter(name, help, content.moved.read, direction="out")
        if exchange is not None:
            sizes = exchange.waiting()
            page.counter("cradled_events_total", "Events published", exchange.published)
            page.gauge("cradled_event_subscribers", "Subscriptions", len(sizes))
            page.gauge("cradled_event_queue_bytes", "Events not read yet", sum(sizes))

    async def _containers(self, page: Page) -> None:
        db, tasks = self._get(t.METADATA, "bolt"), self._get(t.RUNTIME, "task")
        if db is None or tasks is None:
            return
        scopes = [Scope(namespace) for namespace, _ in await db.namespaces.list()]
        measured = await asyncio.gather(*(tasks.metrics(scope, ()) for scope in scopes))
        for scope, found in zip(scopes, measured, strict=True):
            for process in await tasks.list(scope):
                labels = {"namespace": scope.namespace, "status": process.status.name.lower()}
                page.gauge("cradled_task", "Tasks", 1, container_id=process.id, **labels)
            for id, _, value in found:
                with suppress(errors.NotFound):  # deleted meanwhile
                    container = await db.scoped(scope).containers.get(id)
                    labels = {"namespace": scope.namespace, "runtime": container.runtime.name}
                    _add_container(page, value, {"container_id": id, **labels})

    def _get(self, type: str, id: str) -> Any:
        try:
            return self._app.get(type, id)
        except LookupError:
            return None


def _add_calls(page: Page, calls: Calls) -> None:
    service, _, method = calls.name.partition("/")
    streaming = {
        (False, False): "unary",
        (True, False): "client_stream",
        (False, True): "server_stream",
        (True, True): "bidi_stream",
    }
    kind = streaming[calls.method.client_streaming, calls.method.server_streaming]
    labels = {"grpc_service": service, "grpc_method": method, "grpc_type": kind}
    prefix = "grpc_server"
    page.counter(f"{prefix}_started_total", "Calls begun", calls.started, **labels)
    page.counter(f"{prefix}_msg_received_total", "Requests", calls.received, **labels)
    page.counter(f"{prefix}_msg_sent_total", "Responses", calls.sent, **labels)
    for number, name in enumerate(_CODES):
        count = calls.codes.get(number, 0) if number else calls.ok  # type: ignore[call-overload]
        help = "Calls ended"
        page.counter(f"{prefix}_handled_total", help, count, grpc_code=name, **labels)
    if calls.seconds is not None:
        help = "What calls took"
        page.histogram(f"{prefix}_handling_seconds", help, calls.seconds, **labels)


def _add_container(page: Page, measured: AnyValue, labels: dict[str, str]) -> None:
    try:
        for sample in container_metrics.samples(measured):
            page.gauge(sample.name, sample.help, sample.value, **labels, **sample.labels)
    except DecodeError as error:
        log.warning("metrics of %s: %s", labels["container_id"], error)


def _process(page: Page) -> None:
    """What the original's library tells of every process."""
    with open("/proc/self/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    with open("/proc/stat", encoding="ascii") as file:
        booted = next(int(line.split()[1]) for line in file if line.startswith("btime"))
    tick = os.sysconf("SC_CLK_TCK")
    cpu = (int(fields[11]) + int(fields[12])) / tick
    page.counter("process_cpu_seconds_total", "Processor time, user and system", cpu)
    started = booted + int(fields[19]) / tick
    page.gauge("process_start_time_seconds", "Start, since the epoch", started)
    page.gauge("process_virtual_memory_bytes", "Address space", int(fields[20]))
    resident = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    page.gauge("process_resident_memory_bytes", "Memory", resident)
    page.gauge("process_open_fds", "Open files", len(os.listdir("/proc/self/fd")))
    page.gauge("process_max_fds", "Open files allowed", _limit("Max open files"))
    help = "Address space allowed"
    page.gauge("process_virtual_memory_max_bytes", help, _limit("Max address space"))


def _limit(name: str) -> int | float:
    with open("/proc/self/limits", encoding="ascii") as file:
        soft = next(line for line in file if line.startswith(name))[len(name) :].split()[0]
    return float("inf") if soft == "unlimited" else int(soft)
