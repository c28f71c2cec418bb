import asyncio
from typing import Any

import pytest

from cradled.aio import undo as undo_module
from cradled.aio.keyed_lock import KeyedLock
from cradled.aio.undo import Undo


async def fail(*steps: Any) -> None:
    async with Undo() as undo:
        for step in steps:
            undo.push(*step)
        raise KeyError


async def test_steps_run_last_first_on_failure_only() -> None:
    done: list[str] = []

    async def step(name: str) -> None:
        done.append(name)

    async with Undo() as undo:
        undo.push("one", step, "one")
        undo.commit()
    assert done == []
    with pytest.raises(KeyError):
        await fail(("one", step, "one"), ("two", step, "two"))
    assert done == ["two", "one"]


async def test_a_failing_step_is_noted_and_hides_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(undo_module, "STEP_SECONDS", 0.01)
    done: list[str] = []

    async def good() -> None:
        done.append("good")

    async def bad() -> None:
        raise ValueError("no")

    async def stuck() -> None:
        await asyncio.Event().wait()

    with pytest.raises(KeyError) as caught:
        await fail(("good", good), ("bad", bad), ("stuck", stuck))
    assert done == ["good"]
    assert caught.value.__notes__ == [
        "stuck failed: TimeoutError()",
        "bad failed: ValueError('no')",
    ]


async def test_steps_run_to_their_end_when_cancelled() -> None:
    entered, release, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def step() -> None:
        entered.set()
        await release.wait()
        done.set()

    task = asyncio.create_task(fail(("step", step)))
    await entered.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done.is_set()


async def test_keys_are_locked_apart_and_forgotten() -> None:
    locks: KeyedLock[str] = KeyedLock("test")
    order: list[str] = []

    async def work(key: str, name: str, gate: asyncio.Event) -> None:
        async with locks(key):
            order.append(name)
            await gate.wait()

    gate = asyncio.Event()
    tasks = [
        asyncio.create_task(work(key, name, gate))
        for key, name in (("a", "a1"), ("a", "a2"), ("b", "b1"))
    ]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert order == ["a1", "b1"]
    assert len(locks) == 2
    tasks[1].cancel()
    gate.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert len(locks) == 0
