"""Blocking. Bringing a metadata database to the newest form, in one transaction.

``PRAGMA user_version`` tells the form of a file: 0 is an empty one. A step is added here whenever
``schema.VERSION`` grows; it takes the file from the number before to its own. The tables are looked
at as well: those of the newest form are that, whatever the number says, and other ones under its
number are damage.

    1    the first; later files of this number have the tables of form 2
    2    ingests know their total and when they began; a namespace comes with its first object
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from cradled.damage import Damaged
from cradled.errors import FailedPrecondition
from cradled.metadata import schema


def apply(connection: sqlite3.Connection) -> None:
    """Create or upgrade the tables.

    Raises FailedPrecondition for a file of a newer version, Damaged for one of no version.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    found = _definitions(connection)
    if version == schema.VERSION and found == _EXPECTED:
        return
    if version > schema.VERSION and found != _EXPECTED:
        raise FailedPrecondition(
            f"metadata has form {version}, written by a newer version; this one knows up to "
            f"{schema.VERSION}"
        )
    connection.execute("BEGIN IMMEDIATE")
    try:
        _change(connection, version, found)
        connection.execute(f"PRAGMA user_version={schema.VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _change(connection: sqlite3.Connection, version: int, found: set[str]) -> None:
    if found == _EXPECTED:
        return
    if not found and version == 0:
        for statement in schema.STATEMENTS:
            connection.execute(statement)
        return
    if not 0 < version < schema.VERSION:
        raise Damaged(f"its tables are not those of form {version}")
    try:
        for step in range(version + 1, schema.VERSION + 1):
            _STEPS[step](connection)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
            raise
        raise Damaged(f"its tables are not those of form {version}: {error}") from error
    if _definitions(connection) != _EXPECTED:
        raise Damaged(f"its tables are not those of form {version}")


def _to_2(connection: sqlite3.Connection) -> None:
    connection.execute("ALTER TABLE ingests RENAME TO ingests_1")
    for statement in schema.STATEMENTS:
        definition = statement.strip()
        if definition.startswith(
            ("CREATE TABLE ingests", "CREATE INDEX ingests", "CREATE TRIGGER")
        ):
            connection.execute(definition)
    connection.execute(
        "INSERT INTO ingests SELECT namespace, ref, backend_ref, 0, expected,"
        " max(expires_at - 86400000000000, 0), expires_at FROM ingests_1"
    )
    connection.execute("DROP TABLE ingests_1")


_STEPS: dict[int, Callable[[sqlite3.Connection], None]] = {2: _to_2}

_EXPECTED = {s.strip() for s in schema.STATEMENTS if s.strip().startswith("CREATE")}


def _definitions(connection: sqlite3.Connection) -> set[str]:
    sql = "SELECT CAST(sql AS BLOB) FROM sqlite_master WHERE sql IS NOT NULL"
    return {row[0].decode(errors="replace") for row in connection.execute(sql)}
