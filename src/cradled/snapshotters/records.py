"""Blocking. What the directory-based snapshotters know of each snapshot, in SQLite.

    snapshots    id (names the directory), key, parent (an id, or null), kind, times in nanoseconds,
                 labels (JSON), size and inodes (of committed ones)

Reads are short and may run on the loop: they have a connection of their own, and readers never
wait in WAL mode. ``change`` blocks: whoever gets its turn commits for all who wait, with one fsync.

A record is durable before its snapshot is told of. It may be gone after a crash only together with
everything that knew of it; a directory without a record is what ``cleanup`` is for.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

from cradled import damage, failpoints
from cradled.core.snapshots import Kind, SnapshotInfo, Usage
from cradled.core.values import Labels
from cradled.damage import Damaged
from cradled.errors import (
    AlreadyExists,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    Unavailable,
    quote,
)

T = TypeVar("T")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS snapshots (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    parent INTEGER REFERENCES snapshots (id),
    kind INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    labels TEXT NOT NULL,
    size INTEGER NOT NULL DEFAULT 0,
    inodes INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX IF NOT EXISTS children ON snapshots (parent);
"""
_FIELDS = "id", "key", "parent", "kind", "created_at", "updated_at", "labels", "size", "inodes"
_COLUMNS = """
    s.id, s.key, s.parent, s.kind, s.created_at, s.updated_at, s.labels, s.size, s.inodes, p.key
    FROM snapshots s LEFT JOIN snapshots p ON p.id = s.parent
"""
_ANCESTORS = """
WITH RECURSIVE chain (id, depth) AS (
    SELECT ?, 0 WHERE ? IS NOT NULL
    UNION ALL
    SELECT s.parent, depth + 1 FROM chain JOIN snapshots s USING (id) WHERE s.parent IS NOT NULL
)
SELECT id FROM chain ORDER BY depth
"""


class Record(NamedTuple):
    """One snapshot; ``parent`` is the parent's id, ``parent_key`` its key."""

    id: int
    key: str
    parent: int | None
    kind: Kind
    created_at: int
    updated_at: int
    labels: Labels
    size: int
    inodes: int
    parent_key: str

    def info(self) -> SnapshotInfo:
        return SnapshotInfo(
            self.key, self.kind, self.parent_key, self.created_at, self.updated_at, self.labels
        )

    def usage(self) -> Usage:
        return Usage(self.size, self.inodes)


class Records:
    """The table. Texts of errors are those of the reference. Raises Damaged for a file that is no
    good."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._writer = damage.opened(path, _connect)
        try:
            self._writer.executescript(_SCHEMA)
            _find(self._writer, "")
        except sqlite3.OperationalError as error:
            self._writer.close()
            if error.sqlite_errorcode == sqlite3.SQLITE_ERROR:
                raise Damaged(f"it has other tables: {error}") from error
            raise
        self._reader = _connect(path)
        self._turn = threading.Lock()
        self._reading = threading.Lock()
        self._closed = False
        self._waiting: deque[_Change] = deque()

    def close(self) -> None:
        """Whoever comes later, e.g. for a call that nobody waits for any more: Unavailable."""
        with self._turn, self._reading:  # SQLite crashes when it is closed in the middle of a query
            self._closed = True
            self._reader.close()
            self._writer.close()

    def get(self, key: str) -> Record:
        """Raises NotFound."""
        found = self._read(lambda reader: _find(reader, key))
        if found is None:
            raise NotFound(f"snapshot {key} does not exist")
        return found

    def to_commit(self, name: str, key: str) -> Record:
        """An active snapshot that may get this name. Raises as ``commit``."""
        return self._read(lambda reader: _to_commit(reader, name, key))

    def parent(self, key: str) -> Record:
        """A snapshot that may be a parent; raises NotFound, InvalidArgument."""
        return self._read(lambda reader: _parent(reader, key))

    def ancestors(self, parent: int | None) -> list[int]:
        """Ids of a parent, its parent and so on."""
        rows = self._read(lambda reader: reader.execute(_ANCESTORS, (parent, parent)).fetchall())
        return [row[0] for row in rows]

    def all(self) -> list[Record]:
        """Every snapshot, parents first."""
        return self._read(read_all)

    def ids(self) -> list[int]:
        """Of every snapshot."""
        rows = self._read(lambda reader: reader.execute("SELECT id FROM snapshots").fetchall())
        return [row[0] for row in rows]

    def add(self, id: int, key: str, parent: str, kind: Kind, labels: Labels) -> Record:
        """Record a new active or view snapshot under an id that was never used."""
        now = time.time_ns()

        def add(transaction: sqlite3.Connection) -> Record:
            if _find(transaction, key) is not None:
                raise AlreadyExists(f"snapshot {quote(key)}")
            parent_id = _parent(transaction, parent).id if parent else None
            row = (id, key, parent_id, kind, now, now, json.dumps(dict(labels)))
            transaction.execute(
                "INSERT INTO snapshots (id, key, parent, kind, created_at, updated_at, labels)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                row,
            )
            return Record(id, key, parent_id, kind, now, now, labels, 0, 0, parent)

        return self._change(add)

    def commit(self, name: str, key: str, labels: Labels, usage: Usage, parent: str = "") -> None:
        """Make an active snapshot a committed one; ``parent`` only where it has none."""
        now = time.time_ns()

        def commit(transaction: sqlite3.Connection) -> None:
            active = _to_commit(transaction, name, key)
            parent_id = active.parent
            if parent and active.parent_key != parent:
                if parent_id is not None:
                    raise InvalidArgument("cannot change parent of active snapshot")
                parent_id = _parent(transaction, parent).id
            transaction.execute(
                "UPDATE snapshots SET key = ?, parent = ?, kind = ?, created_at = ?,"
                " updated_at = ?, labels = ?, size = ?, inodes = ? WHERE id = ?",
                (
                    *(name, parent_id, Kind.COMMITTED, now, now, json.dumps(dict(labels))),
                    *(usage.size, usage.inodes, active.id),
                ),
            )

        self._change(commit)

    def remove(self, key: str) -> Record:
        """Forget a snapshot without children."""

        def remove(transaction: sqlite3.Connection) -> Record:
            found = _find(transaction, key)
            if found is None:
                raise NotFound(f"snapshot {key} does not exist")
            child = "SELECT 1 FROM snapshots WHERE parent = ? LIMIT 1"
            if transaction.execute(child, (found.id,)).fetchone():
                raise FailedPrecondition("cannot remove snapshot with child")
            transaction.execute("DELETE FROM snapshots WHERE id = ?", (found.id,))
            return found

        return self._change(remove)

    def relabel(self, key: str, change: Callable[[Labels], Labels]) -> Record:
        """Set the labels to what ``change`` makes of them."""
        now = time.time_ns()

        def relabel(transaction: sqlite3.Connection) -> Record:
            found = _find(transaction, key)
            if found is None:
                raise NotFound(f"snapshot {key} does not exist")
            labels = change(found.labels)
            transaction.execute(
                "UPDATE snapshots SET labels = ?, updated_at = ? WHERE id = ?",
                (json.dumps(dict(labels)), now, found.id),
            )
            return found._replace(labels=labels, updated_at=now)

        return self._change(relabel)

    def restore(self, records: Iterable[Record]) -> None:
        """Add what was known of snapshots before; of several for one id or key the first.

        A snapshot whose ancestors are not all there is left out: it could not be used.
        """
        wanted: dict[int, Record] = {}
        for record in records:
            wanted.setdefault(record.id, record)

        def restore(transaction: sqlite3.Connection) -> None:
            for id in sorted(wanted, key=lambda id: len(_lineage(id, wanted))):
                parent = wanted[id].parent
                there = "SELECT 1 FROM snapshots WHERE id = ? AND kind = ?"
                key = (parent, int(Kind.COMMITTED))
                if parent is None or transaction.execute(there, key).fetchone():
                    row = _row(wanted[id])
                    transaction.execute(
                        "INSERT OR IGNORE INTO snapshots VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row
                    )

        self._change(restore)

    def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        with self._reading:
            if self._closed:
                raise Unavailable("snapshotter is closed")
            try:
                return query(self._reader)
            except sqlite3.DatabaseError as error:
                raise _failed(self.path, error) from error

    def _change(self, command: Callable[[sqlite3.Connection], T]) -> T:
        """Run a command and return when it is durable."""
        change = _Change(command, self.path)
        self._waiting.append(change)
        with self._turn:
            if not change.done:
                self._commit_waiting()
        if change.error is not None:
            raise change.error
        return change.result  # type: ignore[return-value]

    def _commit_waiting(self) -> None:
        if self._closed:
            raise Unavailable("snapshotter is closed")
        batch = []
        while self._waiting:
            batch.append(self._waiting.popleft())
        try:
            with _transaction(self._writer):
                for change in batch:
                    change.run(self._writer)
                failpoints.hit("snapshots.records.commit")
        except Exception as error:  # e.g. no space left: nobody's change was made
            for change in batch:
                change.error = _failed(self.path, error)
        finally:
            for change in batch:
                change.done = True


class _Change:
    """A command in a batch: undone alone when it fails."""

    def __init__(self, command: Callable[[sqlite3.Connection], object], path: str) -> None:
        self._command = command
        self._path = path
        self.done = False
        self.result: object = None
        self.error: Exception | None = None

    def run(self, transaction: sqlite3.Connection) -> None:
        transaction.execute("SAVEPOINT change")
        try:
            self.result = self._command(transaction)
        except Exception as error:  # raised where the change was asked for
            self.error = _failed(self._path, error)
            transaction.execute("ROLLBACK TO change")
        transaction.execute("RELEASE change")


def _connect(path: str) -> sqlite3.Connection:
    # Used in one thread at a time; the standard library's build serialises anyway.
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def read_all(connection: sqlite3.Connection) -> list[Record]:
    """Every snapshot of a file, parents first."""
    rows = connection.execute(f"SELECT {_COLUMNS} ORDER BY s.id").fetchall()
    return [_record(row) for row in rows]


def salvage(path: str) -> Iterator[Record]:
    """What can be read of a damaged file; one may come more than once."""
    for row in damage.readable(path, "snapshots", _FIELDS, ("key",)):
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            record = _record((*row, ""))
            right = type(record.id) is int and isinstance(record.parent, int | None)
            if right and record.key and isinstance(record.key, str):
                _row(record)
                yield record


def _failed(path: str, error: Exception) -> Exception:
    """What to raise in the place of an error of SQLite's; damage is remembered."""
    if not damage.suspect(path, error):
        return error
    return Internal(f"{path} is damaged: {error}: restart the daemon to have it repaired")


def _row(record: Record) -> tuple[object, ...]:
    return (
        *(record.id, record.key, record.parent, int(record.kind), int(record.created_at)),
        *(int(record.updated_at), json.dumps(dict(record.labels))),
        *(int(record.size), int(record.inodes)),
    )


def _lineage(id: int, records: dict[int, Record]) -> list[int]:
    """Ids from a snapshot's parent upwards, as far as they are known."""
    found: list[int] = []
    parent = records[id].parent
    while parent is not None and parent not in found and parent in records:
        found.append(parent)
        parent = records[parent].parent
    return found


def _record(row: tuple[int, str, int, int, int, int, str, int, int, str]) -> Record:
    return Record(*row[:3], Kind(row[3]), *row[4:6], json.loads(row[6]), *row[7:9], row[9] or "")


def _find(connection: sqlite3.Connection, key: str) -> Record | None:
    row = connection.execute(f"SELECT {_COLUMNS} WHERE s.key = ?", (key,)).fetchone()
    return None if row is None else _record(row)


def _parent(connection: sqlite3.Connection, key: str) -> Record:
    found = _find(connection, key)
    if found is None:
        raise NotFound(f"parent snapshot {key} does not exist")
    if found.kind != Kind.COMMITTED:
        raise InvalidArgument(f"parent {quote(key)} is not committed snapshot")
    return found


def _to_commit(connection: sqlite3.Connection, name: str, key: str) -> Record:
    if _find(connection, name) is not None:
        raise AlreadyExists(f"committed snapshot {name}")
    found = _find(connection, key)
    if found is None:
        raise NotFound(f"snapshot {key} does not exist")
    if found.kind != Kind.ACTIVE:
        raise FailedPrecondition(f"snapshot {key} is not active")
    return found
