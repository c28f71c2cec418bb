"""Async. What garbage collection needs of the metadata: the graph, and the removal of the rest.

A collection does not stop the world. The tables are read page by page while others go on writing;
from before the first page on, every write tells which nodes it made, changed or referred to anew
(``Transaction.touch``). A touched node is alive for this collection, and what it leads to is read
again. Objects are deleted in small commands; each first marks on from what was touched since the
one before, and then deletes what is still not marked. So nothing is deleted that a write before
refers to, and no lock is held while marking.

What went from the metadata goes from the backends afterwards, by the janitor.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from cradled import failpoints
from cradled.events import topics
from cradled.metadata import graph
from cradled.metadata import labels as marks
from cradled.metadata.engine import Engine, Row, Transaction
from cradled.metadata.janitor import Janitor

BATCH = 128  # objects deleted by one command

_SLICE = 2048  # objects looked at without letting the loop go on

_ORDER = (graph.LEASE, graph.SNAPSHOT, graph.INGEST, graph.CONTENT, graph.IMAGE)


class Garbage(NamedTuple):
    """An object to be deleted; ``backend_name`` is what its backend knows it by."""

    node: str
    kind: str
    namespace: str
    key: str
    backend_name: str


@dataclass(slots=True)
class Stats:
    """How many objects of each kind were removed, and how long it took, in seconds."""

    removed: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


class Collection:
    """One collection: ``load``, then mark from ``roots`` along ``successors``, then ``sweep``."""

    def __init__(self, engine: Engine, janitor: Janitor) -> None:
        self._engine = engine
        self._janitor = janitor
        self._now = time.time_ns()
        self._structure: dict[str, str] = {}
        self._edges: dict[str, list[str]] = {}
        self._objects: dict[str, str] = {}  # what may be deleted, and its backend name
        self._conditions: list[tuple[str, str, str]] = []
        self._used: dict[str, str] = {}
        self._any_flat = False
        self.roots: list[str] = []
        self.next_expiry: int | None = None
        """When something that is a root now will have expired, in nanoseconds since the epoch."""

    async def load(self) -> None:
        """Read the graph. Every change from here on is heeded until ``close``."""
        self._engine.start_touching()
        # What ran before without telling what it touched is durable after this, and so is read.
        await self._engine.run(lambda tx: None)
        for query in _QUERIES:
            await self._engine.scan(query.sql, (), query.reader(self))
        self._add_conditions()

    def successors(self, node: str) -> Iterable[str]:
        """What a node keeps alive."""
        if f"/{graph.FLAT}" in node:
            follows = self._structure.get(node.replace(f"/{graph.FLAT}", "/", 1))
            return () if follows is None else (_flat(follows),)
        edges = self._edges.get(node, ())
        follows = self._structure.get(node)
        return edges if follows is None else (follows, *edges)

    async def sweep(self, marked: set[str], mark: Callable[[Iterable[str]], None]) -> Stats:
        """Delete what is not marked; ``mark`` marks on from nodes whose edges have changed.

        ``mark`` is called in the writer's thread, while nobody else uses it.
        """
        stats = Stats()
        garbage = await self._garbage(marked)
        touched = await self._engine.run(lambda tx: tx.take_touched())
        self._heed(touched, self._engine, mark)
        for start in range(0, len(garbage), BATCH):
            batch = garbage[start : start + BATCH]

            def command(tx: Transaction, batch: list[Garbage] = batch) -> list[Garbage]:
                self._heed(tx.take_touched(), tx, mark)
                left = [each for each in batch if not self._is_marked(each.node, marked)]
                return [each for each in left if _delete(tx, each)]

            for each in await self._engine.run(command, self._orphan):
                stats.removed[each.kind] += 1
            failpoints.hit("metadata.gc.swept")
        return stats

    def close(self) -> None:
        """No change needs to be heeded any more."""
        self._engine.stop_touching()

    async def clean(self) -> None:
        """Remove from all backends what no namespace has."""
        await self._janitor.clean()

    # Reading: each method takes a row as its query in _QUERIES has it.

    def read_lease(self, row: Row) -> None:
        namespace, node, labels, resource_type, resource_id = row
        self._objects[node] = ""
        found = marks.load(labels)
        if self._expired(graph.expiry(found)):
            return
        self.roots.append(node)
        if resource_type is not None:
            flat = graph.FLAT_LABEL in found
            self._any_flat |= flat
            resource = graph.resource_node(resource_type, resource_id, flat=flat)
            self.roots.append(f"{namespace}/{resource}")

    def read_container(self, row: Row) -> None:
        namespace, node, snapshot, labels = row
        self.roots.append(node)
        if snapshot:
            self._structure[node] = snapshot
        if labels is not None:
            self._read_labels(namespace, node, labels)

    def read_image(self, row: Row) -> None:
        namespace, node, target, labels = row
        self._structure[node] = target
        self._objects[node] = ""
        known = {} if labels is None else self._read_labels(namespace, node, labels)
        if not self._expired(graph.expiry(known)):
            self.roots.append(node)

    def read_content(self, row: Row) -> None:
        namespace, node, labels = row
        self._objects[node] = ""
        if labels is not None and graph.ROOT in self._read_labels(namespace, node, labels):
            self.roots.append(node)

    def read_snapshot(self, row: Row) -> None:
        namespace, node, backend_key, parent, labels = row
        self._objects[node] = backend_key
        if parent:
            self._structure[node] = parent
        if labels is not None:
            self._used[node] = labels
            if graph.ROOT in self._read_labels(namespace, node, labels):
                self.roots.append(node)

    def read_commit(self, row: Row) -> None:
        """A commit under way keeps the key and the parent it was promised."""
        self.roots += filter(None, row)

    def read_ingest(self, row: Row) -> None:
        node, backend_ref, expected, expires_at = row
        self._objects[node] = backend_ref
        if expected:
            self._structure[node] = expected
        if expires_at and not self._expired(expires_at):
            self.roots.append(node)

    def read_sandbox(self, row: Row) -> None:
        namespace, labels = row
        self.roots += graph.links(namespace, marks.load(labels)).references

    def _expired(self, at: int | None) -> bool:
        """Whether an object has expired; of the others the first one's time is kept."""
        if graph.expired(at, self._now):
            return True
        if at is not None:
            self.next_expiry = min(at, self.next_expiry or at)
        return False

    def _read_labels(self, namespace: str, node: str, text: str) -> dict[str, str]:
        labels = marks.load(text)
        found = graph.links(namespace, labels)
        if found.references:
            self._edges.setdefault(node, []).extend(found.references)
        for target in found.back_references:
            self._edges.setdefault(target, []).append(node)
        for target, condition in found.conditions:
            self._conditions.append((node, target, condition))
        return labels

    def _add_conditions(self) -> None:
        """Edges that depend on the labels of the snapshot they lead to."""
        for node, target, condition in self._conditions:
            labels = marks.load(self._used.get(target, "{}"))
            if graph.satisfied(condition, labels, self._now):
                self._edges.setdefault(node, []).append(target)
        self._conditions.clear()

    def _heed(
        self, nodes: set[str], reader: Engine | Transaction, mark: Callable[[Iterable[str]], None]
    ) -> None:
        """Read again what touched nodes lead to, and mark on from them."""
        for node in nodes:
            namespace, kind, key = node.split("/", 2)
            query = _POINT_QUERIES.get(kind)
            if query is None:
                continue
            self._structure.pop(node, None)
            row = reader.one(f"{query.sql} {query.one}", (namespace, *_columns(kind, key)))
            if row is not None:
                query.reader(self)(row)
        self._add_conditions()
        mark(nodes)

    async def _garbage(self, marked: set[str]) -> list[Garbage]:
        """What is not marked, in the order of deletion: children before parents."""
        kinds: dict[str, list[Garbage]] = {kind: [] for kind in _ORDER}
        for count, (node, backend_name) in enumerate(self._objects.items()):
            if count % _SLICE == 0:
                await asyncio.sleep(0)
            if not self._is_marked(node, marked):
                namespace, kind, key = node.split("/", 2)
                kinds[kind].append(Garbage(node, kind, namespace, key, backend_name))
        kinds[graph.SNAPSHOT].sort(key=self._depth, reverse=True)
        return [each for kind in _ORDER for each in kinds[kind]]

    def _depth(self, each: Garbage) -> int:
        """How many ancestors a snapshot has."""
        node, depth = each.node, 0
        while (parent := self._structure.get(node)) is not None:
            node, depth = parent, depth + 1
        return depth

    def _is_marked(self, node: str, marked: set[str]) -> bool:
        return node in marked or (self._any_flat and _flat(node) in marked)

    def _orphan(self, deleted: list[Garbage]) -> None:
        for each in deleted:
            if each.kind == graph.CONTENT:
                self._janitor.blob(each.key)
            elif each.kind == graph.INGEST:
                expected = self._structure.get(each.node, "").rpartition("/")[2]
                self._janitor.ingest(each.backend_name, expected)
            elif each.kind == graph.SNAPSHOT:
                self._janitor.snapshot(each.key.split("/", 1)[0], each.backend_name)


class _Query(NamedTuple):
    """``one`` selects a single object. Nodes are put together by SQLite, which is faster."""

    sql: str
    one: str
    reader: Callable[[Collection], Callable[[Row], None]]


_CONTAINERS = _Query(
    "SELECT namespace, namespace||'/container/'||id,"
    " iif(snapshot_key='', '', namespace||'/snapshot/'||snapshotter||'/'||snapshot_key), gc"
    " FROM containers",
    "WHERE namespace=? AND id=?",
    lambda collection: collection.read_container,
)
_IMAGES = _Query(
    "SELECT namespace, namespace||'/image/'||name, namespace||'/content/'||digest, gc FROM images",
    "WHERE namespace=? AND name=?",
    lambda collection: collection.read_image,
)
_CONTENT = _Query(
    "SELECT namespace, namespace||'/content/'||digest, gc FROM content",
    "WHERE namespace=? AND digest=?",
    lambda collection: collection.read_content,
)
_SNAPSHOTS = _Query(
    "SELECT namespace, namespace||'/snapshot/'||snapshotter||'/'||key, backend_key,"
    " iif(parent='', '', namespace||'/snapshot/'||snapshotter||'/'||parent), gc FROM snapshots",
    "WHERE namespace=? AND snapshotter=? AND key=?",
    lambda collection: collection.read_snapshot,
)
_INGESTS = _Query(
    "SELECT namespace||'/ingest/'||ref, backend_ref,"
    " iif(expected='', '', namespace||'/content/'||expected), expires_at FROM ingests",
    "WHERE namespace=? AND ref=?",
    lambda collection: collection.read_ingest,
)
_QUERIES = (
    _Query(
        "SELECT leases.namespace, leases.namespace||'/lease/'||leases.id, labels, type,"
        " lease_resources.id FROM leases LEFT JOIN lease_resources"
        " ON lease_resources.namespace=leases.namespace AND lease=leases.id",
        "",
        lambda collection: collection.read_lease,
    ),
    _CONTAINERS,
    _Query(
        "SELECT namespace, gc FROM sandboxes WHERE gc IS NOT NULL",
        "",
        lambda collection: collection.read_sandbox,
    ),
    _IMAGES,
    _CONTENT,
    _SNAPSHOTS,
    _Query(
        "SELECT namespace||'/snapshot/'||snapshotter||'/'||key,"
        " iif(parent='', '', namespace||'/snapshot/'||snapshotter||'/'||parent)"
        " FROM snapshot_commits",
        "",
        lambda collection: collection.read_commit,
    ),
    _INGESTS,
)
_POINT_QUERIES = {
    graph.CONTAINER: _CONTAINERS,
    graph.IMAGE: _IMAGES,
    graph.CONTENT: _CONTENT,
    graph.SNAPSHOT: _SNAPSHOTS,
    graph.INGEST: _INGESTS,
}

_DELETE = {
    graph.LEASE: "DELETE FROM leases WHERE namespace=? AND id=?",
    graph.SNAPSHOT: "DELETE FROM snapshots WHERE namespace=? AND snapshotter=? AND key=?",
    graph.INGEST: "DELETE FROM ingests WHERE namespace=? AND ref=?",
    graph.CONTENT: "DELETE FROM content WHERE namespace=? AND digest=?",
    graph.IMAGE: "DELETE FROM images WHERE namespace=? AND name=?",
}


def _delete(tx: Transaction, each: Garbage) -> bool:
    """Whether it was there to be deleted."""
    key = _columns(each.kind, each.key)
    if not tx.execute(_DELETE[each.kind], (each.namespace, *key)).rowcount:
        return False
    if each.kind == graph.LEASE:
        sql = "DELETE FROM lease_resources WHERE namespace=? AND lease=?"
        tx.execute(sql, (each.namespace, each.key))
    elif each.kind == graph.SNAPSHOT:
        snapshotter, name = key
        tx.emit(each.namespace, topics.snapshot_removed(snapshotter, name))
    elif each.kind == graph.IMAGE:
        tx.emit(each.namespace, topics.image_deleted(each.key))
    return True


def _columns(kind: str, key: str) -> tuple[str, ...]:
    """A node's key as the columns it is made of."""
    if kind != graph.SNAPSHOT:
        return (key,)
    snapshotter, _, name = key.partition("/")
    return snapshotter, name


def _flat(node: str) -> str:
    namespace, rest = node.split("/", 1)
    return f"{namespace}/{graph.FLAT}{rest}"
