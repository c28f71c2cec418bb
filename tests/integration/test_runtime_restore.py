"""Tasks that start from a checkpoint, by our shim, over a restart of the daemon."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness import checkpoints
from harness.task_world import until
from harness.tasks import OWN, Node, running

from cradled import errors
from cradled.api import runc_options_pb2
from cradled.core.tasks import Status
from cradled.core.values import AnyValue, Descriptor

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

FOREVER = ("/bin/sleep", "1000")


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with running(OWN) as node:
        yield node


def options(kind: str, **values: object) -> AnyValue:
    message = getattr(runc_options_pb2, kind)(**values)
    return AnyValue(f"containerd.runc.v1.{kind}", message.SerializeToString())


async def dumped(node: Node, runtime: Path) -> str:
    """The images of a container that has run."""
    node.add("first", *FOREVER, options=options("Options", binary_name=str(runtime)))
    await node.run("first")
    images = str(node.directory / "images")
    wanted = options("CheckpointOptions", image_path=images, exit=True)
    await node.tasks.checkpoint(node.scope, "first", wanted)
    assert (await node.tasks.wait(node.scope, "first")).status == 137
    await node.tasks.delete(node.scope, "first")
    return images


async def test_restore_over_a_restart(node: Node, tmp_path: Path) -> None:
    runtime = checkpoints.write(tmp_path)
    images = await dumped(node, runtime)
    made = options("Options", binary_name=str(runtime), criu_image_path=images)
    node.add("c", *FOREVER)
    assert await node.create("c", options=made) == 0
    await node.restart()
    created = await node.tasks.get(node.scope, "c")
    assert (created.pid, created.status) == (0, Status.CREATED)
    pid = await node.tasks.start(node.scope, "c")
    assert (node.bundle("c") / "rootfs" / "restored").read_text() == "pages of first\n"
    assert [process.pid for process in await node.tasks.list(node.scope)] == [pid]
    await node.restart()
    assert await node.end("c") == 137
    await until(lambda: "delete" in node.told("c"))
    told = node.told("c")  # what no daemon took in before it went is told again
    assert list(dict.fromkeys(told)) == ["create", "start", "exit", "delete"]
    assert (told.count("exit"), told.count("delete")) == (1, 1)


async def test_a_directory_is_restored_from_at_once(node: Node, tmp_path: Path) -> None:
    runtime = checkpoints.write(tmp_path)
    images = await dumped(node, runtime)
    node.add("c", *FOREVER, options=options("Options", binary_name=str(runtime)))
    here = Descriptor("", "", 0, annotations={"RestoreFromPath": images})
    pid = await node.create("c", checkpoint=here)
    running = await node.tasks.get(node.scope, "c")
    assert (running.pid, running.status) == (pid, Status.RUNNING)
    assert pid > 0
    assert await node.end("c") == 137
    nowhere = Descriptor("", "", 0, annotations={"RestoreFromPath": str(tmp_path)})
    with pytest.raises(errors.Error, match="OCI runtime restore failed: no pages"):
        await node.create("c", checkpoint=nowhere)
    assert not node.bundle("c").exists()
