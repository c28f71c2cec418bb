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
Of a call without steps not even its object is kept but what is in it, in columns: an object that
is given back after hundreds of others has left the caches, which costs more than all the rest.
"""

from __future__ import annotations

import os
import time
from array import array
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
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

_NOTHING: Mapping[str, str] = MappingProxyType({})

_now = time.monotonic_ns
_ids = count(int.from_bytes(os.urandom(8), "big") >> 1)  # never reaches 64 bits
_ID = (1 << 64) - 1
_PROCESS = int.from_bytes(os.urandom(8), "big") << 64
_SPREAD = 0x9E3779B97F4A7C15  # odd: makes of consecutive ids others far apart, all different

_current: ContextVar[Outermost | None] = ContextVar("span", default=None)
_get, _set = _current.get, _current.set
_open: set[Outermost] = set()
_singles: deque[Outermost] = deque(maxlen=SINGLES)
_brief_names = [""] * SINGLES
_brief_metadata: list[Mapping[str, str]] = [_NOTHING] * SINGLES
_brief_times = array("q", bytes(16 * SINGLES))
_brief_ids = array("Q", bytes(8 * SINGLES))
_brief_next = 0
_stepped: deque[Outermost] = deque()
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


class Outermost:
    """What is outermost in this process, with the steps under it: a trace in the making.

    Slots that not every trace needs are only set where it does.
    """

    __slots__ = ("dropped", "end", "error", "id", "kept", "name", "start", "steps")

    trace: Outermost | None = None
    """The outermost span; None for that one itself."""
    metadata: Mapping[str, str]
    name: str
    id: int
    start: int
    end: int
    error: str
    dropped: int
    kept: int
    steps: list[tuple[Any, ...]] | None

    @property
    def caller(self) -> tuple[int, int, bool | None]:
        """Trace and span of who called, and whether they are sampled; (0, 0, None) for nobody."""
        return 0, 0, None

    @property
    def attributes(self) -> dict[str, Any]:
        return {}

    @property
    def trace_id(self) -> int:
        outermost = self.trace or self
        return outermost.caller[0] or _trace_id(outermost.id)


class span(Outermost):
    """A step. An exception that leaves the block is noted and goes on."""

    __slots__ = ("_around", "_attributes", "parent", "started_by", "trace")
    started_by: tuple[int, int, bool]

    def __init__(self, name: str, /, **attributes: Any) -> None:
        self.name = name
        self._attributes = attributes
        self.id = next(_ids)

    @property
    def attributes(self) -> dict[str, Any]:
        return self._attributes

    @property
    def caller(self) -> tuple[int, int, bool | None]:
        return getattr(self, "started_by", (0, 0, None))

    def __enter__(self) -> span:
        around = self._around = _get()
        if around is None:
            self.trace = None
            self.steps = None
            self.end = 0
        else:
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
        step = (self.name, self.id, self.parent, self.start, end, self._attributes, _text(exc))
        if trace.steps is None or trace.end or len(trace.steps) >= STEPS_OF_ONE:
            _add(trace, step)
        else:
            trace.steps.append(step)


class Call(Outermost):
    """The outermost span whatever is open around it: what this process does for a caller.

    A transport's own object for the call is made one of these (one object less for each call).
    Of its metadata the caller's span is taken (``traceparent``), and the scope told, both when
    somebody looks.
    """

    __slots__ = ()

    def open(self, name: str) -> None:
        """It is open for the rest of the context that this is called in.

        Only ``close`` it in a context that nothing else goes on in.
        """
        self.name = name
        self.id = next(_ids)
        self.steps = None
        self.end = 0
        _set(self)
        self.start = _now()

    def close(self, exc: BaseException | None = None) -> None:
        global _brief_next
        self.end = end = _now()
        if exc is None and self.steps is None and sink is None:
            at = _brief_next
            _brief_next = (at + 1) % SINGLES
            _brief_names[at] = self.name
            _brief_metadata[at] = self.metadata
            _brief_times[2 * at] = self.start
            _brief_times[2 * at + 1] = end
            _brief_ids[at] = self.id
            return
        self.error = _text(exc)
        _keep(self)

    @property
    def caller(self) -> tuple[int, int, bool | None]:
        return _caller(self.metadata)

    @property
    def attributes(self) -> dict[str, Any]:
        return _scope(self.metadata)


def program(name: str, traceparent: str = "", /) -> span:
    """The outermost span of a program: those it calls go on with its trace.

    ``traceparent`` is that of who started it, or empty.
    """
    one = span(name)
    one.started_by = parse_traceparent(traceparent) or (0, 0, True)
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


def current() -> Outermost | None:
    """The innermost open span of this task."""
    return _get()


def detach() -> None:
    """What this task does from now on belongs to no span: for work that outlives what began it."""
    _set(None)


def record(parent: Outermost, name: str, start: int, end: int, /, **attributes: Any) -> int:
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
    trace_id, sampled = innermost.trace_id, outermost.caller[2]
    if sampled is None:
        if sink is None:
            return ()
        sampled = sink.samples(trace_id)
    parent = f"00-{trace_id:032x}-{innermost.id:016x}-{int(sampled):02x}"
    metadata = getattr(outermost, "metadata", _NOTHING)
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
    found = [_view(one) for one in (*_singles, *_stepped)]
    known = {trace.spans[0].id for trace in found}  # a step may outlive a call that had none
    found += [trace for trace in _brief() if trace.spans[0].id not in known]
    return sorted(found, key=lambda trace: trace.spans[0].end)


def under_way() -> list[tuple[str, float]]:
    """The steps that are open now and the calls they are part of, the oldest first: name with
    attributes, age in seconds."""
    now = _now()
    told = []
    above = {one.trace for one in _open if one.trace is not None and not one.trace.end}
    for one in sorted(_open | above, key=lambda one: one.start):
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
    for at in range(SINGLES):
        _brief_times[2 * at + 1] = 0
        _brief_metadata[at] = _NOTHING


def _add(trace: Outermost, step: tuple[Any, ...]) -> None:
    if trace.steps is None:
        trace.steps = [step]
        if trace.end and trace not in _singles:  # only what is in it was kept
            _keep_steps(trace)
    elif len(trace.steps) < STEPS_OF_ONE:
        trace.steps.append(step)
    else:
        trace.dropped = getattr(trace, "dropped", 0) + 1
        return
    if trace.end and sink is not None:  # the step outlived the call
        sink.ended(Trace(trace.trace_id, trace.caller[2], [Record._make(step)], 0))


def _keep(trace: Outermost) -> None:
    if sink is not None:
        sink.ended(_view(trace))
    if trace.steps is None:
        _singles.append(trace)
    else:
        _keep_steps(trace)


def _keep_steps(trace: Outermost) -> None:
    global _steps
    assert trace.steps is not None
    trace.kept = len(trace.steps)
    _stepped.append(trace)
    _steps += trace.kept
    while _steps > STEPS and len(_stepped) > 1:
        _steps -= _stepped.popleft().kept


def _trace_id(id: int) -> int:
    return _PROCESS | id * _SPREAD & _ID


def _caller(metadata: Mapping[str, str]) -> tuple[int, int, bool | None]:
    return parse_traceparent(metadata.get(TRACEPARENT, "")) or (0, 0, None)


def _scope(metadata: Mapping[str, str]) -> dict[str, Any]:
    return {told: metadata[key] for key, told in _SCOPE.items() if key in metadata}


def _brief() -> Iterator[Trace]:
    """The calls without steps."""
    starts, ends = _brief_times[::2], _brief_times[1::2]
    columns = (_brief_names, _brief_ids, starts, ends, _brief_metadata)
    for name, id, start, end, metadata in zip(*columns, strict=True):
        if end:
            trace, parent, sampled = _caller(metadata)
            only = Record(name, id, parent, start, end, _scope(metadata), "")
            yield Trace(trace or _trace_id(id), sampled, [only], 0)


def _text(exc: BaseException | None) -> str:
    return "" if exc is None else str(exc) or type(exc).__name__


def _view(trace: Outermost) -> Trace:
    _, parent, sampled = trace.caller
    error = getattr(trace, "error", "")
    first = Record(trace.name, trace.id, parent, trace.start, trace.end, trace.attributes, error)
    steps = [Record._make(step) for step in trace.steps or ()]
    return Trace(trace.trace_id, sampled, [first, *steps], getattr(trace, "dropped", 0))
