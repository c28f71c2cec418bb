"""Blocking. Repairing what a check has found. Nothing is ever removed.

    <root or state>/quarantine/<date>/<path below it>    what was moved away
    <root>/quarantine/<date>/notes.jsonl                 a line for each thing done: the finding,
                                                         and the row that was forgotten

No daemon may be running. What has no record is taken in again as after damage (``rebuild``).
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

from cradled import damage
from cradled.aio import threads
from cradled.content.local import open_store
from cradled.core.mount import Mount
from cradled.core.snapshots import SnapshotInfo
from cradled.damage import Rebuild
from cradled.metadata.db import Database
from cradled.repair import ground as grounds
from cradled.repair import rebuild
from cradled.repair.findings import Finding, Verb
from cradled.repair.ground import Ground
from cradled.snapshotters.descriptions import open_records

_LOOSEN = (Verb.FORGET, Verb.UNLABEL, Verb.DROP)
"""What was held by what these take away is held by a lease from then on."""

_FIRST = (Verb.SET_ASIDE, Verb.QUARANTINE)

_ROUNDS = 4  # what is repaired may bring something else to light

REASON = "a check had found what has no record"

_KEYS: Mapping[str, Sequence[str]] = {
    "content": ("namespace", "digest"),
    "snapshots": ("namespace", "snapshotter", "key"),
    "images": ("namespace", "name"),
    "containers": ("namespace", "id"),
    "leases": ("namespace", "id"),
    "lease_resources": ("namespace", "lease"),
}


class Mending:
    """``done`` are the findings that were dealt with."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self.quarantine = f"{ground.root}/quarantine/{self._date}"
        self.done: list[Finding] = []
        self._again = False
        self._verbs: dict[Verb, Callable[..., dict[str, Any]]] = {
            Verb.SET_ASIDE: self._set_aside,
            Verb.REBUILD: self._rebuild,
            Verb.QUARANTINE: self._move,
            Verb.FORGET: self._forget,
            Verb.UNLABEL: self._unlabel,
            Verb.DROP: self._drop,
        }

    def mend(self, look: Callable[[], list[Finding]]) -> list[Finding]:
        """Do what can be done about what ``look`` finds; returns what it finds in the end.

        A database that is set aside comes first: what else is found depends on what it says. Raises
        OSError; what was done until then is done.
        """
        for _ in range(_ROUNDS):
            pairs = [(one, one.repair) for one in look() if one.repair is not None]
            if not pairs:
                break
            if any(repair.verb is Verb.SET_ASIDE for _, repair in pairs):
                pairs = [pair for pair in pairs if pair[1].verb in _FIRST]
            for finding, repair in pairs:
                more = self._verbs[repair.verb](*repair.targets)
                self._write({**finding.told(), **more})
                self.done.append(finding)
                if repair.verb in _LOOSEN:
                    self._rebuild()
            if self._again:
                asyncio.run(_take_in(self._ground))
                self._again = False
        return look()

    def _set_aside(self, path: str) -> dict[str, Any]:
        now = damage.set_aside(path, "a check had found it damaged").damaged[-1]
        if path == self._ground.metadata:
            self._again = True
        else:
            records, _ = open_records(path, f"{os.path.dirname(path)}/snapshots")
            records.close()
        return {"now": now}

    def _rebuild(self) -> dict[str, Any]:
        if not self._again:
            Rebuild.begin(self._ground.metadata, REASON)
            self._again = True
        return {}

    def _move(self, path: str) -> dict[str, Any]:
        base = self._ground.base(path)
        target = f"{base}/quarantine/{self._date}/{os.path.relpath(path, base)}"
        os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
        while os.path.lexists(target):
            target += "-"
        if os.path.lexists(path):
            shutil.move(path, target)
        return {"now": target}

    def _forget(self, table: str, *key: str) -> dict[str, Any]:
        where = " AND ".join(f"{column}=?" for column in _KEYS[table])
        with closing(self._open()) as connection:
            cursor = connection.execute(f"SELECT * FROM {table} WHERE {where}", key)
            names = [column[0] for column in cursor.description]
            rows = [dict(zip(names, map(_plain, row), strict=True)) for row in cursor]
            self._write({"forgotten": rows, "table": table})  # first, so that it cannot be lost
            connection.execute(f"DELETE FROM {table} WHERE {where}", key)
        return {"rows": len(rows)}

    def _unlabel(self, table: str, *key: str) -> dict[str, Any]:
        where = " AND ".join(f"{column}=?" for column in _KEYS[table])
        with closing(self._open()) as connection:
            sql = f"SELECT CAST(labels AS BLOB) FROM {table} WHERE {where}"
            before = [_plain(row[0]) for row in connection.execute(sql, key)]
            self._write({"labels": before, "table": table, "key": key})
            gc = "" if table == "leases" else ", gc=NULL"
            connection.execute(f"UPDATE {table} SET labels='{{}}'{gc} WHERE {where}", key)
        return {}

    def _drop(self, snapshotter: str, id: str) -> dict[str, Any]:
        """A snapshot without its files is no use, and what is above it neither."""
        root = self._ground.snapshotters[snapshotter]
        records = {record.id: record for record in grounds.of_snapshotter(root)}
        gone, left = [], [int(id)]
        while left:
            one = left.pop()
            if one in records:
                gone.append(records.pop(one))
                left += [record.id for record in records.values() if record.parent == one]
        self._write({"forgotten": [one._asdict() for one in gone], "snapshotter": snapshotter})
        for record in reversed(gone):
            self._move(f"{root}/snapshots/{record.id}")
            with closing(
                sqlite3.connect(f"{root}/metadata.db", isolation_level=None)
            ) as connection:
                connection.execute("DELETE FROM snapshots WHERE id=?", (record.id,))
        return {"snapshots": len(gone)}

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self._ground.metadata, isolation_level=None)

    def _write(self, note: Mapping[str, Any]) -> None:
        os.makedirs(self.quarantine, mode=0o700, exist_ok=True)
        with open(f"{self.quarantine}/notes.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(note, default=str) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _plain(value: object) -> object:
    """As JSON can say it."""
    return f"base64:{base64.b64encode(value).decode()}" if isinstance(value, bytes) else value


async def _take_in(ground: Ground) -> None:
    try:
        snapshotters: dict[str, Any] = {
            name: _Recorded(root) for name, root in ground.snapshotters.items()
        }
        content = await open_store(ground.content)
        os.makedirs(os.path.dirname(ground.metadata), mode=0o700, exist_ok=True)
        db = await Database.open(ground.metadata, content=content, snapshotters=snapshotters)
        try:
            stores = rebuild.Stores(content, snapshotters, ground.bundles)
            await rebuild.take_in(db, stores)
        finally:
            await db.aclose()
    finally:
        threads.close()


class _Recorded:
    """A snapshotter as far as it is asked here: which snapshots it has."""

    def __init__(self, root: str) -> None:
        self._infos = {record.key: record.info() for record in grounds.of_snapshotter(root)}

    async def walk(self, filters: Sequence[str] = (), /) -> AsyncIterator[SnapshotInfo]:
        for info in self._infos.values():
            yield info

    async def mounts(self, key: str, /) -> list[Mount]:
        return []
