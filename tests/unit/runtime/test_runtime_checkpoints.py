"""Checkpoints: where they are written, what becomes of them, what starts from them."""

from pathlib import Path
from typing import Any

import pytest
from harness.task_world import NS, World, put, until

from cradled import errors
from cradled.api import runc_options_pb2, wellknown_pb2
from cradled.core.containers import Container, Runtime
from cradled.core.tasks import Status
from cradled.core.values import AnyValue, Descriptor
from cradled.runtime.checkpoints import CRIU_TAR, SPEC

RUNC = "containerd.runc.v1."


def options(kind: str, **values: Any) -> AnyValue:
    message = getattr(runc_options_pb2, kind)(**values)
    return AnyValue(RUNC + kind, message.SerializeToString())


def left_of(world: World, id: str) -> list[str]:
    """What is in a task's work directory."""
    return [path.name for path in (world.directory / "root" / "ns" / id).iterdir()]


async def test_a_checkpoint_where_the_client_says(world: World) -> None:
    await world.create("a")
    wanted = options("CheckpointOptions", image_path=str(world.directory))
    assert await world.manager.checkpoint(NS, "a", wanted) == []
    assert world.shims.shims["a"].checkpoints == [str(world.directory)]
    assert (world.directory / "pages").read_bytes() == b"pages of a"
    assert world.content.blobs == {}


@pytest.mark.parametrize("given", [None, options("CheckpointOptions", exit=True)])
async def test_a_checkpoint_as_blobs(world: World, given: AnyValue | None) -> None:
    await world.create("a")
    for _ in range(2):  # the spec is there the second time
        criu, spec = await world.manager.checkpoint(NS, "a", given)
    assert (criu.media_type, spec.media_type) == (CRIU_TAR, SPEC)
    assert world.content.blobs[criu.digest][0] == b"pages of a"
    kept = wellknown_pb2.Any.FromString(world.content.blobs[spec.digest][0])
    assert (kept.type_url, kept.value) == ("s", b"{}")
    assert spec.size == len(world.content.blobs[spec.digest][0])
    assert left_of(world, "a") == []


async def test_a_checkpoint_that_fails_leaves_nothing(world: World) -> None:
    async def fail() -> None:
        raise errors.Error("OCI runtime checkpoint failed: no criu")

    await world.create("a")
    world.shims.shims["a"].script["checkpoint"] = fail
    with pytest.raises(errors.Error, match=r"^OCI runtime checkpoint failed: no criu$"):
        await world.manager.checkpoint(NS, "a", None)
    assert left_of(world, "a") == []
    assert world.content.blobs == {}


@pytest.mark.parametrize(
    ("runtime", "given", "text"),
    [
        ("", options("Options"), "invalid task checkpoint option for io.containerd.runc.v2$"),
        ("io.containerd.runc.v1", AnyValue("x"), "^invalid task checkpoint option for .*runc.v1$"),
        ("", AnyValue(RUNC + "CheckpointOptions", b"\xff"), "^task checkpoint options: "),
    ],
)
async def test_options_that_are_none_of_a_checkpoint(
    world: World, runtime: str, given: AnyValue, text: str
) -> None:
    world.containers["a"] = Container("a", runtime=Runtime(runtime))
    await world.create("a")
    with pytest.raises(errors.Error, match=text):
        await world.manager.checkpoint(NS, "a", given)
    assert "checkpoint" not in world.shims.shims["a"].calls


async def test_restoring_from_a_blob(world: World) -> None:
    blob = await put(world.content, CRIU_TAR, b"pages")
    await world.create("a", checkpoint=blob)
    shim = world.shims.shims["a"]
    directory = Path(shim.processes["a", ""].request.checkpoint)
    assert (directory / "file").read_bytes() == b"pages"
    assert left_of(world, "a") == [directory.name]
    await world.manager.start(NS, "a")
    await until(lambda: not directory.exists())
    await world.create("b", checkpoint=blob)
    await world.manager.delete(NS, "b")  # never started
    assert world.bundles() == ["a", "a"]


@pytest.mark.parametrize("what", ["not there", "no tar", "another type"])
async def test_a_blob_that_nothing_can_be_restored_from(world: World, what: str) -> None:
    blob = await put(world.content, "x" if what == "another type" else CRIU_TAR, b"bad")
    texts = {"not there": "content", "no tar": "no tar", "another type": "unsupported checkpoint"}
    if what == "not there":
        world.content.blobs.clear()
    with pytest.raises(errors.Error, match=texts[what]):
        await world.create("a", checkpoint=blob)
    assert (world.bundles(), world.shims.shims) == ([], {})


async def test_restoring_from_a_directory(world: World) -> None:
    blob = Descriptor(CRIU_TAR, "", 0)
    given = options("Options", criu_image_path="/images/1")
    await world.create("a", options=given, checkpoint=blob)
    assert world.shims.shims["a"].processes["a", ""].request.checkpoint == "/images/1"
    assert (await world.manager.get(NS, "a")).status == Status.CREATED
    annotated = Descriptor("", "", 0, annotations={"RestoreFromPath": "/images/2"})
    pid = await world.create("b", checkpoint=annotated)
    assert world.shims.shims["b"].processes["b", ""].request.checkpoint == "/images/2"
    (process,) = [one for one in await world.manager.list(NS) if one.id == "b"]
    assert (process.pid, process.status) == (pid, Status.RUNNING)


async def test_restoring_at_once_that_fails_leaves_nothing(world: World) -> None:
    async def fail() -> None:
        raise errors.Error("OCI runtime restore failed: no criu")

    world.shims.script["start"] = fail
    annotated = Descriptor("", "", 0, annotations={"RestoreFromPath": "/images/2"})
    with pytest.raises(errors.Error, match=r"^OCI runtime restore failed: no criu$"):
        await world.create("a", checkpoint=annotated)
    assert world.bundles() == []
    assert world.shims.shims["a"].calls == ["create", "start", "delete", "shutdown"]


async def test_options_of_another_runtime(world: World) -> None:
    with pytest.raises(
        errors.Error, match=r"^invalid task create option for io\.containerd\.runc\.v2"
    ):
        await world.create("a", options=AnyValue("runtimeoptions.v1.Options"))
    await world.create("a", options=AnyValue("runtimeoptions.v1.Options"), runtime="other.v1")
