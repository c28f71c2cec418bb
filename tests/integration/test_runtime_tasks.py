"""Tasks of the daemon, end to end below the API: our shim by fork, and the original's by exec."""

import os
from collections.abc import AsyncIterator

import pytest
from harness.tasks import GO, OWN, Node, running

from cradled import errors
from cradled.core.tasks import Status

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
has_go_shim = pytest.mark.skipif(not os.path.exists(GO), reason="needs containerd's runc shim")

pytestmark = needs_root


@pytest.fixture(params=[OWN, pytest.param(GO, marks=has_go_shim)], ids=["own", "go"])
async def node(request: pytest.FixtureRequest) -> AsyncIterator[Node]:
    async with running(request.param) as node:
        yield node


async def test_life(node: Node) -> None:
    pid = await node.create("life", "/bin/sh", "-c", "exit 7")
    tasks, scope = node.tasks, node.scope
    created = await tasks.get(scope, "life")
    assert (created.pid, created.status, created.id) == (pid, Status.CREATED, "life")
    assert await tasks.list(scope) == [created]
    assert await tasks.start(scope, "life") == pid
    end = await tasks.wait(scope, "life")
    assert (end.pid, end.status) == (pid, 7)
    stopped = await tasks.get(scope, "life")
    assert (stopped.status, stopped.exit_status) == (Status.STOPPED, 7)
    assert await tasks.list(scope) == [stopped]
    assert await tasks.delete(scope, "life") == end
    with pytest.raises(errors.NotFound, match=r"^task life not found$"):
        await tasks.get(scope, "life")
    *_, exited, deleted = await node.heard("life", "create", "start", "exit", "delete")
    assert (exited.id, exited.pid, exited.exit_status) == ("life", pid, 7)
    assert (deleted.id, deleted.pid, deleted.exit_status) == ("", pid, 7)
