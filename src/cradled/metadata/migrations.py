"""Blocking. Bringing a metadata database to the newest form, in one transaction.

``PRAGMA user_version`` tells the form of a file: 0 is an empty one. A step is added here whenever
``schema.VERSION`` grows; it takes the file from the number before to its own.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from cradled.errors import FailedPrecondition
from cradled.metadata import schema

STEPS: dict[int, Callable[[sqlite3.Connection], None]] = {}


def apply(connection: sqlite3.Connection) -> None:
    """Create or upgrade the tables; raises FailedPrecondition for a file of a newer version."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == schema.VERSION:
        return
    if version > schema.VERSION:
        raise FailedPrecondition(
            f"metadata has form {version}, written by a newer version; this one knows up to "
            f"{schema.VERSION}"
        )
    connection.execute("BEGIN IMMEDIATE")
    try:
        if version == 0:
            for statement in schema.STATEMENTS:
                connection.execute(statement)
        for step in range(version + 1, schema.VERSION + 1) if version else ():
            STEPS[step](connection)
        connection.execute(f"PRAGMA user_version={schema.VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
