"""Pure. Spans: what was done, as part of what, and how long it took; kept in a ring in memory.

    with span("unpack.apply", layer=digest):
        ...

A span belongs to the one that is open around it, in this task or the one that made this task. The
outermost one and all under it are a *trace*; when the outermost ends, the trace goes into the
ring. Nothing is written or sent: readers (``cradle trace last``, an exporter) take from here what
they want. All this happens in the loop's thread; what another thread did is told there afterwards,
by ``record``.

Times are of the monotonic clock, in nanoseconds; ``epoch`` makes them times since the epoch.
The ring's size is bounded by spans, not traces. Traces of a single span, nearly all calls that
only read, have a ring of their own and so do not drive out those that have steps.

Many a span costs as much as the step it is about, so it is one object that is also the trace if
it is outermost, and what is kept of all others is a plain tuple.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextvars import ContextVar
from functools import wraps
from itertools import count
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

SINGLES = 256
"""Traces of one span that are kept."""

STEPS = 2048
"""Steps that are kept, of all other traces together; the oldest traces go first."""

STEPS_OF_ONE = 512
"""Steps that one trace may have; what comes later is only counted."""

TRACEPARENT = "traceparent"
"""The metadata key of a caller's span (W3C Trace Context)."""

_PASSED_ON = ("tracestate", "baggage")
_SCOPE = {
    "containerd-namespace-ttrpc": "namespace",
    "containerd-namespace": "namespace",
    "containerd-lease": "lease",
}

_now = time.monotonic_ns
_ids = count(int.from_bytes(os.urandom(8), "big") >> 1)  # never reaches 64 bits
_ID = (1 << 64) - 1
_PROCESS = int.from_bytes(os.urandom(8), "big") << 64
_SPREAD = 0x9E3779B97F4A7C15  # odd: makes of consecutive ids others far apart, all different

_current: ContextVar[span | None] = ContextVar("span", default=None)
_get, _set = _current.get, _current.set
_open: set[span] = set()
_singles: deque[span] = deque(maxlen=SINGLES)
_stepped: deque[span] = deque()
_steps = 0


class Record(NamedTuple):
    """A span that has ended; ``parent`` is 0 for the first of a trace nobody else began.

    ``error`` is the exception's text, empty where there was none.
    """

    name: str
    id: int
    parent: int
    start: int
    end: int
    attributes: dict[str, Any]
    error: str


class Trace(NamedTuple):
    """The spans under one outermost span of this process, which is the first; the others in the
    order they ended.

    ``sampled`` is the caller's wish that it be exported; None where no caller had one.
    ``dropped`` counts steps beyond the limit.
    """

    id: int
    sampled: bool | None
    spans: Sequence[Record]
    dropped: int


class Sink(Protocol):
    """An exporter."""

    def ended(self, trace: Trace, /) -> None:
        """Take a trace that has ended, or, as one more, what outlived it. It must be quick."""

    def samples(self, trace_id: int, /) -> bool:
        """Whether it will send a trace that begins here."""


sink: Sink | None = None


class span:
    """A step. An exception that leaves the block is noted and goes on."""

    trace: span | None = None
    """The outermost span; None for that one itself."""
    parent = 0
    remote = 0
    sampled: bool | None = None
    steps: list[tuple[Any, ...]] | None = None
    dropped = 0
    kept = 0
    start = 0
    end = 0
    error = ""
    metadata: Mapping[str, str] = MappingProxyType({})
    """That of the call which it is."""
    _around: span | None = None

    def __init__(self, name: str, /, **attributes: Any) -> None:
        self.name = name
        self.attributes = attributes
        self.id = next(_ids)

    def __enter__(self) -> span:
        around = _get()
        if around is not None:
            self._around = around
            self.parent = around.id
            self.trace = around.trace or around
        _set(self)
        _open.add(self)
        self.start = _now()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(exc)

    def close(self, exc: BaseException | None = None) -> None:
        """What leaving the block does, for who cannot use one."""
        self.end = end = _now()
        _set(self._around)
        _open.discard(self)
        trace = self.trace
        if trace is None:
            self.error = _text(exc)
            _keep(self)
            return
        self._around = None
        step = (self.name, self.id, self.parent, self.start, end, self.attributes, _text(exc))
        if trace.steps is None or trace.end:
            _add(trace, step)
        elif len(trace.steps) < STEPS_OF_ONE:
            trace.steps.append(step)
        else:
            trace.dropped += 1

    @property
    def trace_id(self) -> int:
        outermost = self.trace or self
        return outermost.remote or _PROCESS | outermost.id * _SPREAD & _ID


class call(span):
    """The outermost span whatever is open around it: what this process does for a caller.

    Of the call's ``metadata`` the caller's own span is taken (``traceparent``), and the scope told.
    It is open from the beginning, and for the rest of the context it is made in: only ``close`` it
    in a context that nothing else goes on in.
    """

    def __init__(self, name: str, metadata: Mapping[str, str]) -> None:
        self.name = name
        self.metadata = metadata
        self.id = next(_ids)
        if TRACEPARENT in metadata and (parsed := parse_traceparent(metadata[TRACEPARENT])):
            self.remote, self.parent, self.sampled = parsed
        _set(self)
        _open.add(self)
        self.start = _now()

    @property
    def attributes(self) -> dict[str, Any]:  # type: ignore[override]
        """Made when somebody looks, which for most calls is never."""
        metadata = self.metadata
        return {told: metadata[key] for key, told in _SCOPE.items() if key in metadata}

    def close(self, exc: BaseException | None = None) -> None:
        self.end = _now()
        _open.discard(self)
        if exc is not None:
            self.error = _text(exc)
        if self.steps is None and sink is None:
            _singles.append(self)
        else:
            _keep(self)


def program(name: str, traceparent: str = "", /) -> span:
    """The outermost span of a program: those it calls go on with its trace.

    ``traceparent`` is that of who started it, or empty.
    """
    one = span(name)
    one.remote, one.parent, one.sampled = parse_traceparent(traceparent) or (0, 0, True)
    return one


def traced(
    name: str,
) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Coroutine[Any, Any, T]]]:
    """For a coroutine function: each call of it is a step of this name."""

    def decorate(function: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
        @wraps(function)
        async def stepped(*args: P.args, **kwargs: P.kwargs) -> T:
            with span(name):
                return await function(*args, **kwargs)

        return stepped

    return decorate


def current() -> span | None:
    """The innermost open span of this task."""
    return _get()


def detach() -> None:
    """What this task does from now on belongs to no span: for work that outlives what began it."""
    _set(None)


def record(parent: span, name: str, start: int, end: int, /, **attributes: Any) -> int:
    """Add a step that was timed elsewhere; returns its id."""
    id = next(_ids)
    _add(parent.trace or parent, (name, id, parent.id, start, end, attributes, ""))
    return id


def outgoing() -> tuple[tuple[str, str], ...]:
    """What tells who is called next of the open span: metadata of W3C Trace Context and Baggage.

    Nothing without a span, and where nobody would follow it: no caller passed one in, and no
    exporter is there.
    """
    innermost = _get()
    if innermost is None:
        return ()
    outermost = innermost.trace or innermost
    trace_id, sampled = innermost.trace_id, outermost.sampled
    if sampled is None:
        if sink is None:
            return ()
        sampled = sink.samples(trace_id)
    parent = f"00-{trace_id:032x}-{innermost.id:016x}-{int(sampled):02x}"
    metadata = outermost.metadata
    passed_on = ((key, metadata[key]) for key in _PASSED_ON if key in metadata)
    return ((TRACEPARENT, parent), *passed_on)


def parse_traceparent(value: str) -> tuple[int, int, bool] | None:
    """Trace, span, and whether it is sampled; None for what is no ``traceparent``."""
    parts = value.split("-")
    if [len(part) for part in parts[:4]] != [2, 32, 16, 2]:
        return None
    if parts[0] == "ff" or (parts[0] == "00" and len(parts) > 4):
        return None
    if not all(c in "0123456789abcdef" for part in parts[:4] for c in part):
        return None
    trace, id = int(parts[1], 16), int(parts[2], 16)
    return (trace, id, bool(int(parts[3], 16) & 1)) if trace and id else None


def traces() -> list[Trace]:
    """All that is kept, the one that ended first at the head."""
    return [_view(one) for one in sorted([*_singles, *_stepped], key=lambda one: one.end)]


def under_way() -> list[tuple[str, float]]:
    """The spans that are open now, the oldest first: name with attributes, age in seconds."""
    now = _now()
    told = []
    for one in sorted(_open, key=lambda one: one.start):
        words = [one.name, *(f"{key}={value}" for key, value in one.attributes.items())]
        told.append((" ".join(words), (now - one.start) / 1e9))
    return told


def epoch(monotonic: int) -> int:
    """A span's time as nanoseconds since the epoch."""
    return time.time_ns() - _now() + monotonic


def clear() -> None:
    """Forget all traces."""
    global _steps
    _singles.clear()
    _stepped.clear()
    _steps = 0


def _add(trace: span, step: tuple[Any, ...]) -> None:
    if trace.steps is None:
        trace.steps = [step]
    elif len(trace.steps) < STEPS_OF_ONE:
        trace.steps.append(step)
    else:
        trace.dropped += 1
        return
    if trace.end and sink is not None:  # the step outlived the call
        sink.ended(Trace(trace.trace_id, trace.sampled, [Record._make(step)], 0))


def _keep(trace: span) -> None:
    global _steps
    if sink is not None:
        sink.ended(_view(trace))
    if trace.steps is None:
        _singles.append(trace)
        return
    trace.kept = len(trace.steps)
    _stepped.append(trace)
    _steps += trace.kept
    while _steps > STEPS and len(_stepped) > 1:
        _steps -= _stepped.popleft().kept


def _text(exc: BaseException | None) -> str:
    return "" if exc is None else str(exc) or type(exc).__name__


def _view(trace: span) -> Trace:
    first = Record(
        trace.name, trace.id, trace.parent, trace.start, trace.end, trace.attributes, trace.error
    )
    steps = [Record._make(step) for step in trace.steps or ()]
    return Trace(trace.trace_id, trace.sampled, [first, *steps], trace.dropped)
