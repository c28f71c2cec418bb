"""Async. Namespaces: names that everything else belongs to, with labels.

Most come into being by the first object made in them; none goes away but by ``delete``.
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence

from cradled import identifiers
from cradled.core.values import Labels
from cradled.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, quote
from cradled.events import topics
from cradled.metadata import labels as marks
from cradled.metadata.engine import Engine, Transaction
from cradled.metadata.janitor import Janitor

_EMPTIED = ("leases", "lease_resources", "ingests", "sandboxes")


class Namespaces:
    def __init__(self, engine: Engine, janitor: Janitor) -> None:
        self._engine = engine
        self._janitor = janitor

    async def get(self, name: str, /) -> dict[str, str]:
        """The labels; none for a namespace that does not exist."""
        row = self._engine.one("SELECT labels FROM namespaces WHERE name=?", (name,))
        return marks.load(row[0]) if row else {}

    async def list(self) -> list[tuple[str, dict[str, str]]]:
        """All names with their labels, in bytewise order."""
        rows = self._engine.query("SELECT name, labels FROM namespaces ORDER BY name")
        return [(name, marks.load(text)) for name, text in rows]

    async def create(self, name: str, labels: Labels, /) -> None:
        """Raises AlreadyExists, InvalidArgument."""
        identifiers.validate(name)
        kept = marks.clean(labels, "namespace.Labels")
        row = (name, marks.dump(kept))

        def command(tx: Transaction) -> None:
            if not tx.execute("INSERT OR IGNORE INTO namespaces VALUES (?, ?)", row).rowcount:
                raise AlreadyExists(f"namespace {quote(name)}")
            tx.emit(name, topics.namespace_created(name, labels))

        await self._engine.run(command)

    async def update(self, name: str, labels: Labels, fieldpaths: Sequence[str] = (), /) -> None:
        """Replace all labels, or those that ``labels.<k>`` paths name.

        Makes the namespace if it is not there. Raises InvalidArgument for other paths.
        """
        identifiers.validate(name)
        new = marks.clean(labels, "namespace.Labels")
        for path in fieldpaths:
            if not path.startswith("labels."):
                raise InvalidArgument(f"cannot update {quote(path)} field", verbatim=True)

        def command(tx: Transaction) -> None:
            row = tx.one("SELECT labels FROM namespaces WHERE name=?", (name,))
            kept = new
            if fieldpaths:
                kept = marks.load(row[0]) if row else {}
                for path in fieldpaths:
                    kept = marks.masked(kept, new, path) or {}
            tx.execute(
                "INSERT INTO namespaces VALUES (?, ?)"
                " ON CONFLICT (name) DO UPDATE SET labels=excluded.labels",
                (name, marks.dump(kept)),
            )
            tx.emit(name, topics.namespace_updated(name, labels))

        await self._engine.run(command)

    async def delete(self, name: str, /) -> None:
        """Raises FailedPrecondition while objects are in it, NotFound."""

        def command(tx: Transaction) -> builtins.list[tuple[str, str]]:
            if not tx.one("SELECT 1 FROM namespaces WHERE name=?", (name,)):
                raise NotFound(f"namespace {quote(name)}")
            if left := _contents(tx, name):
                text = f"namespace {quote(name)} must be empty, but it still has {', '.join(left)}"
                raise FailedPrecondition(text)
            sql = "SELECT backend_ref, expected FROM ingests WHERE namespace=?"
            ingests: builtins.list[tuple[str, str]] = tx.execute(sql, (name,)).fetchall()
            for table in _EMPTIED:
                tx.execute(f"DELETE FROM {table} WHERE namespace=?", (name,))
            tx.execute("DELETE FROM namespaces WHERE name=?", (name,))
            tx.emit(name, topics.namespace_deleted(name))
            return ingests

        def abandon(ingests: builtins.list[tuple[str, str]]) -> None:
            for backend_ref, expected in ingests:
                self._janitor.ingest(backend_ref, expected)

        await self._engine.run(command, abandon)


def _contents(tx: Transaction, name: str) -> list[str]:
    """What keeps a namespace from being deleted, in the words of the error."""
    tables = {"images": "images", "blobs": "content", "containers": "containers"}
    left = [
        word
        for word, table in tables.items()
        if tx.one(f"SELECT 1 FROM {table} WHERE namespace=? LIMIT 1", (name,))
    ]
    found = tx.execute(
        "SELECT DISTINCT snapshotter FROM snapshots WHERE namespace=? ORDER BY 1", (name,)
    )
    return left + [f"snapshots on {quote(snapshotter)} snapshotter" for (snapshotter,) in found]
