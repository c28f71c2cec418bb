"""Tasks in the shim of a sandbox."""

import dataclasses

import pytest
from harness.task_world import NS, World

from cradled import errors
from cradled.runtime.bootstrap import Bootstrap


async def test_a_container_joins_the_shim_of_its_sandbox(world: World) -> None:
    await world.create("a")
    pod = world.shims.shims["a"]
    world.containers["b"] = dataclasses.replace(world.containers["b"], sandbox="pod")
    address = Bootstrap(3, f"unix://{pod.path}", world.shims.protocol)
    world.sandboxes["pod"] = address
    await world.create("b")
    assert list(world.shims.shims) == ["a"]
    bundle = world.directory / "state" / "ns" / "b"
    assert (bundle / "sandbox").read_text() == "pod"
    assert (bundle / "bootstrap.json").read_bytes() == address.to_json()
    await world.restart()
    await world.manager.delete(NS, "b")
    assert "shutdown" not in pod.calls
    world.sandboxes["pod"] = None
    given = f"{world.shims.protocol}+unix://{pod.path}"
    await world.create("b", task_api_address=given, task_api_version=3)  # as the client knows
    assert list(world.shims.shims) == ["a"]

    async def fail() -> None:
        raise errors.Error("too much")

    await world.manager.delete(NS, "b")
    pod.script["create"] = fail
    with pytest.raises(errors.Error, match="too much"):
        await world.create("b", task_api_address=given, task_api_version=3)
    assert "shutdown" not in pod.calls
    assert sorted(world.bundles()) == ["a", "a"]


@pytest.mark.parametrize("why", ["no sandbox", "nobody knows its address", "an old one"])
async def test_a_container_that_cannot_join_gets_its_own_shim(world: World, why: str) -> None:
    world.containers["b"] = dataclasses.replace(world.containers["b"], sandbox="pod")
    if why != "no sandbox":
        known = Bootstrap(2, "unix:///x") if why == "an old one" else None
        world.sandboxes["pod"] = known
    await world.create("b")
    assert list(world.shims.shims) == ["b"]
    assert not (world.directory / "state" / "ns" / "b" / "sandbox").exists()


async def test_a_container_that_is_not_there_after_a_restart(world: World) -> None:
    """It was being made, or deleted; the sandbox's shim, which has no other, goes on."""
    await world.create("a")
    pod = world.shims.shims["a"]
    world.containers["b"] = dataclasses.replace(world.containers["b"], sandbox="pod")
    world.sandboxes["pod"] = Bootstrap(3, f"unix://{pod.path}", world.shims.protocol)
    await world.create("b")
    await world.manager.aclose()
    pod.processes.clear()
    pod.calls.clear()
    bundle = world.directory / "state" / "ns" / "a"
    bundle.rename(world.directory / "elsewhere")  # a sandbox's bundle is none of a task
    world.manager = world.make()
    await world.manager.recover()
    assert world.bundles() == []
    assert "shutdown" not in pod.calls
    assert world.shims.deleted == []
    assert world.told() == []
