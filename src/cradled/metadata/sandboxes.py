"""Async. Sandbox records. They are kept as the messages they are served as."""

from __future__ import annotations

import builtins
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from cradled import identifiers
from cradled.convert import sandboxes as convert
from cradled.core.sandboxes import Sandbox
from cradled.core.scope import Scope
from cradled.errors import AlreadyExists, InvalidArgument, NotFound, quote
from cradled.metadata import graph
from cradled.metadata import labels as marks
from cradled.metadata.engine import Engine, Row, Transaction

_UNMASKED = ("labels", "extensions", "spec", "runtime")
_SELECT = "SELECT record FROM sandboxes WHERE namespace=? AND id=?"


class Sandboxes:
    """The sandboxes of one namespace."""

    def __init__(self, engine: Engine, scope: Scope) -> None:
        self._engine = engine
        self._namespace = scope.namespace

    async def get(self, sandbox_id: str, /) -> Sandbox:
        """Raises NotFound."""
        row = self._engine.one(_SELECT, (self._namespace, sandbox_id))
        if row is None:
            raise self._missing(self._engine.one, sandbox_id)
        return convert.decode(row[0])

    async def list(self, filters: Sequence[str] = (), /) -> builtins.list[Sandbox]:
        """Those that a filter selects, by id. Raises InvalidArgument for a bad filter."""
        selected = marks.parsed(filters)

        def make(row: Row) -> Sandbox | None:
            sandbox_id, labels, record = row
            if selected and not selected.match(marks.adaptor({"id": sandbox_id}, labels)):
                return None
            return convert.decode(record)

        sql = "SELECT id, labels, record FROM sandboxes WHERE namespace=? ORDER BY id"
        return await self._engine.scan(sql, (self._namespace,), make)

    async def create(self, sandbox: Sandbox, /) -> Sandbox:
        """Returns it with its times. Raises AlreadyExists, InvalidArgument."""
        _validate(sandbox)
        now = time.time_ns()
        made = replace(sandbox, labels=marks.clean(sandbox.labels), created_at=now, updated_at=now)

        def command(tx: Transaction) -> None:
            sql = "INSERT OR IGNORE INTO sandboxes VALUES (?, ?, ?, ?, ?)"
            if not tx.execute(sql, _row(self._namespace, made)).rowcount:
                raise AlreadyExists(f"sandbox bucket {quote(made.id)} already exists")
            self._touch(tx, made)

        await self._engine.run(command)
        return made

    async def update(self, sandbox: Sandbox, fieldpaths: Sequence[str] = (), /) -> Sandbox:
        """Change the fields that the paths name; without paths all that may change.

        Raises NotFound, InvalidArgument for what is immutable or not valid.
        """

        def command(tx: Transaction) -> Sandbox:
            stored = tx.one(_SELECT, (self._namespace, sandbox.id))
            if stored is None:
                raise self._missing(tx.one, sandbox.id)
            updated = _updated(convert.decode(stored[0]), sandbox, fieldpaths)
            _validate(updated)
            labels = marks.clean(updated.labels)
            updated = replace(updated, labels=labels, updated_at=time.time_ns())
            tx.execute(
                "UPDATE sandboxes SET labels=?, gc=?, record=? WHERE namespace=? AND id=?",
                (*_row(self._namespace, updated)[2:], self._namespace, sandbox.id),
            )
            self._touch(tx, updated)
            return updated

        return await self._engine.run(command)

    async def delete(self, sandbox_id: str, /) -> None:
        """Raises NotFound."""

        def command(tx: Transaction) -> None:
            sql = "DELETE FROM sandboxes WHERE namespace=? AND id=?"
            if not tx.execute(sql, (self._namespace, sandbox_id)).rowcount:
                raise self._missing(tx.one, sandbox_id)
            tx.deleted()

        await self._engine.run(command)

    def _touch(self, tx: Transaction, sandbox: Sandbox) -> None:
        """What its labels refer to; a sandbox is no object of the collection itself."""
        for node in graph.links(self._namespace, sandbox.labels).references:
            tx.touch(self._namespace, node.removeprefix(f"{self._namespace}/"))

    def _missing(self, one: Callable[[str, tuple[Any, ...]], Row | None], id: str) -> NotFound:
        """In the original's words, which tell whether the namespace has sandboxes at all."""
        sql = "SELECT 1 FROM sandboxes WHERE namespace=? LIMIT 1"
        some = one(sql, (self._namespace,)) is not None
        return NotFound(f"bucket {quote(id)} not found" if some else "no sandbox buckets")


def _row(namespace: str, sandbox: Sandbox) -> tuple[Any, ...]:
    labels = marks.dump(sandbox.labels)
    relevant = marks.dump_relevant(sandbox.labels)
    return namespace, sandbox.id, labels, relevant, convert.encode(sandbox)


def _validate(sandbox: Sandbox) -> None:
    try:
        identifiers.validate(sandbox.id)
    except InvalidArgument as error:
        what = f"failed to validate sandbox: invalid sandbox ID: {error.what}"
        raise InvalidArgument(what) from None
    if "" in sandbox.extensions:
        raise InvalidArgument("sandbox.Extension keys must not be zero-length")
    marks.clean(sandbox.labels, "sandbox.Labels")


def _updated(old: Sandbox, new: Sandbox, fieldpaths: Sequence[str]) -> Sandbox:
    if not fieldpaths and new.runtime.name != old.runtime.name:
        raise InvalidArgument("sandbox.Runtime.Name field is immutable")
    for path in fieldpaths or _UNMASKED:
        old = _field_updated(old, new, path)
    return old


def _field_updated(old: Sandbox, new: Sandbox, path: str) -> Sandbox:
    if path == "runtime":
        return replace(old, runtime=new.runtime)
    if path == "spec":
        return replace(old, spec=new.spec)
    extensions = marks.extended(old.extensions, new.extensions, path)
    if extensions is not None:
        return replace(old, extensions=extensions)
    labels = marks.masked(old.labels, new.labels, path)
    if labels is None:
        raise InvalidArgument(f"cannot update {quote(path)} field on sandbox {quote(old.id)}")
    return replace(old, labels=labels)
