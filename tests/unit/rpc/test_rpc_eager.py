"""Coroutines that are started by hand."""

import asyncio
import contextvars

import pytest

from cradled.rpc.eager import Starter

VARIABLE = contextvars.ContextVar("variable", default=0)


@pytest.fixture
async def start():
    """Start a coroutine as a protocol would: from a callback of the loop."""
    loop = asyncio.get_running_loop()
    starter = Starter(loop)

    async def start(coro):
        started = loop.create_future()
        loop.call_soon(lambda: started.set_result(starter.start(coro)))
        return await started

    start.starter = starter
    yield start
    starter.close()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_what_does_not_suspend_is_no_task(start):
    seen = []

    async def work():
        seen.append(asyncio.current_task())

    for _ in range(3):
        assert await start(work()) is None
    assert len(set(seen)) == 1


async def test_the_task_is_the_same_before_and_after(start):
    seen = []

    async def work():
        for _ in range(3):
            seen.append(asyncio.current_task())
            await asyncio.sleep(0)

    task = await start(work())
    await task
    assert set(seen) == {task}
    assert len(seen) == 3


async def test_each_has_its_own_context(start):
    seen = []

    async def work(suspend):
        seen.append(VARIABLE.get())
        VARIABLE.set(7)
        if suspend:
            await asyncio.sleep(0)
            seen.append(VARIABLE.get())

    await start(work(False))
    await start(work(False))
    await (await start(work(True)))
    assert seen == [0, 0, 0, 7]


async def test_timeouts_and_groups_work_in_the_first_step(start):
    done = []

    async def child():
        await asyncio.sleep(0)
        done.append("child")

    async def work():
        async with asyncio.TaskGroup() as group:
            group.create_task(child())
        try:
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        except TimeoutError:
            done.append("timeout")

    await (await start(work()))
    assert done == ["child", "timeout"]


@pytest.mark.parametrize("turns", [0, 1, 5])
async def test_cancel_at_any_time(start, turns):
    seen = []
    inner = asyncio.ensure_future(asyncio.Event().wait())

    async def work():
        try:
            await inner
        except asyncio.CancelledError:
            seen.append("cancelled")
            await asyncio.sleep(0)
            seen.append("cleaned up")
            raise

    loop = asyncio.get_running_loop()
    started = loop.create_future()

    def begin():
        task = start.starter.start(work())
        if turns == 0:
            task.cancel()  # before the host has had its first turn
        started.set_result(task)

    loop.call_soon(begin)
    task = await started
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["cancelled", "cleaned up"]
    assert inner.cancelled()


@pytest.mark.parametrize("awaits", ["what has come", "nothing"])
async def test_cancel_before_the_host_has_had_its_turn_is_not_lost(start, awaits):
    """Nothing it awaits could take the cancellation: the coroutine has to hear of it itself."""
    loop = asyncio.get_running_loop()
    ready, started = loop.create_future(), loop.create_future()
    seen = []

    async def work():
        try:
            await (ready if awaits == "what has come" else asyncio.sleep(0))
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            await asyncio.sleep(0)
            seen.append("cleaned up")
            raise

    def begin():
        task = start.starter.start(work())
        ready.set_result(None)
        task.cancel()
        started.set_result(task)

    loop.call_soon(begin)
    task = await started
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(5):
            await task
    assert seen == ["cancelled", "cleaned up"]


async def test_a_coroutine_that_cancels_its_task_and_ends_does_no_harm(start):
    seen = []

    async def rude():
        asyncio.current_task().cancel()

    async def polite():
        await asyncio.sleep(0)
        seen.append("done")

    await start(rude())
    task = await start(polite())
    await task
    assert seen == ["done"]


async def test_what_the_first_step_raises_is_raised(start):
    async def work():
        raise ZeroDivisionError

    loop = asyncio.get_running_loop()
    raised = loop.create_future()

    def begin():
        try:
            start.starter.start(work())
        except ZeroDivisionError as error:
            raised.set_result(error)

    loop.call_soon(begin)
    assert isinstance(await raised, ZeroDivisionError)


async def test_what_later_steps_raise_is_the_tasks(start):
    async def work():
        await asyncio.sleep(0)
        raise ZeroDivisionError

    task = await start(work())
    with pytest.raises(ZeroDivisionError):
        await task
