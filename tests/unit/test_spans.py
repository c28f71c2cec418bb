"""Spans and the ring they are kept in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cradled import spans
from cradled.spans import Trace, span

REMOTE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def empty() -> Iterator[None]:
    spans.clear()
    yield
    spans.clear()


class Served(spans.Call):
    """A transport's call."""

    __slots__ = ("metadata",)

    def __init__(self, metadata: dict[str, str]) -> None:
        self.metadata = metadata


class Sink:
    """An exporter that keeps what it is given."""

    def __init__(self) -> None:
        self.told: list[Trace] = []
        self.wanted = True

    def ended(self, trace: Trace, /) -> None:
        self.told.append(trace)

    def samples(self, trace_id: int, /) -> bool:
        return self.wanted


@contextmanager
def serving(traceparent: str = "") -> Iterator[None]:
    """As a transport does it: each call in a context of its own."""
    token = spans._current.set(None)
    one = Served({"traceparent": traceparent, "containerd-lease": "l"})
    one.open("served")
    try:
        yield
    finally:
        one.close()
        spans._current.reset(token)


def handed_on() -> str:
    """The ``traceparent`` that who is called next gets; empty for none."""
    return dict(spans.outgoing()).get("traceparent", "")


def the_trace() -> Trace:
    (trace,) = spans.traces()
    return trace


def test_steps_know_what_they_are_part_of() -> None:
    with span("outer", a=1):
        with span("first"), span("inner"):
            pass
        with span("second"):
            pass
    outer, inner, first, second = the_trace().spans
    assert [one.name for one in the_trace().spans] == ["outer", "inner", "first", "second"]
    assert outer.parent == 0
    assert outer.attributes == {"a": 1}
    assert first.parent == second.parent == outer.id
    assert inner.parent == first.id
    assert outer.start <= first.start <= inner.start <= inner.end <= first.end <= second.start
    assert second.end <= outer.end
    assert len({outer.id, inner.id, first.id, second.id}) == 4


def test_an_error_is_noted_and_goes_on() -> None:
    def fails() -> None:
        with span("outer"):
            with pytest.raises(KeyError), span("inner"):
                raise KeyError
            raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        fails()
    assert [one.error for one in the_trace().spans] == ["bad", "KeyError"]
    assert spans.current() is None


async def test_tasks_belong_to_the_span_that_made_them() -> None:
    async def work(name: str) -> None:
        with span(name):
            await asyncio.sleep(0)

    with span("outer"):
        await asyncio.gather(work("a"), work("b"))
    outer, *steps = the_trace().spans
    assert {one.name for one in steps} == {"a", "b"}
    assert {one.parent for one in steps} == {outer.id}


async def test_a_step_may_outlive_what_began_it() -> None:
    spans.sink = sink = Sink()
    release = asyncio.Event()

    async def late() -> None:
        with span("late"):
            await release.wait()

    try:
        with span("outer"):
            task = asyncio.create_task(late())
            await asyncio.sleep(0)
        release.set()
        await task
    finally:
        spans.sink = None
    assert [one.name for one in the_trace().spans] == ["outer", "late"]
    assert [[one.name for one in trace.spans] for trace in sink.told] == [["outer"], ["late"]]
    assert sink.told[0].id == sink.told[1].id


async def test_detached_work_is_a_trace_of_its_own() -> None:
    async def background() -> None:
        spans.detach()
        with span("background"):
            pass

    with span("outer"):
        await asyncio.create_task(background())
    assert [[one.name for one in trace.spans] for trace in spans.traces()] == [
        ["background"],
        ["outer"],
    ]


def test_what_another_thread_did_is_recorded_later() -> None:
    began = time.monotonic_ns()
    with span("outer") as outer:
        step = spans.record(outer, "write", began, began + 5, size=1)
    assert the_trace().spans[1] == ("write", step, outer.id, began, began + 5, {"size": 1}, "")


def test_a_call_begins_a_trace_whatever_is_open() -> None:
    with span("outer"), serving():
        assert spans.current() is not None
    inner, outer = spans.traces()
    assert inner.id != outer.id
    assert inner.spans[0].attributes == {"lease": "l"}
    assert inner.spans[0].parent == 0


def test_a_call_goes_on_with_its_callers_trace() -> None:
    with serving(REMOTE), span("step"):
        told = handed_on()
    trace = the_trace()
    assert trace.id == 0x0AF7651916CD43DD8448EB211C80319C
    assert trace.sampled is True
    assert trace.spans[0].parent == 0xB7AD6B7169203331
    assert told == f"00-{trace.id:032x}-{trace.spans[1].id:016x}-01"
    assert handed_on() == ""


def test_what_else_a_caller_passes_on() -> None:
    metadata = {"traceparent": REMOTE, "tracestate": "a=1", "baggage": "b=2", "other": "c"}
    token = spans._current.set(None)
    one = Served(metadata)
    one.open("served")
    with span("step"):
        told = dict(spans.outgoing())
    one.close()
    spans._current.reset(token)
    assert told.keys() == {"traceparent", "tracestate", "baggage"}
    assert (told["tracestate"], told["baggage"]) == ("a=1", "b=2")


@given(st.text() | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.?"))
def test_any_text_is_a_traceparent_or_none(value: str) -> None:
    parsed = spans.parse_traceparent(value)
    if parsed is not None:
        trace, parent, sampled = parsed
        assert value[3:52] == f"{trace:032x}-{parent:016x}"
        assert sampled == bool(int(value[53:55], 16) & 1)


def test_an_unsampled_caller_stays_unsampled() -> None:
    with serving(REMOTE[:-1] + "0"):
        assert handed_on().endswith("-00")
    assert the_trace().sampled is False


def test_what_nobody_follows_is_not_handed_on() -> None:
    with span("local"):
        assert handed_on() == ""
        spans.sink = sink = Sink()
        try:
            _, _, sampled = spans.parse_traceparent(handed_on()) or (0, 0, None)
            assert sampled is True
            sink.wanted = False
            assert handed_on().endswith("-00")
        finally:
            spans.sink = None


@pytest.mark.parametrize(
    "value",
    [
        "",
        "00",
        REMOTE + "-x",
        "ff" + REMOTE[2:],
        REMOTE.upper(),
        REMOTE.replace("0af7", "0ag7"),
        "00-" + "0" * 32 + "-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01",
        REMOTE[:-1],
        "\u0660\u0660" + REMOTE[2:],
    ],
)
def test_no_traceparents(value: str) -> None:
    assert spans.parse_traceparent(value) is None


def test_a_later_version_of_traceparent_may_have_more() -> None:
    assert spans.parse_traceparent("01" + REMOTE[2:] + "-what") is not None


def test_trace_ids_are_spread() -> None:
    for _ in range(100):
        with span("one"):
            pass
    ids = {trace.id for trace in spans.traces()}
    assert len(ids) == 100
    assert len({id >> 60 & 15 for id in ids}) > 8  # samplers look at the lower half's high bits


def test_the_ring_is_bounded_by_spans() -> None:
    for _ in range(spans.SINGLES + 10):
        with span("single"):
            pass
    for _ in range(spans.STEPS):
        with span("outer"), span("a"), span("b"):
            pass
    names = [trace.spans[0].name for trace in spans.traces()]
    assert names.count("single") == spans.SINGLES
    assert names.count("outer") == spans.STEPS // 2


def test_one_trace_is_bounded_too() -> None:
    with span("outer"):
        for _ in range(spans.STEPS_OF_ONE + 3):
            with span("step"):
                pass
    assert len(the_trace().spans) == 1 + spans.STEPS_OF_ONE
    assert the_trace().dropped == 3


def test_what_is_under_way() -> None:
    with span("outer", id="x"), span("inner"):
        told = spans.under_way()
    assert [name for name, _ in told] == ["outer id=x", "inner"]
    assert told[0][1] >= told[1][1] >= 0
    assert spans.under_way() == []


def test_calls_are_under_way_while_they_have_steps() -> None:
    with serving():
        assert spans.under_way() == []
        with span("step"):
            assert [name for name, _ in spans.under_way()] == ["served lease=l", "step"]


def test_times_since_the_epoch() -> None:
    now = time.monotonic_ns()
    assert abs(spans.epoch(now) - time.time_ns()) < 10**9
