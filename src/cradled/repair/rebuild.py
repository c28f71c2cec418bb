"""Async. Putting a metadata database together again, from all that tells of what was in it.

First the rows that can still be read of the damaged file, then those of a copy of the last stop, as
far as they are about something that is there; then what the stores have and no row
names: snapshots, which tell their namespace, parent and kind; blobs, among which image documents
tell what belongs together, and often an image's name; ingests; and the bundles of running shims.
Labels that clients set on what has no row any more are lost, but for those of images, which follow
from their documents.

All of it is held by a lease ``recovered-<date>`` of each namespace, with the label ``LABEL`` that
says why, so that nothing is collected before somebody has looked. A part that was taken in is noted
(``damage.Rebuild``), so that it is not taken in again after it was removed.

A blob without a row belongs to the namespaces that have a snapshot of its image, else to all that
are known; where namespaces must not see each other's, to one of its own, ``recovered``.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from cradled.aio import threads
from cradled.convert import containers as container_records
from cradled.convert import images as image_records
from cradled.core.content import ContentInfo, ContentStore
from cradled.core.images import Image
from cradled.core.scope import is_remote
from cradled.core.snapshots import Kind, SnapshotInfo, Snapshotter
from cradled.core.values import Descriptor
from cradled.damage import MISSING, Rebuild
from cradled.errors import Error
from cradled.metadata import backend_names
from cradled.metadata import labels as marks
from cradled.metadata.backend_names import BLOCK
from cradled.metadata.content import EXPIRY
from cradled.metadata.db import Database
from cradled.metadata.engine import Row, Transaction
from cradled.metadata.snapshots import inherited
from cradled.repair import bundles, salvage
from cradled.repair.documents import LIMIT, Document, Documents, parse

LABEL = "cradled.io/recovered"
"""On leases and containers that come from a rebuilding: why there was one."""

ISOLATED = "recovered"
"""The namespace of blobs that nobody is known to have had, where blobs are not shared."""

log = logging.getLogger(__name__)


class Stores(NamedTuple):
    """What tells of the past. ``bundles`` is the directory of all bundles; ``isolated`` as in
    ``Database.open``."""

    content: ContentStore
    snapshotters: Mapping[str, Snapshotter]
    bundles: str
    isolated: bool = False


async def take_in(db: Database, stores: Stores) -> None:
    """Take in what is not known yet.

    What cannot be taken in now is tried again at the next start, a plugin's snapshots when it
    answers; until then nothing of that store is removed.
    """
    assert db.rebuild is not None
    work = _Work(db, stores, db.rebuild)
    for part, step in work.steps():
        if part not in work.rebuild.done:
            try:
                await step()
                work.rebuild.finish(part)
            except Exception:  # whatever is damaged must not keep the daemon from starting
                log.exception("cannot take in %s", part)
                db.janitor.spare(part)
    for name, snapshotter in stores.snapshotters.items():
        if is_remote(snapshotter) and f"snapshots/{name}" not in work.rebuild.done:
            db.janitor.spare(f"snapshots/{name}")
            db.janitor.later(name, functools.partial(work.when_it_answers, name, snapshotter))
    counts = sorted((what, count) for what, count in work.counts.items() if count)
    if counts:
        told = ", ".join(f"{count} {what}" for what, count in counts)
        text = "metadata was rebuilt (%s): %s; leases %s keep all of it"
        log.warning(text, work.rebuild.reason, told, work.lease)


class _Work:
    def __init__(self, db: Database, stores: Stores, rebuild: Rebuild) -> None:
        self.rebuild = rebuild
        self.lease = f"recovered-{rebuild.date.lower()}"
        self.counts: Counter[str] = Counter()
        self._db = db
        self._engine = db.engine
        self._stores = stores
        self._labels = marks.dump({LABEL: rebuild.reason[:1000]})

    def steps(self) -> Iterator[tuple[str, Callable[[], Awaitable[None]]]]:
        yield "rows", self.rows
        for name, snapshotter in self._stores.snapshotters.items():
            if not is_remote(snapshotter):
                yield f"snapshots/{name}", functools.partial(self.snapshots, name, snapshotter)
        yield "content", self.content
        yield "ingests", self.ingests
        yield "bundles", self.bundles

    async def rows(self) -> None:
        """What can be read of the damaged files, the latest first."""
        connection = self._engine.reader()
        try:
            tables = salvage.tables(connection)
        finally:
            connection.close()
        for path in filter(os.path.exists, reversed(self.rebuild.sources)):
            for table in tables:
                found = await threads.run("bulk", list, salvage.rows(path, table))
                self.counts[f"rows of {table.name}"] += await self._engine.run(
                    functools.partial(_insert, sql=table.insert, rows=found)
                )
        await self._copy_of_the_last_stop(tables)
        await self._engine.run(self._hold)
        self.rebuild.exhaust()

    async def _copy_of_the_last_stop(self, tables: Sequence[salvage.Table]) -> None:
        """What an older state knew, as far as it is about something that is there still."""
        path = f"{self._engine.path}.copy"
        lost = bool(self.rebuild.sources) or self.rebuild.reason == MISSING
        if not (lost and os.path.exists(path)):
            return
        blobs = {info.digest async for info in self._stores.content.walk()}
        keys = set()
        for name, snapshotter in self._stores.snapshotters.items():
            if not is_remote(snapshotter):
                keys |= {(name, info.name) async for info in snapshotter.walk()}
        snapshots: set[tuple[str, str, str]] = set()
        for table in sorted(tables, key=lambda table: table.name == "containers"):
            found = await threads.run("bulk", list, salvage.rows(path, table))
            there = [
                row
                for row in found
                if _is_there(dict(zip(table.columns, row, strict=True)), table.name, blobs, keys)
            ]
            if table.name == "snapshots":
                snapshots = {row[:3] for row in there}
            if table.name == "containers":
                there = [row for row in there if (row[0], row[4], row[5]) in snapshots]
            self.counts[f"older {table.name}"] += await self._engine.run(
                functools.partial(_insert, sql=table.insert, rows=there)
            )

    async def snapshots(self, name: str, snapshotter: Snapshotter) -> None:
        """What a snapshotter has and no row names."""
        infos = [info async for info in snapshotter.walk()]

        def command(tx: Transaction) -> int:
            sql = "SELECT backend_key FROM snapshots WHERE snapshotter=?"
            known = {row[0] for row in tx.execute(sql, (name,))}
            rows = _snapshot_rows(name, [info for info in infos if info.name not in known], infos)
            _reserve(tx, (info.name for info in infos))
            count = _insert(tx, f"INSERT OR IGNORE INTO snapshots VALUES ({_marks(10)})", rows)
            self._hold(tx)
            return count

        self.counts["snapshots"] += await self._engine.run(command)

    async def when_it_answers(self, name: str, snapshotter: Snapshotter) -> None:
        """For plugins, by the janitor; comes again until it was done once."""
        part = f"snapshots/{name}"
        try:
            await self.snapshots(name, snapshotter)
        except (Error, OSError):
            self._db.janitor.later(name, functools.partial(self.when_it_answers, name, snapshotter))
            return
        self.rebuild.finish(part)
        self._db.janitor.spare(part, no_more=True)

    async def content(self) -> None:
        """Blobs that no namespace has, and the images that they are."""
        blobs = {info.digest: info async for info in self._stores.content.walk()}
        documents = Documents(await self._documents(blobs.values()))
        known = {row[0] for row in self._engine.query("SELECT DISTINCT digest FROM content")}
        owners = self._owners(documents, set(blobs) - known)
        labels = documents.labels(self._chains())
        rows = [
            (namespace, digest, info.size, info.created_at, info.updated_at, *_labelled(text))
            for namespace, digests in owners.items()
            for digest in digests
            if (info := blobs.get(digest)) is not None
            for text in (labels.get(digest, {}),)
        ]
        sql = f"INSERT OR IGNORE INTO content VALUES ({_marks(7)})"
        self.counts["blobs"] += await self._engine.run(
            functools.partial(_insert, sql=sql, rows=rows)
        )
        await self._name_images(documents, owners)
        await self._engine.run(self._hold)

    async def ingests(self) -> None:
        """Uploads that were under way: clients can go on with them."""
        statuses = await self._stores.content.list_statuses()

        def command(tx: Transaction) -> int:
            known = {row[0] for row in tx.execute("SELECT backend_ref FROM ingests")}
            _reserve(tx, (status.ref for status in statuses))
            expires = time.time_ns() + EXPIRY
            rows = [
                (found[0], found[2], status.ref, status.total, "", status.started_at, expires)
                for status in statuses
                if (found := backend_names.parsed(status.ref)) and status.ref not in known
            ]
            return _insert(tx, f"INSERT OR IGNORE INTO ingests VALUES ({_marks(7)})", rows)

        self.counts["ingests"] += await self._engine.run(command)

    async def bundles(self) -> None:
        """Containers that run, and have no record."""
        found = await threads.run("fs", list, bundles.containers(self._stores.bundles))
        uppers = await threads.run("fs", bundles.upper_directories, self._stores.bundles)
        rows = []
        for namespace, container in found:
            upper = uppers.get(f"{self._stores.bundles}/{namespace}/{container.id}", "")
            name, key = await self._snapshot_of(namespace, container.id, upper)
            now = time.time_ns()
            whole = replace(
                container, labels={LABEL: self.rebuild.date}, snapshotter=name, snapshot_key=key,
                image=self._image_of(namespace, name, key), created_at=now, updated_at=now,
            )  # fmt: skip
            rows.append(
                (namespace, whole.id, whole.image, whole.runtime.name, name, key,
                 *_labelled(whole.labels), container_records.encode(whole))
            )  # fmt: skip
        sql = f"INSERT OR IGNORE INTO containers VALUES ({_marks(9)})"
        self.counts["containers"] += await self._engine.run(
            functools.partial(_insert, sql=sql, rows=rows)
        )

    def _hold(self, tx: Transaction) -> None:
        """Have the lease of each namespace keep all blobs and snapshots that there are."""
        row = (self.lease, time.time_ns(), self._labels)
        for table in ("content", "snapshots"):
            tx.execute(
                "INSERT OR IGNORE INTO leases"
                f" SELECT DISTINCT namespace, ?, ?, ? FROM {table}", row,
            )  # fmt: skip
        add = "INSERT OR IGNORE INTO lease_resources SELECT namespace, ?,"
        tx.execute(f"{add} 'content', digest FROM content", (self.lease,))
        tx.execute(f"{add} 'snapshots/' || snapshotter, key FROM snapshots", (self.lease,))

    async def _documents(self, blobs: Iterable[ContentInfo]) -> list[Document]:
        found = []
        for info in blobs:
            if 0 < info.size <= LIMIT:
                try:
                    data = await _start(self._stores.content, info.digest, info.size)
                except (Error, OSError):
                    continue
                if (document := parse(info.digest, data)) is not None:
                    found.append(document)
        return found

    def _chains(self) -> dict[str, str]:
        """Snapshotters by the chain ID of what is in them."""
        sql = "SELECT key, snapshotter FROM snapshots WHERE kind=?"
        return dict(self._engine.query(sql, (int(Kind.COMMITTED),)))

    def _owners(self, documents: Documents, unknown: set[str]) -> dict[str, set[str]]:
        """Which digests each namespace is to have besides those it has."""
        chains: dict[str, set[str]] = {}
        for namespace, key in self._engine.query("SELECT namespace, key FROM snapshots"):
            chains.setdefault(key, set()).add(namespace)
        owners: dict[str, set[str]] = {}
        left = set(unknown)
        for one in documents.all.values():
            for chain in documents.chains(one.digest) if one.children else ():
                for namespace in chains.get(chain, ()):
                    owners.setdefault(namespace, set()).update(documents.below(one.digest))
        for owned in owners.values():
            left -= owned
        for namespace in self._namespaces():
            owners.setdefault(namespace, set()).update(left)
        return owners

    def _namespaces(self) -> list[str]:
        """Those that have what nobody is known to have had."""
        if self._stores.isolated:
            return [ISOLATED]
        found = {row[0] for row in self._engine.query("SELECT name FROM namespaces")}
        found |= {namespace for namespace, _ in bundles.containers(self._stores.bundles)}
        return sorted(found) or ["default"]

    async def _name_images(self, documents: Documents, owners: Mapping[str, set[str]]) -> None:
        """Names as indexes give them; an image that has none gets ``recovered@<digest>``."""
        named = documents.named()
        rows = []
        for namespace, owned in owners.items():
            sql = "SELECT digest FROM images WHERE namespace=?"
            targets = {row[0] for row in self._engine.query(sql, (namespace,))}
            for name, (index, target) in named.items():
                if index in owned and target.digest in owned:
                    targets |= {target.digest, index}
                    rows.append(_image_row(namespace, name, target))
            for one in documents.tops():
                if one.digest in owned and one.digest not in targets:
                    rows.append(_image_row(namespace, f"recovered@{one.digest}", one.descriptor))
        sql = f"INSERT OR IGNORE INTO images VALUES ({_marks(7)})"
        self.counts["images"] += await self._engine.run(
            functools.partial(_insert, sql=sql, rows=rows)
        )

    async def _snapshot_of(self, namespace: str, id: str, upper: str) -> tuple[str, str]:
        """(snapshotter, key) of a container's root file system; the key is mostly its id."""
        sql = "SELECT snapshotter, key, backend_key FROM snapshots WHERE namespace=? AND kind=?"
        rows = self._engine.query(sql, (namespace, int(Kind.ACTIVE)))
        for name, key, backend_key in sorted(rows, key=lambda row: row[1] != id):
            if key == id:
                return name, key
            snapshotter = self._stores.snapshotters.get(name)
            if upper and snapshotter is not None and not is_remote(snapshotter):
                try:
                    mounts = await snapshotter.mounts(backend_key)
                except (Error, OSError):
                    continue
                if any(upper == m.source or f"upperdir={upper}" in m.options for m in mounts):
                    return name, key
        return "", ""

    def _image_of(self, namespace: str, snapshotter: str, key: str) -> str:
        """The name of the image that a snapshot was made of; empty if it is not known."""
        sql = "SELECT parent FROM snapshots WHERE namespace=? AND snapshotter=? AND key=?"
        row = self._engine.one(sql, (namespace, snapshotter, key))
        label = f'"containerd.io/gc.ref.snapshot.{snapshotter}":"{row[0] if row else ""}"'
        sql = (
            "SELECT images.name FROM images JOIN content AS manifest USING (namespace, digest)"
            " JOIN content AS config ON config.namespace=images.namespace"
            " AND instr(manifest.labels, config.digest) WHERE images.namespace=?"
            " AND instr(config.labels, ?) ORDER BY images.name LIMIT 1"
        )
        found = self._engine.one(sql, (namespace, label)) if row and row[0] else None
        return found[0] if found else ""


def _is_there(
    row: Mapping[str, Any], table: str, blobs: set[str], keys: set[tuple[str, str]]
) -> bool:
    """Whether an older row is about something that the stores have."""
    if table in ("content", "images"):
        return row["digest"] in blobs
    if table == "snapshots":
        return (row["snapshotter"], row["backend_key"]) in keys
    return table in ("namespaces", "containers")


def _insert(tx: Transaction, sql: str, rows: Iterable[Row]) -> int:
    """How many of the rows were not there yet."""
    return sum(tx.execute(sql, row).rowcount for row in rows)


def _marks(count: int) -> str:
    return ", ".join("?" * count)


def _labelled(labels: Mapping[str, str]) -> tuple[str, str | None]:
    """The columns ``labels`` and ``gc``."""
    return marks.dump(labels), marks.dump_relevant(labels)


def _reserve(tx: Transaction, names: Iterable[str]) -> None:
    """See that no number of a backend name is used again, seen or not: the time outruns them."""
    used = (found[1] for found in map(backend_names.parsed, names) if found is not None)
    number = max((*used, int(time.time()))) + BLOCK
    tx.execute("UPDATE sequence SET next=max(next, ?)", (number,))


def _snapshot_rows(
    snapshotter: str, unknown: Sequence[SnapshotInfo], all: Sequence[SnapshotInfo]
) -> list[Row]:
    """Rows in the order of preference, where a crash left several snapshots for one key."""
    parents = {info.parent for info in all}

    ranked = []
    for info in unknown:
        found = backend_names.parsed(info.name)
        if found is not None:
            namespace, number, key = found
            parent = backend_names.parsed(info.parent)
            rank = info.name in parents, info.kind is Kind.COMMITTED, number
            ranked.append((rank, (
                namespace, snapshotter, key, info.name, parent[2] if parent else "",
                int(info.kind), info.created_at, info.updated_at,
                *_labelled(inherited(info.labels)),
            )))  # fmt: skip
    return [row for _, row in sorted(ranked, key=lambda pair: pair[0], reverse=True)]


def _image_row(namespace: str, name: str, target: Descriptor) -> Row:
    now = time.time_ns()
    image = Image(name, target, {LABEL: "name"} if name.startswith("recovered@") else {}, now, now)
    record = image_records.encode(image)
    return namespace, name, target.digest, target.media_type, *_labelled(image.labels), record


async def _start(content: ContentStore, digest: str, size: int) -> bytes:
    """A blob that may be a document; of another only the first byte."""
    reader = await content.open(digest)
    try:
        data = await reader.read(0, 1)
        return data if data != b"{" else await reader.read(0, size)
    finally:
        reader.close()
