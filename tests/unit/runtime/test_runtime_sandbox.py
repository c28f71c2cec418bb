"""Sandboxes of shims over a restart of the daemon."""

from __future__ import annotations

from pathlib import Path

from harness.task_world import NS, World, until

from cradled.core.containers import Runtime
from cradled.core.sandboxes import CreateSandbox, Sandbox
from cradled.runtime.bootstrap import Bootstrap
from cradled.runtime.sandbox import ShimSandboxes
from cradled.runtime.shims import Shims


def controller(world: World) -> ShimSandboxes:
    state, root = str(world.directory / "state"), str(world.directory / "root")
    return ShimSandboxes(Shims(state, root, world.shims))  # type: ignore[arg-type]


async def test_restart(world: World) -> None:
    """Of three one lives on, one has died, one has a shim that has forgotten it."""
    before = controller(world)
    for id in "abc":
        await before.create(NS, CreateSandbox(Sandbox(id, Runtime("x"))))
    shims = world.shims.shims
    await before.aclose()
    assert before.endpoint(NS, "a") is None
    await shims["b"].die()
    shims["c"].pod.request = None
    after = controller(world)
    await after.recover()
    assert world.bundles() == ["a", "a"]
    assert sorted(world.shims.deleted) == ["b", "c"]
    assert (await after.start(NS, "a")).pid == 7
    for id in "bc":
        assert (await after.status(NS, id, False)).state == ""
    address = Bootstrap(3, f"unix://{shims['a'].path}", world.shims.protocol)
    assert after.endpoint(NS, "a") == address
    assert after.endpoint(NS, "b") is None
    await shims["a"].die()
    await until(lambda: world.bundles() == [])
    await after.aclose()


async def test_a_bundle_that_was_not_finished_is_removed(world: World) -> None:
    state = world.directory / "state" / "ns"
    for name in ("empty", "no shim"):
        (state / name).mkdir(parents=True)
    (state / "no shim" / "shim-binary-path").write_text(world.shims.path)
    (world.directory / "root" / "ns" / "orphan").mkdir(parents=True)
    await controller(world).recover()
    assert world.bundles() == []
    assert world.shims.deleted == ["no shim"]


async def test_a_state_of_old(tmp_path: Path, world: World) -> None:
    """Nothing is there yet."""
    await controller(world).recover()
