"""Locks by key, and what is told of them."""

from __future__ import annotations

import asyncio

import pytest

from cradled import spans
from cradled.aio import keyed_lock
from cradled.aio.keyed_lock import KeyedLock


async def test_who_holds_and_who_waits_is_told() -> None:
    locks: KeyedLock[tuple[str, str]] = KeyedLock("task")
    release = asyncio.Event()

    async def hold() -> None:
        with spans.span("create"):
            async with locks(("ns", "a")):
                await release.wait()

    tasks = [asyncio.create_task(hold(), name=f"t{n}") for n in range(3)]
    await asyncio.sleep(0)
    (held,) = locks.held()
    assert ("task", "('ns', 'a')") in [one[:2] for one in keyed_lock.held()]
    assert (held.lock, held.key, held.holder) == ("task", "('ns', 'a')", "create")
    assert held.age >= 0
    assert len(held.waiting) == 2
    assert all(age >= 0 for age in held.waiting)
    waits = keyed_lock.WAITS.count
    release.set()
    await asyncio.gather(*tasks)
    assert keyed_lock.WAITS.count == waits + 2  # the first one's is in already
    assert locks.held() == []
    assert len(locks) == 0


async def test_without_a_span_the_task_is_the_holder() -> None:
    locks: KeyedLock[str] = KeyedLock("x")

    async def hold() -> str:
        async with locks("k"):
            return locks.held()[0].holder

    assert await asyncio.create_task(hold(), name="worker") == "worker"


async def test_who_gives_up_waiting_is_forgotten() -> None:
    locks: KeyedLock[str] = KeyedLock("x")
    async with locks("k"):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001), locks("k"):
                pass
        assert locks.held()[0].waiting == ()
    assert len(locks) == 0


async def test_an_error_frees_the_lock() -> None:
    locks: KeyedLock[str] = KeyedLock("x")
    with pytest.raises(KeyError):
        async with locks("k"):
            raise KeyError
    async with locks("k"):
        assert len(locks) == 1
    assert len(locks) == 0


async def test_a_wait_is_a_step_of_who_waits() -> None:
    locks: KeyedLock[str] = KeyedLock("task")
    release = asyncio.Event()

    async def hold(name: str) -> None:
        with spans.span(name):
            async with locks("k"):
                await release.wait()

    spans.clear()
    tasks = [asyncio.create_task(hold(name)) for name in ("first", "second")]
    await asyncio.sleep(0)
    release.set()
    await asyncio.gather(*tasks)
    first, second = sorted(spans.traces(), key=lambda trace: trace.spans[0].name)
    assert [one.name for one in first.spans] == ["first"]
    assert [one.name for one in second.spans] == ["second", "lock.wait"]
    outer, wait = second.spans
    assert wait.attributes == {"lock": "task"}
    assert outer.start - 1000 <= wait.start <= wait.end <= outer.end + 1000  # of a float's grain
