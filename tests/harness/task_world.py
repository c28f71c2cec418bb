"""A task manager over shims without containers, and what else it is given."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

from cradled import errors
from cradled.core.containers import Container
from cradled.core.events import Envelope
from cradled.core.scope import Scope
from cradled.core.tasks import CreateTask
from cradled.core.values import AnyValue, Descriptor
from cradled.runtime.assembly import Assembly
from cradled.runtime.bootstrap import Bootstrap
from cradled.runtime.checkpoints import Checkpoints
from cradled.runtime.manager import TaskManager
from cradled.runtime.shims import Shims
from cradled.testing.memory_content import MemoryContentStore
from harness.fake_shim import FakeShims

NS = Scope("ns")


class PlainDiffer:
    """What it makes of a directory is the content of its one file."""

    async def apply(self, layer: Any, blob: Any, mounts: Any, /, **_: Any) -> Any:
        assert layer.media_type == "application/vnd.oci.image.layer.v1.tar"
        (mount,) = mounts
        assert (mount.type, mount.options) == ("bind", ("rbind", "rw"))
        data = await blob.read(0, blob.size)
        if data == b"bad":
            raise errors.Error("no tar")
        Path(mount.source, "file").write_bytes(data)

    async def compare(self, left: Any, right: Any, content: Any, options: Any, /) -> Descriptor:
        (mount,) = right
        assert (left, mount.options, options.labels) == ((), ("rbind", "ro"), {})
        (file,) = Path(mount.source).iterdir()
        return await put(content, options.media_type, file.read_bytes())


async def put(content: Any, media_type: str, data: bytes) -> Descriptor:
    writer = await content.writer("ref")
    await writer.write(data)
    digest = writer.digest()
    with suppress(errors.AlreadyExists):
        await writer.commit(0, digest, {})
    return Descriptor(media_type, digest, len(data))


class World:
    """A directory, fake shims, and a manager that can be replaced by its successor."""

    def __init__(self, directory: Path, protocol: str) -> None:
        self.directory = directory
        self.shims = FakeShims(directory, protocol=protocol)
        self.events: list[Envelope] = []
        self.content = MemoryContentStore()
        self.differ = PlainDiffer()
        self.sandboxes: dict[str, Bootstrap | None] = {}
        self.containers = {id: Container(id, spec=AnyValue("s", b"{}")) for id in "abc"}
        self.manager = self.make()

    def make(self) -> TaskManager:
        state, root = str(self.directory / "state"), str(self.directory / "root")
        shims = Shims(state, root, self.shims)  # type: ignore[arg-type]
        return TaskManager(Assembly(shims, self.checkpoints, self.sandbox), self.container, self)

    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.differ, lambda scope: self.content)

    async def sandbox(self, scope: Scope, id: str) -> Bootstrap | None:
        if id not in self.sandboxes:
            raise errors.NotFound(f"bucket {id}")
        return self.sandboxes[id]

    async def container(self, scope: Scope, id: str) -> Container:
        return self.containers[id]

    def publish(self, envelopes: Any, /) -> None:
        self.events += envelopes

    publish_late = publish

    def forward(self, envelope: Envelope, /) -> None:
        self.events.append(envelope)

    async def restart(self, told: Any = ()) -> None:
        await self.manager.aclose()
        self.manager = self.make()
        await self.manager.recover(told)

    async def create(self, id: str, **more: Any) -> int:
        return await self.manager.create(NS, CreateTask(id, **more))

    def told(self) -> list[str]:
        return [envelope.topic for envelope in self.events]

    def bundles(self) -> list[str]:
        places = (self.directory / "state" / "ns", self.directory / "root" / "ns")
        names = [path.name for place in places if place.exists() for path in place.iterdir()]
        return [name for name in names if not name.startswith(".")]


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)
