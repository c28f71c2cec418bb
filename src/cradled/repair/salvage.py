"""Blocking. The rows that can still be read of a damaged metadata database, and make sense."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from cradled import damage, digest, identifiers
from cradled.convert import containers, images
from cradled.errors import Error
from cradled.metadata import labels as marks

Row = tuple[Any, ...]

TABLES = (
    "namespaces", "containers", "images", "content", "ingests", "snapshots", "leases",
    "lease_resources", "sandboxes",
)  # fmt: skip
"""In the order in which they are taken in. Numbers and intents are found out anew."""

_TYPES: dict[str, type] = {"TEXT": str, "INTEGER": int, "BLOB": bytes}
_KEYS = {"containers": ("namespace", "id"), "images": ("namespace", "name")}


class Table(NamedTuple):
    """``types`` are those of the columns, ``optional`` those that may be NULL."""

    name: str
    columns: tuple[str, ...]
    types: tuple[type, ...]
    optional: frozenset[str]
    key: tuple[str, ...]

    @property
    def insert(self) -> str:
        marks = ", ".join("?" * len(self.columns))
        return f"INSERT OR IGNORE INTO {self.name} ({', '.join(self.columns)}) VALUES ({marks})"


def tables(connection: sqlite3.Connection) -> list[Table]:
    """What a sound database has."""
    return [_table(connection, name) for name in TABLES]


def _table(connection: sqlite3.Connection, name: str) -> Table:
    rows = connection.execute(f"PRAGMA table_info({name})").fetchall()
    return Table(
        name,
        tuple(row[1] for row in rows),
        tuple(_TYPES[row[2]] for row in rows),
        frozenset(row[1] for row in rows if not row[3] and not row[5]),
        _KEYS.get(name) or tuple(row[1] for row in sorted(rows, key=lambda r: r[5]) if row[5]),
    )


def rows(path: str, table: Table) -> Iterator[Row]:
    """The sound rows of a table of a damaged file, each once."""
    seen = set()
    for row in damage.readable(path, table.name, table.columns, table.key):
        sound = _sound(table, row)
        if sound is not None and sound not in seen:
            seen.add(sound)
            yield sound


def _sound(table: Table, row: Row) -> Row | None:
    """A row as it is to be, or None where what it says makes no sense."""
    named = dict(zip(table.columns, row, strict=True))
    if any(
        type(value) is not wanted and not (value is None and column in table.optional)
        for (column, value), wanted in zip(named.items(), table.types, strict=True)
    ):
        return None
    try:
        identifiers.validate(named.get("namespace") or named.get("name") or "")
        if "labels" in named:
            labels = marks.clean(marks.load(named["labels"]))
            named["labels"] = marks.dump(labels)
            if "gc" in named:
                named["gc"] = marks.dump_relevant(labels)
        if not _CHECKS.get(table.name, _anything)(named):
            return None
    except (Error, ValueError, DecodeError):  # msgspec's errors are ValueErrors
        return None
    return tuple(named.values())


def _anything(named: dict[str, Any]) -> bool:
    return True


def _container(named: dict[str, Any]) -> bool:
    return bool(containers.decode(named["record"]).id == named["id"])


def _image(named: dict[str, Any]) -> bool:
    image = images.decode(named["record"])
    return bool(image.name == named["name"] and image.target.digest == named["digest"])


def _content(named: dict[str, Any]) -> bool:
    return bool(not digest.fault(named["digest"]) and named["size"] >= 0)


def _snapshot(named: dict[str, Any]) -> bool:
    return bool(1 <= named["kind"] <= 3 and named["backend_key"].count("/") >= 2)


_CHECKS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "containers": _container,
    "images": _image,
    "content": _content,
    "snapshots": _snapshot,
}
