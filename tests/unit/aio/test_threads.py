"""The thread pools: results, errors, cancellation, size, closing."""
# ruff: noqa: ASYNC110 - what is waited for happens in threads

import asyncio
import threading
from collections.abc import Iterator

import pytest

from cradled import spans
from cradled.aio import lag, threads


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    threads.close()
    assert {t for t in threading.enumerate() if t.name.startswith("cradled-")} <= before


async def test_result_and_error_come_back() -> None:
    assert await threads.run("fs", divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await threads.run("fs", divmod, 7, 0)


async def test_threads_start_as_needed_and_not_more() -> None:
    gate = threading.Event()
    names: set[str] = set()

    def wait() -> None:
        names.add(threading.current_thread().name)
        gate.wait()

    jobs = [asyncio.ensure_future(threads.run("mount", wait)) for _ in range(20)]
    while len(names) < threads.SIZES["mount"]:
        await asyncio.sleep(0)
    assert len(threads.operations()) == threads.SIZES["mount"]
    assert threads.operations()[0].pool == "mount"
    assert threads.operations()[0].name.endswith("wait")
    gate.set()
    await asyncio.gather(*jobs)
    assert len(names) == threads.SIZES["mount"]
    assert threads.operations() == []


async def test_cancelling_waits_for_what_was_begun() -> None:
    started, gate = threading.Event(), threading.Event()
    log = []

    def work() -> None:
        started.set()
        gate.wait()
        log.append("worked")

    async def caller() -> None:
        try:
            await threads.run("fs", work)
        finally:
            log.append("released")

    task = asyncio.ensure_future(caller())
    while not started.is_set():
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log == ["worked", "released"]


async def test_cancelling_withdraws_what_was_not_begun() -> None:
    gate = threading.Event()
    busy = [
        asyncio.ensure_future(threads.run("mount", gate.wait))
        for _ in range(threads.SIZES["mount"])
    ]
    while len(threads.operations()) < threads.SIZES["mount"]:
        await asyncio.sleep(0)
    ran = threading.Event()
    waiting = asyncio.ensure_future(threads.run("mount", ran.set))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    gate.set()
    await asyncio.gather(*busy)
    await threads.run("mount", int)
    assert not ran.is_set()


async def test_a_pool_works_again_after_close() -> None:
    await threads.run("fs", int)
    threads.close()
    assert await threads.run("fs", int, "3") == 3


def test_a_pool_serves_one_loop_after_the_other() -> None:
    for number in range(3):
        assert asyncio.run(threads.run("fs", int, str(number))) == number


async def test_a_milestone_is_passed_before_the_end() -> None:
    gate = threading.Event()
    passed = threads.Milestone()

    def work() -> str:
        passed.reach()
        gate.wait()
        return "done"

    call = threads.begin("fs", work)
    await passed.passed()
    assert not call.finished
    gate.set()
    assert await call.result() == "done"


async def test_how_long_calls_wait_and_how_late_the_loop_is() -> None:
    gate = threading.Event()
    late = lag.LATE.count
    size = threads.SIZES["mount"]
    with spans.span("unmounting"):
        jobs = [asyncio.ensure_future(threads.run("mount", gate.wait)) for _ in range(size + 3)]
        while len(threads.operations()) < size:
            await asyncio.sleep(0)
    load = threads.loads()["mount"]
    assert load[:2] == (size, size + 3)
    assert {one.cause for one in threads.operations()} == {"unmounting"}
    assert load.waits.count == 0
    gate.set()
    await asyncio.gather(*jobs)
    load = threads.loads()["mount"]
    assert load.calls == 0
    assert load.waits.count == size + 3
    assert lag.LATE.count == late + size + 3


async def test_a_long_wait_for_a_thread_is_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "WORTH_TELLING", 0.0)
    spans.clear()
    with spans.span("work"):
        await threads.run("fs", int)
    (trace,) = spans.traces()
    assert [one.name for one in trace.spans] == ["work", "thread.wait"]
    assert trace.spans[1].attributes == {"call": "int"}


async def test_a_call_that_was_withdrawn_did_not_wait() -> None:
    gate = threading.Event()
    jobs = [asyncio.ensure_future(threads.run("mount", gate.wait)) for _ in range(5)]
    while len(threads.operations()) < threads.SIZES["mount"]:
        await asyncio.sleep(0)
    jobs[-1].cancel()
    await asyncio.wait(jobs[-1:])  # no thread may come first
    gate.set()
    await asyncio.gather(*jobs, return_exceptions=True)
    await threads.run("mount", int)
    assert threads.loads()["mount"].waits.count == 5


async def test_calls_of_a_lane_run_in_turn() -> None:
    lane = threads.Lane("fs")
    gate = threading.Event()
    ran: list[int] = []

    def work(number: int) -> None:
        gate.wait()
        ran.append(number)
        if number == 1:
            raise ZeroDivisionError

    calls = [lane.begin(work, number) for number in range(50)]
    gate.set()
    await calls[-1].result()
    assert ran == list(range(50))
    assert all(call.finished for call in calls)
    with pytest.raises(ZeroDivisionError):
        await calls[1].result()
    assert await lane.begin(int, "3").result() == 3


async def test_a_lane_goes_past_what_was_withdrawn() -> None:
    lane = threads.Lane("fs")
    gate = threading.Event()
    first = lane.begin(gate.wait)
    ran = threading.Event()
    second = asyncio.ensure_future(lane.begin(ran.set).result())
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    gate.set()
    await first.result()
    assert await lane.begin(int, "3").result() == 3
    assert not ran.is_set()
