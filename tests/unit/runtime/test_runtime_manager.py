"""The task manager over shims without containers: what can go wrong between the two."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from harness.task_world import NS, World, until

from cradled import errors
from cradled.core.containers import Container, Runtime
from cradled.core.events import Envelope
from cradled.core.scope import Scope
from cradled.core.tasks import Exit, Status, Stdio
from cradled.core.values import AnyValue
from cradled.events import topics
from cradled.runtime.recovery import Facts, Verdict, judge
from cradled.runtime.shim_client import ShimClient
from cradled.runtime.timeouts import Timeouts


async def test_calls_of_a_life(world: World) -> None:
    pid = await world.create("a", stdio=Stdio("i", "o", "e", True))
    shim = world.shims.shims["a"]
    await world.manager.start(NS, "a")
    (process,) = await world.manager.list(NS)
    assert (process.pid, process.status) == (pid, Status.RUNNING)
    assert process.stdio == Stdio("i", "o", "e", True)
    assert await world.manager.list(Scope("other")) == []
    waits = [asyncio.create_task(world.manager.wait(NS, "a")) for _ in range(5)]
    await asyncio.sleep(0)
    end = shim.exit("a", 3)
    assert {await wait for wait in waits} == {end}
    (process,) = await world.manager.list(NS)
    assert (process.status, process.exit_status) == (Status.STOPPED, 3)
    assert await world.manager.delete(NS, "a") == end
    assert shim.calls == ["create", "wait", "start", "delete", "shutdown"]
    assert shim.namespaces == {"ns"}
    assert world.bundles() == []


async def test_a_shim_of_version_2(world: World) -> None:
    world.shims.version = 2
    await world.create("a")
    await world.restart()
    assert [p.status for p in await world.manager.list(NS)] == [Status.CREATED]
    await world.manager.delete(NS, "a")


async def test_an_exit_event_is_enough(world: World) -> None:
    world.shims.script["wait"] = asyncio.Event().wait  # Wait never answers
    pid = await world.create("a")
    waiting = asyncio.create_task(world.manager.wait(NS, "a"))
    await asyncio.sleep(0)
    end = Exit(pid, 9, 12345)
    for process_id in ("a", "exec"):
        world.manager.forward(Envelope(1, "ns", *topics.task_exited("a", process_id, end)))
    assert await waiting == end
    assert world.told() == ["/tasks/exit"] * 2
    world.manager.forward(Envelope(1, "ns", *topics.task_exited("other", "other", end)))
    assert world.told() == ["/tasks/exit"] * 3


@pytest.mark.parametrize("step", ["start", "create"])
async def test_a_failing_step_leaves_nothing(world: World, step: str) -> None:
    async def fail() -> None:
        raise errors.PermissionDenied("not you")

    if step == "start":
        world.shims.broken = True
        expected: Any = pytest.raises(errors.Unavailable, match="no shim today")
    else:
        world.shims.script["create"] = fail
        expected = pytest.raises(
            errors.PermissionDenied,
            match=r"^failed to create shim task: not you: permission denied$",
        )
    with expected:
        await world.create("a")
    assert world.bundles() == []
    assert await world.manager.list(NS) == []
    if step == "create":
        assert world.shims.shims["a"].calls == ["create", "delete", "shutdown"]
        assert world.shims.deleted == []
        await until(lambda: not Path(world.shims.shims["a"].path).exists())


async def test_a_shim_that_dies_while_it_creates(world: World) -> None:
    async def die() -> None:
        asyncio.get_running_loop().create_task(world.shims.shims["a"].die())
        await asyncio.Event().wait()

    world.shims.script["create"] = die
    with pytest.raises(errors.Error, match=r"^failed to create shim task: ttrpc: closed$"):
        await world.create("a")
    assert world.shims.deleted == ["a"]
    assert world.bundles() == []
    assert world.events == []


async def test_an_unknown_runtime_touches_nothing(world: World) -> None:
    world.containers["a"] = Container("a", runtime=Runtime("unknown"))
    with pytest.raises(errors.Error, match="invalid runtime name"):
        await world.create("a")
    assert world.bundles() == []
    await world.create("a", runtime="known")  # the request's own word counts


async def test_a_caller_that_hangs_up_leaves_nothing(world: World) -> None:
    entered, release = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        entered.set()
        await release.wait()

    world.shims.script["create"] = slow
    creation = asyncio.create_task(world.create("a"))
    await entered.wait()
    creation.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creation
    again = asyncio.create_task(world.create("a"))  # in the way of the first, not an error for it
    release.set()
    with pytest.raises(errors.AlreadyExists):
        await again
    await until(lambda: not world.bundles())
    assert await world.manager.list(NS) == []


async def test_a_lost_shim(world: World) -> None:
    pid = await world.create("a")
    await world.manager.start(NS, "a")
    waiting = asyncio.create_task(world.manager.wait(NS, "a"))
    await asyncio.sleep(0)
    await world.shims.shims["a"].die()
    with pytest.raises(errors.Error, match=r"^ttrpc: closed$"):
        await waiting
    await until(lambda: not world.bundles())
    assert world.told() == ["/tasks/exit", "/tasks/delete"]
    told = topics.read_task_exit(world.events[0].event)
    assert told == ("a", "a", Exit(pid, 137, 5))
    with pytest.raises(errors.NotFound):
        await world.manager.get(NS, "a")


async def test_a_lost_shim_whose_exit_was_told(world: World) -> None:
    pid = await world.create("a")
    end = Exit(pid, 0, 1)
    world.manager.forward(Envelope(1, "ns", *topics.task_exited("a", "a", end)))
    await world.shims.shims["a"].die()
    await until(lambda: not world.bundles())
    assert world.told() == ["/tasks/exit", "/tasks/delete"]


async def test_a_lost_shim_that_nothing_cleans_up_after(world: World) -> None:
    await world.create("a")
    world.shims.broken = True
    await world.shims.shims["a"].die()
    await until(lambda: not world.bundles())
    told = topics.read_task_exit(world.events[0].event)
    assert told is not None
    assert told[2].status == 255


async def test_a_lost_shim_while_its_task_is_deleted(world: World) -> None:
    await world.create("a")

    async def die() -> None:
        asyncio.get_running_loop().create_task(world.shims.shims["a"].die())
        await asyncio.Event().wait()

    world.shims.shims["a"].script["delete"] = die
    with pytest.raises(errors.Error, match="ttrpc: closed"):
        await world.manager.delete(NS, "a")
    await until(lambda: not world.bundles())
    assert world.told() == ["/tasks/exit", "/tasks/delete"]


async def test_a_deletion_that_got_stuck_half_way_is_finished(world: World) -> None:
    await world.create("a")
    del world.shims.shims["a"].processes["a", ""]
    with pytest.raises(errors.NotFound, match="container not created"):
        await world.manager.delete(NS, "a")
    assert world.bundles() == []
    assert await world.manager.list(NS) == []


async def test_two_deletions_at_once(world: World) -> None:
    await world.create("a")
    results = await asyncio.gather(
        *(world.manager.delete(NS, "a") for _ in range(2)), return_exceptions=True
    )
    assert sorted(type(r).__name__ for r in results) == ["Exit", "NotFound"]


async def test_execs_are_waited_for_once(world: World) -> None:
    await world.create("a")
    shim = world.shims.shims["a"]
    await world.manager.start(NS, "a")
    await world.manager.exec(NS, "a", "x", Stdio(), AnyValue("p"))
    pid = await world.manager.start(NS, "a", "x")
    waits = [asyncio.create_task(world.manager.wait(NS, "a", "x")) for _ in range(3)]
    await asyncio.sleep(0)
    waits[0].cancel()
    await until(lambda: shim.calls.count("wait") == 2)
    end = shim.exit("a", 4, "x")
    assert await waits[1] == await waits[2] == end
    assert end.pid == pid
    await world.manager.delete_process(NS, "a", "x")
    with pytest.raises(errors.NotFound):
        await world.manager.wait(NS, "a", "x")
    await world.manager.exec(NS, "a", "x", Stdio(), AnyValue("p"))
    assert (await world.manager.get(NS, "a", "x")).status == Status.CREATED


async def test_metrics_leave_out_what_fails(world: World) -> None:
    async def fail() -> None:
        raise errors.NotFound("cgroup does not exist")

    for id in "abc":
        await world.create(id)
    world.shims.shims["b"].script["stats"] = fail
    found = await world.manager.metrics(NS, [])
    assert [(id, value) for id, _, value in found] == [
        ("a", AnyValue("stats", b"1")),
        ("c", AnyValue("stats", b"1")),
    ]
    with pytest.raises(errors.InvalidArgument):
        await world.manager.metrics(NS, ["=="])


async def test_what_is_not_there(world: World) -> None:
    manager = world.manager
    for call in (
        manager.start(NS, "a"),
        manager.delete(NS, "a"),
        manager.delete_process(NS, "a", "x"),
        manager.get(NS, "a"),
        manager.wait(NS, "a"),
        manager.kill(NS, "a", 9),
        manager.exec(NS, "a", "x", Stdio(), AnyValue("p")),
        manager.close_io(NS, "a", "", True),
        manager.resize_pty(NS, "a", "", 1, 1),
        manager.pause(NS, "a"),
        manager.resume(NS, "a"),
        manager.pids(NS, "a"),
        manager.update(NS, "a", AnyValue("r"), {}),
        manager.checkpoint(NS, "a", None),
    ):
        with pytest.raises(errors.NotFound, match=r"^task a not found$"):
            await call


async def test_restart_keeps_what_lives(world: World) -> None:
    for id in "abc":
        await world.create(id, stdio=Stdio("", id))
    await world.manager.start(NS, "b")
    end = world.shims.shims["c"].exit("c", 6)
    await world.restart(told={("ns", "c", "c", end.pid)})
    found = {p.id: p for p in await world.manager.list(NS)}
    assert [found[id].status for id in "abc"] == [
        Status.CREATED, Status.RUNNING, Status.STOPPED,
    ]  # fmt: skip
    assert found["a"].stdio == Stdio("", "a")
    assert await world.manager.wait(NS, "c") == end
    # Its shim tells it again, having had no answer before.
    world.manager.forward(Envelope(1, "ns", *topics.task_exited("c", "c", end)))
    assert world.events == []


async def test_restart_reaps_dismisses_and_discards(world: World) -> None:
    for id in "abc":
        await world.create(id)
    await world.manager.aclose()
    await world.shims.shims["a"].die()
    del world.shims.shims["b"].processes["b", ""]
    for name in ("bootstrap.json", "shim-binary-path"):
        (world.directory / "state" / "ns" / "c" / name).unlink()
    world.manager = world.make()
    await world.manager.recover()
    assert await world.manager.list(NS) == []
    assert world.bundles() == []
    assert world.told() == ["/tasks/exit", "/tasks/delete"]  # of a: it was created
    assert world.shims.deleted == ["a"]


async def test_a_hanging_shim_does_not_hold_up_the_others(world: World) -> None:
    world.shims.timeouts = Timeouts(load=0.1)
    for id in "ab":
        await world.create(id)
    world.shims.shims["a"].script["connect"] = asyncio.Event().wait
    await world.restart()
    assert [p.id for p in await world.manager.list(NS)] == ["b"]
    assert world.shims.deleted == ["a"]


async def test_shims_that_do_not_answer_in_time(world: World) -> None:
    world.shims.timeouts = Timeouts(state=0.1, stats=0.1, shutdown=0.1)
    await world.restart()
    for id in "ab":
        await world.create(id)
    for call in ("state", "stats", "shutdown"):
        world.shims.shims["a"].script[call] = asyncio.Event().wait
    with pytest.raises(errors.DeadlineExceeded):
        await world.manager.get(NS, "a")
    assert [id for id, _, _ in await world.manager.metrics(NS, [])] == ["b"]
    await world.manager.delete(NS, "a")
    assert [p.id for p in await world.manager.list(NS)] == ["b"]


async def test_closing_ends_waits_and_leaves_tasks(world: World) -> None:
    await world.create("a")
    waiting = asyncio.create_task(world.manager.wait(NS, "a"))
    await asyncio.sleep(0)
    await world.manager.aclose()
    with pytest.raises(errors.Error, match="ttrpc: closed"):
        await waiting
    assert world.shims.shims["a"].processes
    assert world.events == []


def test_verdicts() -> None:
    client: Any = object.__new__(ShimClient)
    process: Any = object()
    bundle: Any = object()
    assert judge(Facts(bundle)) is Verdict.DISCARD
    assert judge(Facts(bundle, program="/x")) is Verdict.REAP
    assert judge(Facts(bundle, program="/x", client=client)) is Verdict.DISMISS
    assert judge(Facts(bundle, program="/x", client=client, process=process)) is Verdict.KEEP
    orphan = Facts(bundle, program="/x", client=client, is_orphan=True)
    assert judge(orphan) is Verdict.REAP
