"""All containers of a namespace in one shim: what they share, and what they must not."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest
from harness.shims import has_ended
from harness.tasks import OWN, PATIENCE, Node, running

from cradled import errors
from cradled.daemon import sections
from cradled.runtime.launcher import WHOLE_NAMESPACE
from cradled.shim import bootstrap

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

FOREVER = ("/bin/sleep", "1000")
SLOTS, LIVES = 4, 6


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with running(OWN, group=WHOLE_NAMESPACE) as node:
        yield node


async def _ended(pid: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while not has_ended(pid):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def test_both_name_it_alike() -> None:
    assert bootstrap.WHOLE_NAMESPACE == WHOLE_NAMESPACE


def test_what_is_configured() -> None:
    sections.ShimManager().check()
    sections.ShimManager(grouping="namespace").check()
    with pytest.raises(ValueError, match='grouping is "namespace" or empty, not "pod"'):
        sections.ShimManager(grouping="pod").check()


async def test_one_shim_for_all(node: Node) -> None:
    ids = [f"c{number}" for number in range(4)]
    await asyncio.gather(*(node.run(id, *FOREVER) for id in ids))
    shims = {await node.shim_pid(id) for id in ids}
    assert len(shims) == 1
    first, *others = ids
    assert await node.end(first) == 137
    await node.run("c9", *FOREVER)
    await node.exec("c9", "e", "/bin/true")
    assert (await node.tasks.wait(node.scope, "c9", "e")).status == 0
    assert await node.shim_pid("c9") in shims
    for id in (*others, "c9"):
        assert await node.end(id) == 137
        await node.heard(id, *_life(id))
    await _ended(shims.pop())
    await node.run("next", *FOREVER)


def _life(id: str) -> list[str]:
    more = ["exec-added", "exec-started", "exit"] if id == "c9" else []
    return ["create", "start", *more, "exit", "delete"]


async def test_coming_and_going_at_the_same_time(node: Node) -> None:
    """Each last one takes the shim with it, while the next is about to join it."""

    async def live(slot: int) -> None:
        for number in range(LIVES):
            id = f"s{slot}-{number}"
            await node.run(id, "/bin/true")
            await node.tasks.wait(node.scope, id)
            assert (await node.tasks.delete(node.scope, id)).status == 0

    await asyncio.gather(*map(live, range(SLOTS)))


async def _bury(*_: object) -> None:
    pytest.fail("a living shim has cleaned up already")


async def test_a_failure_leaves_the_others_alone(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await node.run("good", *FOREVER)
    shim = await node.shim_pid("good")
    with monkeypatch.context() as changed:
        changed.setattr(node.tasks._assembly.shims, "bury", _bury)
        with pytest.raises(errors.Error, match="no such file or directory"):
            await node.run("bad", "/bin/nothing")
    assert await node.shim_pid("good") == shim
    assert not node.bundle("bad").exists()


async def test_they_share_its_fate(node: Node) -> None:
    ids = ("a", "b", "c")
    for id in ids:
        await node.run(id, *FOREVER)
    os.kill(await node.shim_pid("a"), signal.SIGKILL)
    for id in ids:
        _, _, exited, _ = await node.heard(id, "create", "start", "exit", "delete")
        assert exited.exit_status == 137
    await node.run("d", *FOREVER)


async def test_they_are_found_again(node: Node) -> None:
    for id in ("a", "b"):
        await node.run(id, *FOREVER)
    shim = await node.shim_pid("b")
    await node.restart()
    assert await node.end("a") == 137
    await node.run("c", *FOREVER)
    assert {await node.shim_pid(id) for id in ("b", "c")} == {shim}
