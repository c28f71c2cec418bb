"""A daemon that goes without a word and comes back: what it finds, tells and removes."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest
from harness.tasks import GO, OWN, Node, running

from cradled import errors
from cradled.aio.undo import Undo
from cradled.core.tasks import Status
from cradled.runtime.bootstrap import Bootstrap
from cradled.runtime.bundle import Bundle

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
has_go_shim = pytest.mark.skipif(not os.path.exists(GO), reason="needs containerd's runc shim")

FOREVER = ("/bin/sleep", "1000")
LIFE = ("create", "start", "exit", "delete")


@pytest.fixture(params=[OWN, pytest.param(GO, marks=has_go_shim)], ids=["own", "go"])
async def node(request: pytest.FixtureRequest) -> AsyncIterator[Node]:
    async with running(request.param) as node:
        yield node


@pytest.fixture
async def own() -> AsyncIterator[Node]:
    async with running(OWN) as node:
        yield node


def bundle_of(node: Node, id: str) -> Bundle:
    return Bundle(str(node.bundle(id)), str(node.root / node.mark / id), node.mark, id)


async def ended(pid: int) -> None:
    """Return when a process that is not ours has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_reader(pidfd, over.set)
    await over.wait()
    loop.remove_reader(pidfd)
    os.close(pidfd)


async def test_tasks_of_every_state_are_found_again(node: Node) -> None:
    tasks, scope = node.tasks, node.scope
    await node.create("created", *FOREVER)
    pid = await node.run("running", *FOREVER)
    await node.exec("running", "more", *FOREVER)
    await node.run("paused", *FOREVER)
    await tasks.pause(scope, "paused")
    await node.run("stopped", "/bin/sh", "-c", "exit 5")
    await tasks.wait(scope, "stopped")
    await node.heard("stopped", *LIFE[:3])
    await node.restart()
    tasks = node.tasks
    states = {p.id: p.status for p in await tasks.list(scope)}
    assert states == {
        "created": Status.CREATED,
        "running": Status.RUNNING,
        "paused": Status.PAUSED,
        "stopped": Status.STOPPED,
    }
    assert (await tasks.get(scope, "running")).pid == pid
    assert (await tasks.wait(scope, "stopped")).status == 5
    assert (await tasks.delete(scope, "stopped")).status == 5
    await tasks.resume(scope, "paused")
    await tasks.start(scope, "created")
    await tasks.kill(scope, "running", signal.SIGKILL, "more")
    assert (await tasks.wait(scope, "running", "more")).status == 137
    for id in ("created", "running", "paused"):
        assert await node.end(id) == 137
    await node.heard("stopped", *LIFE)
    await node.heard("created", *LIFE)


async def test_an_exit_while_nobody_watched_is_told_once(node: Node) -> None:
    pid = await node.run("gone", *FOREVER)
    await node.heard("gone", "create", "start")
    go_on = asyncio.create_task(node.tasks.wait(node.scope, "gone"))
    await asyncio.sleep(0)
    await node.stop()
    with pytest.raises(errors.Error, match=r"^ttrpc: closed$"):
        await go_on
    os.kill(pid, signal.SIGKILL)
    await ended(pid)
    await node.start()
    end = await node.tasks.wait(node.scope, "gone")
    assert (end.pid, end.status) == (pid, 137)
    assert (await node.tasks.get(node.scope, "gone")).status == Status.STOPPED
    _, _, exited = await node.heard("gone", *LIFE[:3])
    assert (exited.pid, exited.exit_status) == (pid, 137)
    assert exited.exited_at.seconds * 10**9 + exited.exited_at.nanos == end.exited_at
    await node.restart()  # and not a third time either
    await node.tasks.delete(node.scope, "gone")
    await node.heard("gone", *LIFE)


async def test_an_exit_that_the_shim_cannot_tell_is_told_all_the_same(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cradled.runtime.manager.TELL_SECONDS", 0.0)
    pid = await node.run("gone", *FOREVER)
    await node.heard("gone", "create", "start")
    await node.stop()
    os.kill(pid, signal.SIGKILL)
    await ended(pid)
    monkeypatch.setattr(Node, "address", property(lambda node: f"{node.directory}/elsewhere"))
    await node.start()
    *_, exited = await node.heard("gone", *LIFE[:3])
    assert (exited.pid, exited.exit_status) == (pid, 137)
    await node.stop()
    monkeypatch.undo()
    await node.start()  # now the shim can tell it, but it has been told
    await node.tasks.delete(node.scope, "gone")
    await node.settled()
    await node.heard("gone", *LIFE)


async def test_the_shim_died_meanwhile(node: Node) -> None:
    pid = await node.run("lost", *FOREVER)
    await node.heard("lost", "create", "start")
    shim = await node.shim_pid("lost")
    await node.stop()
    os.kill(shim, signal.SIGKILL)
    await ended(shim)
    await node.start()
    assert await node.tasks.list(node.scope) == []
    *_, exited, deleted = await node.heard("lost", *LIFE)
    assert (exited.id, exited.pid, exited.exit_status) == ("lost", pid, 137)
    assert (deleted.pid, deleted.exit_status) == (pid, 137)
    await node.settled()
    await node.run("lost")
    await node.end("lost")


async def test_the_shim_died_of_one_that_has_the_name_of_another_before(node: Node) -> None:
    """The exit of the one before was told; that of this one was not."""
    await node.run("again", *FOREVER)
    await node.end("again")
    await node.heard("again", *LIFE)
    pid = await node.run("again")
    await node.heard("again", *LIFE, "create", "start")
    shim = await node.shim_pid("again")
    await node.stop()
    os.kill(shim, signal.SIGKILL)
    await ended(shim)
    await node.start()
    *_, exited, _ = await node.heard("again", *LIFE, *LIFE)
    assert (exited.pid, exited.exit_status) == (pid, 137)


async def test_the_execs_of_a_shim_that_died(own: Node) -> None:
    """Their ends are told as well, each once, whether or not the daemon was there."""
    for id, away in (("here", False), ("away", True)):
        await own.run(id, *FOREVER)
        pid = await own.exec(id, "lives", *FOREVER)
        await own.exec(id, "told", "/bin/sh", "-c", "exit 3")
        await own.tasks.wait(own.scope, id, "told")
        begun = ["create", "start", "exec-added", "exec-started", "exec-added", "exec-started"]
        await own.heard(id, *begun, "exit")
        shim = await own.shim_pid(id)
        if away:
            await own.stop()
        os.kill(shim, signal.SIGKILL)
        await ended(shim)
        if away:
            await own.start()
        heard = await own.heard(id, *begun, "exit", "exit", "exit", "delete")
        told, lived, init = heard[6:9]
        assert (told.id, told.exit_status) == ("told", 3)
        assert (lived.id, lived.pid, lived.exit_status) == ("lives", pid, 137)
        assert (init.id, init.exit_status) == (id, 137)


async def test_another_shim_serves_the_group_of_one_that_died(node: Node) -> None:
    """It knows nothing of the containers of the one before, but somebody must tell of their end."""
    for id in ("first", "second"):
        node.add(id, *FOREVER, annotations={"io.containerd.runc.v2.group": "pod"})
    pid = await node.run("first")
    await node.heard("first", "create", "start")
    shim = await node.shim_pid("first")
    node.tasks._closing = True  # the daemon dies before it has done anything about it
    os.kill(shim, signal.SIGKILL)
    await ended(shim)
    await node.run("second")
    assert node.saved("second") == node.saved("first")
    await node.heard("second", "create", "start")
    await node.restart()
    assert [process.id for process in await node.tasks.list(node.scope)] == ["second"]
    *_, exited, deleted = await node.heard("first", *LIFE)
    assert (exited.pid, exited.exit_status) == (deleted.pid, deleted.exit_status) == (pid, 137)
    await ended(pid)


async def test_the_shim_died_after_it_saw_the_exit(own: Node) -> None:
    pid = await own.run("seen", "/bin/sh", "-c", "exit 6")
    end = await own.tasks.wait(own.scope, "seen")
    await own.heard("seen", *LIFE[:3])
    shim = await own.shim_pid("seen")
    await own.stop()
    os.kill(shim, signal.SIGKILL)
    await ended(shim)
    await own.start()
    *_, exited, deleted = await own.heard("seen", *LIFE)  # told once, with what was seen
    assert (exited.pid, exited.exit_status) == (deleted.pid, deleted.exit_status) == (pid, 6)
    assert deleted.exited_at.seconds == end.exited_at // 10**9


async def test_a_shim_without_a_container_is_dismissed(node: Node) -> None:
    launcher = node.tasks._assembly.launchers.of_runtime(node.runtime)
    bundle = bundle_of(node, "half")
    node.add("half", *FOREVER)
    container = node.containers["half"]
    assert container.spec is not None
    bundle.create(container.spec.value, launcher.path)
    await launcher.start(bundle, container.runtime.options, "")
    await node.restart()
    await node.settled()
    assert await node.tasks.list(node.scope) == []
    assert node.told("half") == []


@pytest.mark.parametrize("stage", ["empty", "no shim yet", "before the fork", "removing"])
async def test_what_a_crash_left_is_removed(own: Node, stage: str) -> None:
    bundle = bundle_of(own, "left")
    if stage == "empty":
        own.bundle("left").mkdir(parents=True)
    else:
        bundle.create(b"{}", own.tasks._assembly.launchers.of_runtime(OWN).path)
    if stage == "before the fork":
        bundle.save_bootstrap(Bootstrap(3, f"unix://{own.directory}/s/nobody"))
    if stage == "removing":
        own.bundle("left").rename(own.bundle(".left"))
    (own.root / own.mark / "orphan").mkdir(parents=True)
    await own.restart()
    await own.settled()
    assert own.told("left") == []


class Dying(Undo):
    """What a daemon that is killed cleans up; only what this process would keep is let go."""

    async def __aexit__(self, *_: object) -> None:
        for name, step, args in self._steps:
            if name == "clean-up of the shim":
                await args[0].client.aclose()
            elif name == "closing of the log":
                await step()


async def test_a_creation_under_way_is_ended(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between Create and its reply: nobody has heard of the task, so it must go."""
    monkeypatch.setattr("cradled.runtime.assembly.Undo", Dying)
    node.add("young", *FOREVER)
    creation = asyncio.create_task(node.create("young"))
    while not (node.bundle("young") / "options.json").exists():  # noqa: ASYNC110
        await asyncio.sleep(0)
    (making,) = node.tasks._background
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creation
    assert node.bundle("young").exists()
    await node.restart()
    await node.settled()
    assert await node.tasks.list(node.scope) == []


async def test_many(own: Node) -> None:
    ids = [f"m{number}" for number in range(12)]
    await asyncio.gather(*(own.run(id, *FOREVER) for id in ids))
    await own.stop()
    killed = ids[:4]
    before = {id: pid for id, pid in [(e.container_id, e.pid) for _, e in own._task_events()]}
    for id in killed:
        os.kill(before[id], signal.SIGKILL)
        await ended(before[id])
    await own.start()
    states = {p.id: p.status for p in await own.tasks.list(own.scope)}
    assert {id for id, status in states.items() if status == Status.STOPPED} == set(killed)
    assert set(states) == set(ids)
    for id in ids:
        assert await own.end(id) == 137
        await own.heard(id, *LIFE)
