"""A shim that goes wrong at one of its calls: an error in time, the truth afterwards, the neighbour
served all the while, and nothing left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from harness.faults import FAULTS, script
from harness.task_world import NS, World, until

from cradled import errors
from cradled.core.tasks import Status, Stdio
from cradled.core.values import AnyValue
from cradled.runtime.timeouts import Timeouts

PATIENCE = 0.05
FATAL = {"dies", "stops half way", "babbles"}
"""What takes the connection with it."""

HARMLESS = {"floods"}

ANY = AnyValue("x")

# Others are handed on as these are.
CALLS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "start": lambda tasks: tasks.start(NS, "a"),
    "delete": lambda tasks: tasks.delete(NS, "a"),
    "exec": lambda tasks: tasks.exec(NS, "a", "x", Stdio(), ANY),
    "kill": lambda tasks: tasks.kill(NS, "a", 9),
    "state": lambda tasks: tasks.get(NS, "a"),
    "pids": lambda tasks: tasks.pids(NS, "a"),
    "checkpoint": lambda tasks: tasks.checkpoint(NS, "a", None),
    "wait": lambda tasks: tasks.wait(NS, "a", "x"),
}
PAIRS = [
    (rpc, fault)
    for rpc in CALLS
    for fault in FAULTS
    if (rpc, fault) != ("wait", "stops half way")  # an answer that never comes has no half
]
OF_NOTHING = {"kill", "exec", "checkpoint"}
"""Calls whose answer is empty: bytes that are none are unknown fields, or noticed."""


@pytest.fixture
async def faulty(world: World, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """With tasks ``a``, whose shim will go wrong, and ``b``; nothing may be left of both."""
    for name in ("TAKE_BACK_SECONDS", "GIVE_UP_SECONDS"):
        monkeypatch.setattr(f"cradled.runtime.manager.{name}", PATIENCE)
    world.shims.wires = {}
    world.shims.timeouts = Timeouts(shutdown=0.1, state=None, stats=None)
    await world.restart()
    await world.create("b")
    yield world
    if world.bundles().count("a"):
        with suppress(errors.NotFound):
            await world.manager.kill(NS, "a", 9)
        await world.manager.delete(NS, "a")
    await world.manager.delete(NS, "b")
    assert world.bundles() == []
    await world.manager.aclose()
    others = [t for t in asyncio.all_tasks() if "cradled/runtime" in str(t.get_coro())]
    assert others == []


def hangs(rpc: str, fault: str) -> bool:
    """Whether no answer will ever come."""
    if rpc == "wait" and fault in HARMLESS:
        return True  # nothing has ended
    return fault == "hangs"


def arm(world: World, rpc: str, fault: str) -> None:
    shim = world.shims.shims["a"]
    assert world.shims.wires is not None
    shim.script[rpc] = script(fault, shim, world.shims.wires["a"])


async def neighbour_is_served(world: World) -> None:
    async with asyncio.timeout(10):
        assert (await world.manager.get(NS, "b")).status == Status.CREATED


async def asked(call: Awaitable[Any], patience: float = PATIENCE) -> None:
    """A client asks, and does not wait for ever."""
    async with asyncio.timeout(patience):
        await call


@pytest.mark.parametrize(("rpc", "fault"), PAIRS)
async def test_calls(faulty: World, rpc: str, fault: str) -> None:
    world = faulty
    await world.create("a")
    if rpc == "wait":
        await world.manager.exec(NS, "a", "x", Stdio(), ANY)
    arm(world, rpc, fault)
    patience = PATIENCE if hangs(rpc, fault) else 10
    asking = asyncio.ensure_future(asked(CALLS[rpc](world.manager), patience))
    await neighbour_is_served(world)
    if fault in HARMLESS:
        await _harmless(asking, rpc)
    elif not (fault == "lies" and rpc in OF_NOTHING):
        with pytest.raises((errors.Error, TimeoutError)):
            await asking
    else:
        await asyncio.wait([asking])
        assert asking.exception() is None or isinstance(asking.exception(), errors.Error)
    world.shims.shims["a"].script.clear()
    await neighbour_is_served(world)
    if fault in FATAL:
        await until(lambda: world.bundles().count("a") == 0)
        assert world.told() == ["/tasks/exit", "/tasks/delete"]
        assert world.shims.deleted == ["a"]
    elif rpc != "delete" or fault in ("refuses", "lies"):
        assert (await world.manager.get(NS, "a")).id == "a"
        assert world.told() == []


async def _harmless(asking: asyncio.Future[None], rpc: str) -> None:
    if rpc == "wait":  # nothing has ended
        with pytest.raises(TimeoutError):
            await asking
    elif rpc == "checkpoint":
        await asyncio.wait([asking])
    else:
        await asking


@pytest.mark.parametrize("fault", FAULTS)
async def test_creation(faulty: World, fault: str) -> None:
    world = faulty
    entered = asyncio.Event()

    async def arm_when_called() -> Any:
        entered.set()
        shim = world.shims.shims["a"]
        assert world.shims.wires is not None
        return await script(fault, shim, world.shims.wires["a"])()

    world.shims.script["create"] = arm_when_called
    patience = PATIENCE if hangs("create", fault) else 10
    creating = asyncio.ensure_future(asked(world.create("a"), patience))
    await entered.wait()
    await neighbour_is_served(world)
    if fault in HARMLESS:
        assert (await asyncio.gather(creating, return_exceptions=True))[0] is None
        return
    with pytest.raises(TimeoutError if hangs("create", fault) else errors.Error):
        await creating
    await until(lambda: world.bundles().count("a") == 0)
    assert world.told() == []


@pytest.mark.parametrize("fault", FAULTS)
async def test_metrics(faulty: World, fault: str) -> None:
    world = faulty
    await world.create("a")
    if hangs("stats", fault):
        world.shims.timeouts = Timeouts(shutdown=0.1, stats=1.0)
        await world.restart()
    arm(world, "stats", fault)
    found = [id for id, _, _ in await world.manager.metrics(NS, [])]
    assert sorted(found) == (["a", "b"] if fault in HARMLESS else ["b"])
    if fault in FATAL:
        await until(lambda: world.bundles().count("a") == 0)


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_shim_that_goes_wrong_as_it_goes(faulty: World, fault: str) -> None:
    world = faulty
    await world.create("a")
    arm(world, "shutdown", fault)
    await world.manager.delete(NS, "a")
    assert world.bundles().count("a") == 0
    assert world.told() == []


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_shim_that_goes_wrong_when_the_daemon_is_back(faulty: World, fault: str) -> None:
    world = faulty
    world.shims.timeouts = Timeouts(load=1.0 if hangs("connect", fault) else None, shutdown=0.1)
    await world.create("a")
    arm(world, "connect", fault)
    await world.restart()
    world.shims.shims["a"].script.clear()
    await neighbour_is_served(world)
    alive = sorted(process.id for process in await world.manager.list(NS))
    if fault in HARMLESS:
        assert alive == ["a", "b"]
    else:
        assert alive == ["b"]
        assert world.told() == ["/tasks/exit", "/tasks/delete"]


async def test_a_deletion_that_nobody_waits_for_any_more(faulty: World) -> None:
    """It does not keep the name for ever."""
    world = faulty
    await world.create("a")
    arm(world, "delete", "hangs")
    with pytest.raises(TimeoutError):
        await asked(world.manager.delete(NS, "a"))
    world.shims.shims["a"].script.clear()
    async with asyncio.timeout(10):
        await world.manager.delete(NS, "a")
    assert Path(world.shims.shims["a"].path).exists() is False
