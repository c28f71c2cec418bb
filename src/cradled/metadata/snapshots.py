"""Async. Snapshots as a namespace sees them, over a snapshotter that knows backend names only.

The row is the truth. It is written after the backend has made a snapshot and removed before the
backend removes it, so a crash leaves at most a snapshot that nobody names; the janitor finds it.
A commit renames in both: an intent is written first (``snapshot_commits``), which also reserves
the new name, and a commit that a crash interrupted is carried on at the next start (``recover``).

Kind and parent are kept here too, so that a wrong request is refused with the client's own names
before the backend is asked. Of the labels the backend gets those that are meant for it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

from cradled import failpoints
from cradled.core.mount import Mount
from cradled.core.scope import Scope, bound, is_remote
from cradled.core.snapshots import Kind, SnapshotInfo, Snapshotter, Usage
from cradled.core.values import Labels
from cradled.errors import (
    AlreadyExists,
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    quote,
)
from cradled.events import topics
from cradled.metadata import graph, leases
from cradled.metadata import labels as marks
from cradled.metadata.backend_names import BackendNames, translated
from cradled.metadata.engine import Engine, Row, Transaction
from cradled.metadata.janitor import Janitor
from cradled.spans import span, traced

TARGET = "containerd.io/snapshot.ref"
_INHERITED = "containerd.io/snapshot/"

_FIND = (
    "SELECT key, backend_key, parent, kind, created_at, updated_at, labels FROM snapshots"
    " WHERE namespace=? AND snapshotter=?"
)


@dataclass(frozen=True, slots=True)
class Common:
    """What the snapshots of all namespaces in one snapshotter share."""

    name: str
    backend: Snapshotter
    engine: Engine
    janitor: Janitor
    names: BackendNames


class _Entry(NamedTuple):
    key: str
    backend_key: str
    parent: str
    kind: int
    created_at: int
    updated_at: int
    labels: str


class Snapshots:
    """Implements ``core.snapshots.Snapshotter`` for one namespace and one snapshotter."""

    def __init__(self, common: Common, scope: Scope) -> None:
        self._common = common
        self._name = common.name
        self._backend = bound(common.backend, scope)
        self._engine = common.engine
        self._scope = scope
        self._namespace = scope.namespace
        self._where = (scope.namespace, common.name)

    async def stat(self, key: str, /) -> SnapshotInfo:
        return await self._info(self._require(key))

    async def update(self, info: SnapshotInfo, fieldpaths: Sequence[str] = (), /) -> SnapshotInfo:
        if not info.name:
            raise InvalidArgument("snapshot name required")
        new = marks.clean(info.labels, "info.Labels")
        entry = self._require(info.name)
        before = marks.load(entry.labels)
        after = _masked(info.name, before, new, fieldpaths)
        if inherited(before) != inherited(after):
            with translated({entry.backend_key: info.name}):
                backend_info = await self._backend.stat(entry.backend_key)
                await self._backend.update(replace(backend_info, labels=inherited(after)))

        def command(tx: Transaction) -> _Entry:
            current = self._require(info.name, tx)
            labels = _masked(info.name, marks.load(current.labels), new, fieldpaths)
            now, text = time.time_ns(), marks.dump(labels)
            tx.execute(
                "UPDATE snapshots SET updated_at=?, labels=?, gc=?"
                " WHERE namespace=? AND snapshotter=? AND key=?",
                (now, text, marks.dump_relevant(labels), *self._where, info.name),
            )
            self._touch(tx, info.name)
            return current._replace(updated_at=now, labels=text)

        return await self._info(await self._engine.run(command))

    async def usage(self, key: str, /) -> Usage:
        entry = self._require(key)
        with translated({entry.backend_key: key}):
            return await self._backend.usage(entry.backend_key)

    async def mounts(self, key: str, /) -> list[Mount]:
        entry = self._require(key)
        if entry.kind not in (Kind.ACTIVE, Kind.VIEW):
            raise FailedPrecondition(f"requested snapshot {key} not active or view")
        with translated({entry.backend_key: key}):
            return await self._backend.mounts(entry.backend_key)

    async def prepare(self, key: str, parent: str, labels: Labels, /) -> list[Mount]:
        return await self._create(Kind.ACTIVE, key, parent, labels)

    async def view(self, key: str, parent: str, labels: Labels, /) -> list[Mount]:
        return await self._create(Kind.VIEW, key, parent, labels)

    @traced("snapshot.commit")
    async def commit(self, name: str, key: str, labels: Labels, /, *, parent: str = "") -> None:
        if not name:
            raise InvalidArgument("snapshot name required")
        kept = marks.clean(labels, "info.Labels")
        leases.require(self._engine, self._scope)
        backend_name = await self._common.names.new(self._namespace, name)
        intent = Intent(
            self._namespace, self._name, name, key, backend_name, parent, marks.dump(kept),
            self._scope.lease,
        )  # fmt: skip
        with self._common.janitor.pinned(backend_name):
            try:
                await self._commit(intent, inherited(kept))
            except BaseException:  # cancelled, say: it may have been committed all the same
                await _settle(self._common, intent)
                raise

    async def _commit(self, intent: Intent, labels: dict[str, str]) -> None:
        entry, parent = await self._engine.run(lambda tx: self._begin(tx, intent))
        backend_key, backend_name = entry.backend_key, intent.backend_name
        failpoints.hit("metadata.snapshot.intended")
        names = {backend_key: entry.key, backend_name: intent.name, parent: intent.parent}
        with span("snapshotter.commit", snapshotter=self._name), translated(names):
            await self._backend.commit(backend_name, backend_key, labels, parent=parent)
        failpoints.hit("metadata.snapshot.committed")
        await self._engine.run(lambda tx: finish(tx, intent))

    @traced("snapshot.remove")
    async def remove(self, key: str, /) -> None:
        entry = self._require(key)

        def command(tx: Transaction) -> None:
            self._require(key, tx)
            if self._has_child(tx, key):
                raise FailedPrecondition("cannot remove snapshot with child")
            if self._is_being_committed(tx, key):
                raise FailedPrecondition(f"snapshot {key} is being committed")
            tx.execute(
                "DELETE FROM snapshots WHERE namespace=? AND snapshotter=? AND key=?",
                (*self._where, key),
            )
            leases.leave(tx, self._scope, f"snapshots/{self._name}", key)
            tx.deleted()
            tx.emit(self._namespace, topics.snapshot_removed(self._name, key))

        with self._disowned(key, entry.backend_key):
            await self._engine.run(command)

    async def walk(self, filters: Sequence[str] = (), /) -> AsyncIterator[SnapshotInfo]:
        """By key. Raises InvalidArgument for a bad filter."""
        selected = marks.parsed(filters)
        sql = f"{_FIND} ORDER BY key"
        for entry in await self._engine.scan(sql, self._where, _Entry._make):
            info = await self._info(entry)
            fields = {"kind": info.kind.name.lower(), "name": info.name, "parent": info.parent}
            if not selected or selected.match(marks.adaptor(fields, marks.dump(info.labels))):
                yield info

    async def cleanup(self) -> None:
        await self._backend.cleanup()

    @traced("snapshot.prepare")
    async def _create(self, kind: Kind, key: str, parent: str, labels: Labels) -> list[Mount]:
        kept = marks.clean(labels, "info.Labels")
        if not key:
            raise InvalidArgument("snapshot key required")
        leases.require(self._engine, self._scope)
        target = kept.get(TARGET, "") if kind is Kind.ACTIVE else ""
        if target and self._find(target) is not None:
            await self._engine.run(lambda tx: self._join(tx, target))
            raise AlreadyExists(f"target snapshot {quote(target)}")
        if self._find(key) is not None:
            raise AlreadyExists(f"snapshot {quote(key)}")
        backend_parent = self._parent(parent)
        backend_key = await self._common.names.new(self._namespace, key)
        with self._common.janitor.pinned(backend_key), self._disowned(key, backend_key):
            make = self._backend.prepare if kind is Kind.ACTIVE else self._backend.view
            try:
                with (
                    span("snapshotter.prepare", snapshotter=self._name),
                    translated({backend_key: key, backend_parent: parent}),
                ):
                    mounts = await make(backend_key, backend_parent, inherited(kept))
            except AlreadyExists:
                if not target:
                    raise
                await self._adopt(target, parent, backend_parent, kept)
                raise AlreadyExists(f"target snapshot {quote(target)} from snapshotter") from None
            failpoints.hit("metadata.snapshot.prepared")
            await self._engine.run(
                lambda tx: self._insert(tx, kind, key, backend_key, parent, kept)
            )
        return mounts

    async def _adopt(
        self, target: str, parent: str, backend_parent: str, labels: dict[str, str]
    ) -> None:
        """Register, under its target name, a snapshot that a remote snapshotter says it has."""
        quoted = target.replace("\\", "\\\\").replace('"', '\\"')
        wanted = f'labels."{TARGET}"=="{quoted}"'
        async for info in self._backend.walk((wanted,)):
            if info.kind is Kind.COMMITTED and info.parent == backend_parent:
                break
        else:
            raise NotFound(f"target snapshot {quote(target)} in backend")
        await self._engine.run(
            lambda tx: self._insert(tx, Kind.COMMITTED, target, info.name, parent, labels)
        )

    def _insert(
        self,
        tx: Transaction,
        kind: Kind,
        key: str,
        backend_key: str,
        parent: str,
        labels: dict[str, str],
    ) -> None:
        self._parent(parent, tx)
        now = time.time_ns()
        row = (
            *self._where, key, backend_key, parent, int(kind), now, now, marks.dump(labels),
            marks.dump_relevant(labels),
        )  # fmt: skip
        if self._is_reserved(tx, key) or not tx.execute(_INSERT, row).rowcount:
            raise AlreadyExists(f"snapshot {quote(key)}")
        self._join(tx, key)
        self._touch(tx, key)
        if kind is Kind.ACTIVE:
            tx.emit(self._namespace, topics.snapshot_prepared(self._name, key, parent))

    def _begin(self, tx: Transaction, intent: Intent) -> tuple[_Entry, str]:
        """Check and write down a commit; returns the entry and the backend name of a new parent."""
        # First, for whoever asks again because the answer was lost.
        if self._find(intent.name, tx) is not None or self._is_reserved(tx, intent.name):
            raise AlreadyExists(f"snapshot {quote(intent.name)}")
        entry = self._require(intent.key, tx)
        if entry.kind != Kind.ACTIVE:
            raise FailedPrecondition(f"snapshot {intent.key} is not active")
        if self._is_being_committed(tx, intent.key):
            raise FailedPrecondition(f"snapshot {intent.key} is being committed")
        backend_parent = ""
        if intent.parent and intent.parent != entry.parent:
            if entry.parent:
                raise InvalidArgument("cannot change parent of active snapshot")
            backend_parent = self._parent(intent.parent, tx)
        tx.execute("INSERT INTO snapshot_commits VALUES (?, ?, ?, ?, ?, ?, ?, ?)", intent)
        return entry, backend_parent

    async def _info(self, entry: _Entry) -> SnapshotInfo:
        """An entry with what the backend knows besides: its own labels."""
        with translated({entry.backend_key: entry.key}):
            found = await self._backend.stat(entry.backend_key)
        return SnapshotInfo(
            name=entry.key,
            kind=Kind(entry.kind),
            parent=entry.parent,
            created_at=entry.created_at,
            updated_at=entry.updated_at,
            labels={**found.labels, **marks.load(entry.labels)},
        )

    def _find(self, key: str, reader: Engine | Transaction | None = None) -> _Entry | None:
        row: Row | None = (reader or self._engine).one(f"{_FIND} AND key=?", (*self._where, key))
        return None if row is None else _Entry._make(row)

    def _require(self, key: str, reader: Engine | Transaction | None = None) -> _Entry:
        entry = self._find(key, reader)
        if entry is None:
            raise NotFound(f"snapshot {key} does not exist")
        return entry

    def _parent(self, key: str, reader: Engine | Transaction | None = None) -> str:
        """The backend name of a parent; empty for none."""
        if not key:
            return ""
        entry = self._find(key, reader)
        if entry is None:
            raise NotFound(f"parent snapshot {key} does not exist")
        if entry.kind != Kind.COMMITTED:
            raise InvalidArgument(f"parent {quote(key)} is not committed snapshot")
        return entry.backend_key

    def _has_child(self, tx: Transaction, key: str) -> bool:
        return any(
            tx.one(
                f"SELECT 1 FROM {table} WHERE namespace=? AND snapshotter=? AND parent=?",
                (*self._where, key),
            )
            for table in ("snapshots", "snapshot_commits")
        )

    def _is_being_committed(self, tx: Transaction, key: str) -> bool:
        sql = "SELECT 1 FROM snapshot_commits WHERE namespace=? AND snapshotter=? AND key=?"
        return tx.one(sql, (*self._where, key)) is not None

    def _is_reserved(self, tx: Transaction, name: str) -> bool:
        sql = "SELECT 1 FROM snapshot_commits WHERE namespace=? AND snapshotter=? AND name=?"
        return tx.one(sql, (*self._where, name)) is not None

    def _join(self, tx: Transaction, key: str) -> None:
        leases.join(tx, self._scope, f"snapshots/{self._name}", key)

    def _touch(self, tx: Transaction, key: str) -> None:
        tx.touch(self._namespace, graph.node(graph.SNAPSHOT, f"{self._name}/{key}"))

    @contextmanager
    def _disowned(self, key: str, backend_key: str) -> Iterator[None]:
        """What the backend has and no entry names when the block ends, however, is an orphan."""
        try:
            yield
        finally:
            entry = self._find(key)
            if entry is None or entry.backend_key != backend_key:
                self._common.janitor.snapshot(self._name, backend_key)


class Intent(NamedTuple):
    """A row of ``snapshot_commits``."""

    namespace: str
    snapshotter: str
    name: str
    key: str
    backend_name: str
    parent: str
    labels: str
    lease: str


_INSERT = "INSERT OR IGNORE INTO snapshots VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


def finish(tx: Transaction, intent: Intent) -> None:
    """The backend has committed: the key's entry becomes the name's."""
    if not forget_intent(tx, intent):
        return
    where = (intent.namespace, intent.snapshotter, intent.key)
    key = "namespace=? AND snapshotter=? AND key=?"
    row = tx.one(f"SELECT parent FROM snapshots WHERE {key}", where)
    parent = intent.parent or (row[0] if row else "")
    now, labels = time.time_ns(), marks.load(intent.labels)
    tx.execute(f"DELETE FROM snapshots WHERE {key}", where)
    tx.execute(
        _INSERT,
        (
            intent.namespace, intent.snapshotter, intent.name, intent.backend_name, parent,
            int(Kind.COMMITTED), now, now, intent.labels, marks.dump_relevant(labels),
        ),
    )  # fmt: skip
    scope, resource = Scope(intent.namespace, intent.lease), f"snapshots/{intent.snapshotter}"
    leases.leave(tx, scope, resource, intent.key)
    if leases.exists(
        tx, scope
    ):  # it may have gone meanwhile: the snapshot is committed all the same
        leases.join(tx, scope, resource, intent.name)
    tx.touch(intent.namespace, graph.resource_node(resource, intent.name))
    event = topics.snapshot_committed(intent.snapshotter, intent.key, intent.name)
    tx.emit(intent.namespace, event)


def forget_intent(tx: Transaction, intent: Intent) -> bool:
    """The commit has come to its end; False when it had before."""
    sql = (
        "DELETE FROM snapshot_commits"
        " WHERE namespace=? AND snapshotter=? AND name=? AND backend_name=?"
    )
    key = (intent.namespace, intent.snapshotter, intent.name, intent.backend_name)
    return bool(tx.execute(sql, key).rowcount)


async def recover(common: Common) -> None:
    """Carry on, or give up, the commits that a crash interrupted."""
    sql = "SELECT * FROM snapshot_commits WHERE snapshotter=?"
    for intent in map(Intent._make, common.engine.query(sql, (common.name,))):
        if is_remote(common.backend):
            common.janitor.later(common.name, functools.partial(_settle, common, intent))
        else:
            await _settle(common, intent)


async def _settle(common: Common, intent: Intent) -> None:
    """Make the entries say what the backend says, if the intent is still there.

    A backend that does not say is asked again by and by.
    """
    sql = "SELECT 1 FROM snapshot_commits WHERE snapshotter=? AND name=? AND backend_name=?"
    if not common.engine.one(sql, (common.name, intent.name, intent.backend_name)):
        return
    try:
        backend = bound(common.backend, Scope(intent.namespace))
        done = (await backend.stat(intent.backend_name)).kind is Kind.COMMITTED
    except NotFound:
        done = False
    except (Error, OSError):
        common.janitor.later(common.name, functools.partial(_settle, common, intent))
        return
    end = finish if done else forget_intent
    await common.engine.run(lambda tx: bool(end(tx, intent)))


def inherited(labels: Labels) -> dict[str, str]:
    """The labels that a backend gets to see."""
    return {
        key: value for key, value in labels.items() if key == TARGET or key.startswith(_INHERITED)
    }


def _masked(
    name: str, old: dict[str, str], new: dict[str, str], fieldpaths: Sequence[str]
) -> dict[str, str]:
    for path in fieldpaths or ("labels",):
        changed = marks.masked(old, new, path)
        if changed is None:
            raise InvalidArgument(f"cannot update {quote(path)} field on snapshot {quote(name)}")
        old = changed
    return old
