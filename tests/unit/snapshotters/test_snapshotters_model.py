"""Random sequences of operations: every snapshotter does what the one in memory does."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cradled.aio import threads
from cradled.content.local import open_store
from cradled.core.mount import Mount
from cradled.core.scope import Scope
from cradled.core.snapshots import Kind, SnapshotInfo, Snapshotter
from cradled.core.values import Labels
from cradled.errors import AlreadyExists, Error
from cradled.metadata.db import Database
from cradled.snapshotters.native import NativeSnapshotter
from cradled.snapshotters.overlay import OverlaySnapshotter
from cradled.testing.memory_snapshots import MemorySnapshotter

Operation = tuple[Any, ...]

NAMES = st.sampled_from(["a", "b", "c", "d"])
LABELS = st.dictionaries(
    st.sampled_from(["containerd.io/snapshot/x", "containerd.io/snapshot/y"]),
    st.sampled_from(["1", "2"]),
)
PATHS = st.sampled_from([(), ("labels",), ("labels.containerd.io/snapshot/x",), ("kind",)])
OPERATIONS = st.one_of(
    st.tuples(st.sampled_from(["prepare", "view"]), NAMES, NAMES | st.just(""), LABELS),
    st.tuples(st.just("commit"), NAMES, NAMES, LABELS, NAMES | st.just("")),
    st.tuples(st.sampled_from(["remove", "stat", "mounts"]), NAMES),
    st.tuples(st.just("update"), NAMES, LABELS, PATHS),
    st.tuples(st.just("reopen")),
    st.tuples(st.just("cleanup")),
)


class Namespaced(MemorySnapshotter):
    """As a namespace sees snapshots: of two things that are wrong the key's is told."""

    async def _create(self, key: str, parent: str, kind: Kind, labels: Labels) -> list[Mount]:
        if key in self.infos:
            raise AlreadyExists(key)
        return await super()._create(key, parent, kind, labels)


Open = Callable[[str], AbstractAsyncContextManager[Snapshotter]]


@asynccontextmanager
async def overlay(root: str) -> AsyncIterator[Snapshotter]:
    made = OverlaySnapshotter(root)
    await made.start()
    yield made
    await made.aclose()


@asynccontextmanager
async def native(root: str) -> AsyncIterator[Snapshotter]:
    made = NativeSnapshotter(root)
    await made.start()
    yield made
    await made.aclose()


@asynccontextmanager
async def namespaced(root: str) -> AsyncIterator[Snapshotter]:
    """As a namespace sees them, over ``overlay``."""
    content = await open_store(f"{root}/content")
    async with overlay(f"{root}/overlay") as backend:
        db = await Database.open(f"{root}/m.db", content=content, snapshotters={"o": backend})
        yield db.scoped(Scope("ns")).snapshots("o")
        await db.aclose()


@pytest.mark.parametrize(
    ("kind", "model"),
    [(overlay, MemorySnapshotter), (native, MemorySnapshotter), (namespaced, Namespaced)],
)
@settings(max_examples=25, deadline=None)
@given(operations=st.lists(OPERATIONS, max_size=30))
@example(
    operations=[
        ("prepare", "a", "", {}),
        ("commit", "b", "a", {}, ""),
        ("view", "a", "b", {}),
        ("remove", "b"),
        ("reopen",),
        ("remove", "a"),
        ("remove", "b"),
        ("cleanup",),
    ]
)
def test_all_do_the_same(
    kind: Open, model: Callable[[], Snapshotter], operations: Sequence[Operation]
) -> None:
    asyncio.run(compare(kind, model(), operations))


async def compare(kind: Open, model: Snapshotter, operations: Sequence[Operation]) -> None:
    with tempfile.TemporaryDirectory() as root:
        async with AsyncExitStack() as stack:
            tested = await stack.enter_async_context(kind(root))
            for operation in operations:
                if operation == ("reopen",):
                    await stack.aclose()
                    tested = await stack.enter_async_context(kind(root))
                else:
                    assert await outcome(tested, operation) == await outcome(model, operation)
                assert await listed(tested) == await listed(model)
        threads.close()


async def outcome(snapshotter: Snapshotter, operation: Operation) -> object:
    """What is told of an operation; of mounts only that there are some."""
    name, *words = operation
    try:
        match name:
            case "commit":
                target, key, labels, parent = words
                return await snapshotter.commit(target, key, labels, parent=parent)
            case "update":
                key, labels, paths = words
                current = await snapshotter.stat(key)
                return bare(await snapshotter.update(replace(current, labels=labels), paths))
            case "stat":
                return bare(await snapshotter.stat(*words))
            case "prepare" | "view" | "mounts":
                return bool(await getattr(snapshotter, name)(*words))
            case _:
                return await getattr(snapshotter, name)(*words)
    except Error as error:
        return type(error)


async def listed(snapshotter: Snapshotter) -> set[object]:
    return {bare(info) async for info in snapshotter.walk()}


def bare(info: SnapshotInfo) -> object:
    """Without times."""
    return info.name, info.kind, info.parent, tuple(sorted(info.labels.items()))
