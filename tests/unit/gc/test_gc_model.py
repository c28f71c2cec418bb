"""Leases, images, content, snapshots and collections against a model that fits on a page.

The model keeps plain dictionaries and works out what a collection must leave by walking them.
After each collection database and backends must hold exactly that.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from harness.metadata import Recorder, World, open_database
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cradled import digest
from cradled.core.content import ContentInfo
from cradled.core.images import Image
from cradled.core.leases import Resource
from cradled.core.values import Descriptor
from cradled.errors import AlreadyExists, Error, FailedPrecondition, InvalidArgument, NotFound
from cradled.testing.content_suite import digests
from cradled.testing.memory_content import MemoryContentStore
from cradled.testing.memory_snapshots import MemorySnapshotter
from cradled.testing.snapshot_suite import names

GC = "containerd.io/gc."
PAST = "2001-01-01T00:00:00Z"
SPACES = st.sampled_from(["one", "two"])
NUMBERS = st.integers(0, 4)
LEASES = st.sampled_from(["", "", "l1", "l2"])
Node = tuple[str, str]


def blob_digest(number: int) -> str:
    return digest.of(str(number).encode())


class Space:
    """One namespace in the model."""

    def __init__(self) -> None:
        self.content: dict[str, dict[str, str]] = {}
        self.images: dict[str, tuple[str, dict[str, str]]] = {}
        self.snapshots: dict[str, tuple[str, bool]] = {}  # parent, committed
        self.leases: dict[str, tuple[dict[str, str], set[Node]]] = {}

    def has_child(self, key: str) -> bool:
        return any(parent == key for parent, _ in self.snapshots.values())

    def edges(self, node: Node, flat: bool) -> set[Node]:
        kind, key = node
        found: set[Node] = set()
        labels: dict[str, str] = {}
        if kind == "images" and key in self.images:
            target, labels = self.images[key]
            found.add(("content", target))
        elif kind == "content":
            labels = self.content.get(key, {})
        elif kind == "snapshots/layers" and key in self.snapshots:
            parent, _ = self.snapshots[key]
            found |= {("snapshots/layers", parent)} if parent else set()
        if flat:
            return found
        for label, value in labels.items():
            if label.startswith(GC + "ref.content"):
                found.add(("content", value))
            elif label.startswith(GC + "ref.snapshot"):
                found.add(("snapshots/layers", value))
        for name, (_, image_labels) in self.images.items():
            if kind == "images" and image_labels.get(GC + "bref.image") == key:
                found.add(("images", name))
        return found

    def alive(self) -> set[Node]:
        roots = {
            (("content", d), False) for d, labels in self.content.items() if GC + "root" in labels
        }
        roots |= {
            (("images", name), False)
            for name, (_, labels) in self.images.items()
            if GC + "expire" not in labels
        }
        for labels, resources in self.leases.values():
            if GC + "expire" not in labels:
                roots |= {(resource, GC + "flat" in labels) for resource in resources}
        found: set[tuple[Node, bool]] = set()
        waiting = list(roots)
        while waiting:
            node, flat = waiting.pop()
            if (node, flat) not in found:
                found.add((node, flat))
                waiting += [(edge, flat) for edge in self.edges(node, flat)]
        return {node for node, _ in found}

    def collect(self) -> None:
        alive = self.alive()
        self.content = {d: v for d, v in self.content.items() if ("content", d) in alive}
        self.images = {n: v for n, v in self.images.items() if ("images", n) in alive}
        self.snapshots = {
            k: v for k, v in self.snapshots.items() if ("snapshots/layers", k) in alive
        }
        self.leases = {i: v for i, v in self.leases.items() if GC + "expire" not in v[0]}


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.directory = tempfile.TemporaryDirectory()
        self.spaces = {"one": Space(), "two": Space()}
        self.dirty = False
        self.run(self.open())

    def run(self, coroutine: object) -> object:
        return self.loop.run_until_complete(coroutine)  # type: ignore[arg-type]

    async def open(self) -> None:
        blobs, layers, events = MemoryContentStore(), MemorySnapshotter(), Recorder()
        path = Path(self.directory.name) / "meta.db"
        db = await open_database(path, blobs, layers, events)
        self.world = World(path, blobs, layers, events, db)

    def teardown(self) -> None:
        self.run(self.world.db.aclose())
        self.loop.close()
        self.directory.cleanup()

    def attempt(self, coroutine: object, error: type[Error] | None) -> bool:
        """Run it; it must fail as the model says. Whether it succeeded."""
        try:
            self.run(coroutine)
        except Error as caught:
            if error is None or not isinstance(caught, error):
                raise
            return False
        assert error is None, "it must have failed"
        return True

    def missing_lease(self, space: str, lease: str) -> bool:
        return bool(lease) and lease not in self.spaces[space].leases

    def join(self, space: str, lease: str, node: Node) -> None:
        if lease:
            self.spaces[space].leases[lease][1].add(node)

    @rule(space=SPACES, number=NUMBERS, lease=LEASES, refs=st.lists(NUMBERS, max_size=2))
    def write_blob(self, space: str, number: int, lease: str, refs: list[int]) -> None:
        model = self.spaces[space]
        wanted = blob_digest(number)
        labels = {f"{GC}ref.content.{i}": blob_digest(ref) for i, ref in enumerate(refs)}

        async def write() -> None:
            content = self.world.scoped(space, lease).content
            writer = await content.writer("r", expected=wanted)
            try:
                if writer.status().offset == 0:
                    await writer.write(str(number).encode())
                await writer.commit(0, wanted, labels)
            finally:
                await writer.close()

        if self.missing_lease(space, lease):
            self.attempt(write(), NotFound)
            return
        if self.attempt(write(), AlreadyExists if wanted in model.content else None):
            model.content[wanted] = labels
        self.join(space, lease, ("content", wanted))

    @rule(space=SPACES, number=NUMBERS, root=st.booleans(), layer=NUMBERS)
    def label_blob(self, space: str, number: int, root: bool, layer: int) -> None:
        model, wanted = self.spaces[space], blob_digest(number)
        labels = {GC + "root": "x"} if root else {f"{GC}ref.snapshot.layers": f"n{layer}"}
        update = self.world.scoped(space).content.update(ContentInfo(wanted, 0, labels=labels))
        if self.attempt(update, None if wanted in model.content else NotFound):
            model.content[wanted] = labels

    @rule(space=SPACES, number=NUMBERS)
    def delete_blob(self, space: str, number: int) -> None:
        model, wanted = self.spaces[space], blob_digest(number)
        delete = self.world.scoped(space).content.delete(wanted)
        if self.attempt(delete, None if wanted in model.content else NotFound):
            del model.content[wanted]

    @rule(space=SPACES, name=NUMBERS, number=NUMBERS, expires=st.booleans(), main=NUMBERS)
    def create_image(self, space: str, name: int, number: int, expires: bool, main: int) -> None:
        model, key, target = self.spaces[space], f"img{name}", blob_digest(number)
        labels = {GC + "expire": PAST, GC + "bref.image": f"img{main}"} if expires else {}
        image = Image(key, Descriptor("m", target, 1), labels)
        create = self.world.scoped(space).images.create(image)
        if self.attempt(create, AlreadyExists if key in model.images else None):
            model.images[key] = target, labels

    @rule(space=SPACES, name=NUMBERS)
    def delete_image(self, space: str, name: int) -> None:
        model, key = self.spaces[space], f"img{name}"
        delete = self.world.scoped(space).images.delete(key)
        if self.attempt(delete, None if key in model.images else NotFound):
            del model.images[key]

    @rule(space=SPACES, lease=st.sampled_from(["l1", "l2"]), kind=st.sampled_from(" fx"))
    def create_lease(self, space: str, lease: str, kind: str) -> None:
        model = self.spaces[space]
        labels = {"f": {GC + "flat": "x"}, "x": {GC + "expire": PAST}}.get(kind, {})
        create = self.world.scoped(space).leases.create(lease, labels)
        if self.attempt(create, AlreadyExists if lease in model.leases else None):
            model.leases[lease] = labels, set()

    @rule(space=SPACES, lease=st.sampled_from(["l1", "l2"]))
    def delete_lease(self, space: str, lease: str) -> None:
        model = self.spaces[space]
        delete = self.world.scoped(space).leases.delete(lease)
        if self.attempt(delete, None if lease in model.leases else NotFound):
            del model.leases[lease]

    @rule(
        space=SPACES,
        lease=st.sampled_from(["l1", "l2"]),
        kind=st.sampled_from(["content", "images", "snapshots/layers"]),
        number=NUMBERS,
        add=st.booleans(),
    )
    def change_resource(self, space: str, lease: str, kind: str, number: int, add: bool) -> None:
        model, leases = self.spaces[space], self.world.scoped(space).leases
        key = {"content": blob_digest(number), "images": f"img{number}"}.get(kind, f"n{number}")
        call = leases.add_resource if add else leases.delete_resource
        change = call(lease, Resource(key, kind))
        if self.attempt(change, None if lease in model.leases else NotFound):
            resources = model.leases[lease][1]
            (resources.add if add else resources.discard)((kind, key))

    @rule(
        space=SPACES, number=NUMBERS, parent=st.sampled_from(["", "n0", "n1", "n2"]), lease=LEASES
    )
    def prepare(self, space: str, number: int, parent: str, lease: str) -> None:
        model, key = self.spaces[space], f"k{number}"
        error: type[Error] | None = None
        if self.missing_lease(space, lease):
            error = NotFound
        elif key in model.snapshots:
            error = AlreadyExists
        elif parent and parent not in model.snapshots:
            error = NotFound
        elif parent and not model.snapshots[parent][1]:
            error = InvalidArgument
        snapshots = self.world.scoped(space, lease).snapshots("layers")
        if self.attempt(snapshots.prepare(key, parent, {}), error):
            model.snapshots[key] = parent, False
            self.join(space, lease, ("snapshots/layers", key))

    @rule(space=SPACES, number=NUMBERS, name=NUMBERS, lease=LEASES)
    def commit(self, space: str, number: int, name: int, lease: str) -> None:
        model, key, new = self.spaces[space], f"k{number}", f"n{name}"
        error: type[Error] | None = None
        if self.missing_lease(space, lease) or key not in model.snapshots:
            error = NotFound
        elif new in model.snapshots:
            error = AlreadyExists
        snapshots = self.world.scoped(space, lease).snapshots("layers")
        if self.attempt(snapshots.commit(new, key, {}), error):
            parent, _ = model.snapshots.pop(key)
            model.snapshots[new] = parent, True
            if lease:
                model.leases[lease][1].discard(("snapshots/layers", key))
            self.join(space, lease, ("snapshots/layers", new))

    @rule(space=SPACES, kind=st.sampled_from("kn"), number=NUMBERS)
    def remove(self, space: str, kind: str, number: int) -> None:
        model, key = self.spaces[space], f"{kind}{number}"
        error: type[Error] | None = None
        if key not in model.snapshots:
            error = NotFound
        elif model.has_child(key):
            error = FailedPrecondition
        snapshots = self.world.scoped(space).snapshots("layers")
        if self.attempt(snapshots.remove(key), error):
            del model.snapshots[key]

    @rule()
    def collect(self) -> None:
        self.run(self.world.collect())
        for space in self.spaces.values():
            space.collect()
        named = {d for space in self.spaces.values() for d in space.content}
        assert set(self.world.blobs.blobs) == named
        assert self.world.blobs.ingests == {}
        kept = {f"{n}/{key}" for n, space in self.spaces.items() for key in space.snapshots}
        there = [key.split("/") for key in self.world.layers.infos]
        assert {f"{namespace}/{key}" for namespace, _, key in there} == kept

    @precondition(lambda self: any(space.content for space in self.spaces.values()))
    @rule()
    def reopen(self) -> None:
        self.run(self.world.reopen())

    @invariant()
    def everything_is_as_in_the_model(self) -> None:
        self.run(self.compare())

    async def compare(self) -> None:
        for name, model in self.spaces.items():
            ns = self.world.scoped(name)
            assert await digests(ns.content) == set(model.content)
            assert {image.name for image in await ns.images.list()} == set(model.images)
            assert await names(ns.snapshots("layers")) == set(model.snapshots)
            assert {lease.id for lease in await ns.leases.list()} == set(model.leases)
            for lease, (_, resources) in model.leases.items():
                held = {(r.type, r.id) for r in await ns.leases.list_resources(lease)}
                assert held == resources


Machine.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestModel = Machine.TestCase
