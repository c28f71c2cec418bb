"""Blocking. What a snapshot's directory says of itself, for the day its records are damaged.

    trusted.cradled.snapshot    attribute of <snapshots>/<id>: {"id", "key", "parent" (an id or
                                null), "kind", "created", "updated", "labels", "size", "inodes"}

Written before the record is, and made durable with the files of a committed snapshot. A directory
whose records were lost gets a new one from this; one that says nothing is moved to
``<root>/lost-<date>/``, where nobody removes it. A file system without such attributes, or a daemon
that may not set them, has no descriptions, and no less than before.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import suppress

from cradled import damage
from cradled.core.snapshots import Kind
from cradled.damage import Damaged, Rebuild
from cradled.errors import Internal
from cradled.linux import fs
from cradled.snapshotters.records import Record, Records, salvage

NAME = "trusted.cradled.snapshot"

_PART = "directories"
_ROOM = 3000  # bytes that every file system has for an attribute

log = logging.getLogger(__name__)


def write(path: str, record: Record) -> None:
    """Have the directory of a snapshot say what it is."""
    told = {
        "id": record.id, "key": record.key, "parent": record.parent, "kind": int(record.kind),
        "created": record.created_at, "updated": record.updated_at, "labels": dict(record.labels),
        "size": record.size, "inodes": record.inodes,
    }  # fmt: skip
    data = json.dumps(told).encode()
    if len(data) > _ROOM:
        data = json.dumps({**told, "labels": {}}).encode()
    with suppress(OSError):
        os.setxattr(path, NAME, data)


def read(path: str) -> Record | None:
    """What a directory says it is; None if it says nothing that makes sense for its name."""
    try:
        told = json.loads(os.getxattr(path, NAME))
        record = Record(
            int(told["id"]), str(told["key"]), told["parent"], Kind(told["kind"]),
            int(told["created"]), int(told["updated"]),
            {str(key): str(value) for key, value in told["labels"].items()},
            int(told["size"]), int(told["inodes"]), "",
        )  # fmt: skip
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    right = str(record.id) == os.path.basename(path) and record.key
    return record if right and isinstance(record.parent, int | None) else None


def open_records(path: str, snapshots: str) -> tuple[Records, list[Record]]:
    """The records of a snapshotter, and all of them; damaged or missing ones are made again as far
    as possible."""
    missing = not (os.path.exists(path) and os.stat(path).st_size)
    if missing and any(name.isdecimal() for name in os.listdir(snapshots)):
        Rebuild.begin(path, damage.MISSING)
    try:
        records, found = _read_records(path)
    except Damaged as error:
        rebuild = damage.set_aside(path, str(error))
        log.error("%s is damaged: %s; now %s", path, error, rebuild.damaged[-1])
        records, found = _read_records(path)
    again = Rebuild.load(path)
    if again is not None and _PART not in again.done:
        _take_in(records, again, snapshots)
        found = records.all()
    return records, found


def _read_records(path: str) -> tuple[Records, list[Record]]:
    """Raises Damaged, also for rows that make no sense."""
    records = Records(path)
    try:
        return records, records.all()
    except (Internal, sqlite3.DatabaseError, ValueError, TypeError) as error:
        records.close()
        if getattr(error, "sqlite_errorcode", None) is not None:  # e.g. an error of the disk's
            raise
        raise Damaged(str(error)) from error


def _take_in(records: Records, rebuild: Rebuild, snapshots: str) -> None:
    names = sorted(int(name) for name in os.listdir(snapshots) if name.isdecimal())
    described = (read(f"{snapshots}/{id}") for id in names)
    records.restore([*_salvaged(rebuild), *(one for one in described if one is not None)])
    known = set(records.ids())
    lost = [str(id) for id in names if id not in known]
    if lost:
        _put_away(snapshots, f"{os.path.dirname(snapshots)}/lost-{rebuild.date}", lost)
    rebuild.finish(_PART)
    rebuild.exhaust()
    log.warning("%s: %d snapshots are known again, %d not", records.path, len(known), len(lost))


def _salvaged(rebuild: Rebuild) -> Iterator[Record]:
    for path in reversed(rebuild.sources):
        if os.path.exists(path):
            yield from salvage(path)


def _put_away(snapshots: str, target: str, names: list[str]) -> None:
    os.makedirs(target, mode=0o700, exist_ok=True)
    for name in names:
        os.rename(f"{snapshots}/{name}", f"{target}/{name}")
    fs.sync_directory(target)
    fs.sync_directory(snapshots)
