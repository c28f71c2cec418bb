"""Async. Container records. They are kept as the messages they are served as.

``get_record`` and ``list_records`` give those messages without decoding them; filters look only
at the columns beside.
"""

from __future__ import annotations

import builtins
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cradled import identifiers
from cradled.convert import containers as convert
from cradled.core.containers import Container
from cradled.core.scope import Scope
from cradled.errors import AlreadyExists, InvalidArgument, NotFound, quote
from cradled.events import topics
from cradled.metadata import graph
from cradled.metadata import labels as marks
from cradled.metadata.engine import Engine, Row, Transaction

_UNMASKED = ("labels", "spec", "extensions", "image", "snapshotkey")
_COLUMNS = "id, image, runtime, labels, record"


class Containers:
    """The containers of one namespace."""

    def __init__(self, engine: Engine, scope: Scope) -> None:
        self._engine = engine
        self._namespace = scope.namespace

    async def get(self, container_id: str, /) -> Container:
        """Raises NotFound."""
        return convert.decode(await self.get_record(container_id))

    async def get_record(self, container_id: str, /) -> bytes:
        """The serialised message; raises NotFound."""
        row = self._engine.one(
            "SELECT record FROM containers WHERE namespace=? AND id=?",
            (self._namespace, container_id),
        )
        if row is None:
            raise self._missing(container_id)
        record: bytes = row[0]
        return record

    async def has_label(self, container_id: str, label: str, /) -> bool:
        """Whether a container has a label; False for one that is not there."""
        row = self._engine.one(
            "SELECT labels FROM containers WHERE namespace=? AND id=?",
            (self._namespace, container_id),
        )
        return row is not None and as_stored(label) in row[0]

    async def list(self, filters: Sequence[str] = (), /) -> builtins.list[Container]:
        """Those that a filter selects, by id. Raises InvalidArgument for a bad filter."""
        return [convert.decode(record) for record in await self.list_records(filters)]

    async def list_records(self, filters: Sequence[str] = (), /) -> builtins.list[bytes]:
        """As ``list``, serialised."""
        selected = marks.parsed(filters)

        def make(row: Row) -> bytes | None:
            container_id, image, runtime, labels, record = row
            if selected:
                fields = {
                    "id": container_id or None,
                    "image": image or None,
                    "runtime.name": runtime or None,
                }
                if not selected.match(marks.adaptor(fields, labels)):
                    return None
            found: bytes = record
            return found

        sql = f"SELECT {_COLUMNS} FROM containers WHERE namespace=? ORDER BY id"
        return await self._engine.scan(sql, (self._namespace,), make)

    async def create(self, container: Container, /) -> Container:
        """Returns it with its times. Raises AlreadyExists, InvalidArgument."""
        _validate(container, "create container failed validation")
        now = time.time_ns()
        made = replace(
            container, labels=marks.clean(container.labels), created_at=now, updated_at=now
        )
        row = _row(self._namespace, made)
        event = topics.container_created(made)

        def command(tx: Transaction) -> None:
            sql = "INSERT OR IGNORE INTO containers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
            if not tx.execute(sql, row).rowcount:
                raise AlreadyExists(f"container {quote(made.id)}")
            tx.touch(self._namespace, graph.node(graph.CONTAINER, made.id))
            tx.emit(self._namespace, event)

        await self._engine.run(command)
        return made

    async def update(self, container: Container, fieldpaths: Sequence[str] = (), /) -> Container:
        """Change the fields that the paths name; without paths all that may change.

        Raises NotFound, InvalidArgument for what is immutable or not valid.
        """
        if not container.id:
            raise InvalidArgument("must specify a container id")

        def command(tx: Transaction) -> Container:
            stored = tx.one(
                "SELECT record FROM containers WHERE namespace=? AND id=?",
                (self._namespace, container.id),
            )
            if stored is None:
                raise self._missing(container.id)
            updated = _updated(convert.decode(stored[0]), container, fieldpaths)
            _validate(updated, "update failed validation")
            updated = replace(
                updated, labels=marks.clean(updated.labels), updated_at=time.time_ns()
            )
            tx.execute(
                "UPDATE containers SET image=?, runtime=?, snapshotter=?, snapshot_key=?, labels=?,"
                " gc=?, record=? WHERE namespace=? AND id=?",
                (*_row(self._namespace, updated)[2:], self._namespace, container.id),
            )
            tx.touch(self._namespace, graph.node(graph.CONTAINER, updated.id))
            tx.emit(self._namespace, topics.container_updated(updated))
            return updated

        return await self._engine.run(command)

    async def delete(self, container_id: str, /) -> None:
        """Remove the record, whatever runs of it. Raises NotFound."""
        event = topics.container_deleted(container_id)

        def command(tx: Transaction) -> None:
            sql = "DELETE FROM containers WHERE namespace=? AND id=?"
            if not tx.execute(sql, (self._namespace, container_id)).rowcount:
                raise self._missing(container_id)
            tx.deleted()
            tx.emit(self._namespace, event)

        await self._engine.run(command)

    def _missing(self, container_id: str) -> NotFound:
        return NotFound(f"container {quote(container_id)} in namespace {quote(self._namespace)}")


def as_stored(label: str) -> str:
    """How a label's key, of characters that JSON leaves as they are, begins in a column."""
    return f'"{label}":'


def _row(namespace: str, container: Container) -> tuple[Any, ...]:
    return (
        namespace,
        container.id,
        container.image,
        container.runtime.name,
        container.snapshotter,
        container.snapshot_key,
        marks.dump(container.labels),
        marks.dump_relevant(container.labels),
        convert.encode(container),
    )


def _updated(old: Container, new: Container, fieldpaths: Sequence[str]) -> Container:
    if not fieldpaths:
        if new.snapshotter != old.snapshotter:
            raise InvalidArgument("container.Snapshotter field is immutable")
        if new.runtime.name != old.runtime.name:
            raise InvalidArgument("container.Runtime.Name field is immutable")
    for path in fieldpaths or _UNMASKED:
        old = _field_updated(old, new, path)
    return old


def _field_updated(old: Container, new: Container, path: str) -> Container:
    if path == "image":
        return replace(old, image=new.image)
    if path == "spec":
        return replace(old, spec=new.spec)
    if path == "snapshotkey":
        return replace(old, snapshot_key=new.snapshot_key)
    extensions = marks.extended(old.extensions, new.extensions, path)
    if extensions is not None:
        return replace(old, extensions=extensions)
    labels = marks.masked(old.labels, new.labels, path)
    if labels is None:
        raise InvalidArgument(f"cannot update {quote(path)} field on {quote(old.id)}")
    return replace(old, labels=labels)


def _validate(container: Container, prefix: str) -> None:
    try:
        _check(container)
    except InvalidArgument as error:
        raise InvalidArgument(f"{prefix}: {error.what}") from None


def _check(container: Container) -> None:
    try:
        identifiers.validate(container.id)
    except InvalidArgument as error:
        raise InvalidArgument(f"container.ID: {error.what}") from None
    if "" in container.extensions:
        raise InvalidArgument("container.Extension keys must not be zero-length")
    marks.clean(container.labels, "containers.Labels")
    if not container.runtime.name:
        raise InvalidArgument("container.Runtime.Name must be set")
    if container.spec is None:
        raise InvalidArgument("container.Spec must be set")
    if container.snapshot_key and not container.snapshotter:
        raise InvalidArgument("container.Snapshotter must be set if container.SnapshotKey is set")
