"""Blocking. Where everything of a daemon lies, and what its databases say: read, never written.

A daemon may be running meanwhile: SQLite lets others read, each database in one state.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from typing import Any, NamedTuple

from cradled import damage
from cradled.core.values import Labels
from cradled.damage import Damaged
from cradled.metadata import labels as marks
from cradled.snapshotters import records
from cradled.snapshotters.records import Record


class Ground(NamedTuple):
    """Paths: ``metadata`` of a file, the others of directories; ``snapshotters`` by name."""

    root: str
    state: str
    metadata: str
    content: str
    snapshotters: Mapping[str, str]
    bundles: str
    work: str
    sockets: str

    def base(self, path: str) -> str:
        """The directory that is ours, and on whose file system a path is."""
        ours = (self.root, self.state, *self.snapshotters.values())
        inside = [one for one in ours if path == one or path.startswith(f"{one}/")]
        near = [one for one in inside if one in (self.root, self.state)]
        return max(near or inside, key=len, default=os.path.dirname(path))


class Content(NamedTuple):
    size: int
    labels: Labels


class Snapshot(NamedTuple):
    backend_key: str
    parent: str
    kind: int
    labels: Labels


class Image(NamedTuple):
    digest: str
    labels: Labels


class Container(NamedTuple):
    snapshotter: str
    snapshot_key: str
    image: str
    labels: Labels


class Known(NamedTuple):
    """The rows, by what identifies each; the namespace comes first."""

    content: dict[tuple[str, str], Content]
    snapshots: dict[tuple[str, str, str], Snapshot]
    images: dict[tuple[str, str], Image]
    containers: dict[tuple[str, str], Container]
    leases: dict[tuple[str, str], Labels]
    resources: list[tuple[str, str, str, str]]
    """(namespace, lease, type, id)."""
    ingests: dict[tuple[str, str], tuple[str, str]]
    """(backend ref, expected digest)."""
    intents: set[tuple[str, str]]
    """(snapshotter, backend name) of commits that were broken off: the next start settles them."""
    unreadable: list[tuple[str, tuple[str, ...]]]
    """(table, key) of rows whose labels cannot be read."""


def known(ground: Ground) -> Known:
    """Read the metadata. Raises Damaged; a database that is not there has no rows."""
    if not os.path.exists(ground.metadata):
        return Known({}, {}, {}, {}, {}, [], {}, set(), [])
    try:
        with closing(damage.reader(ground.metadata)) as connection:
            check(connection)
            with _OneState(connection):
                return _read(connection)
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        raise Damaged(str(error)) from error


def check(connection: sqlite3.Connection) -> None:
    """Raises Damaged."""
    rows = connection.execute("PRAGMA integrity_check(1)").fetchall()
    if rows != [("ok",)]:
        raise Damaged("; ".join(str(row[0]).replace("\n", " ") for row in rows))


def of_snapshotter(root: str) -> list[Record]:
    """Read the records of a snapshotter. Raises Damaged."""
    path = f"{root}/metadata.db"
    if not os.path.exists(path):
        return []
    try:
        with closing(damage.reader(path)) as connection:
            check(connection)
            return records.read_all(connection)
    except (sqlite3.DatabaseError, ValueError) as error:
        raise Damaged(str(error)) from error


class _OneState:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN")

    def __exit__(self, *error: object) -> None:
        self._connection.execute("COMMIT")


def _read(connection: sqlite3.Connection) -> Known:
    unreadable: list[tuple[str, tuple[str, ...]]] = []

    def rows(
        table: str, columns: str, keys: int
    ) -> list[tuple[tuple[Any, ...], list[Any], Labels]]:
        found = []
        for row in connection.execute(f"SELECT {columns}, labels FROM {table}"):
            try:
                labels: Labels = marks.load(row[-1])
            except (ValueError, TypeError):
                unreadable.append((table, row[:keys]))
                labels = {}
            found.append((row[:keys], list(row[keys:-1]), labels))
        return found

    return Known(
        {k: Content(v[0], x) for k, v, x in rows("content", "namespace, digest, size", 2)},
        {
            k: Snapshot(v[0], v[1], v[2], x)
            for k, v, x in rows(
                "snapshots", "namespace, snapshotter, key, backend_key, parent, kind", 3
            )
        },
        {k: Image(v[0], x) for k, v, x in rows("images", "namespace, name, digest", 2)},
        {
            k: Container(v[0], v[1], v[2], x)
            for k, v, x in rows("containers", "namespace, id, snapshotter, snapshot_key, image", 2)
        },
        {k: x for k, _, x in rows("leases", "namespace, id", 2)},
        connection.execute("SELECT namespace, lease, type, id FROM lease_resources").fetchall(),
        {
            row[:2]: row[2:]
            for row in connection.execute(
                "SELECT namespace, ref, backend_ref, expected FROM ingests"
            )
        },
        set(connection.execute("SELECT snapshotter, backend_name FROM snapshot_commits")),
        unreadable,
    )
