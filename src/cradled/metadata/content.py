"""Async. Content as a namespace sees it: entries with labels over blobs that are stored once.

An ingest's ref is the namespace's own; the backend knows it as ``<namespace>/<number>/<ref>``.
Under the policy ``shared`` a writer that announces a digest which any namespace has begins
complete: the blob only needs to be adopted. Under ``isolated`` the bytes must be sent, unless a
namespace that has them is labelled shareable.

A blob is durable in the backend before an entry names it, and nobody removes it between the two
(see ``janitor``). A ref is locked while its writer is open, so others get Unavailable and retry.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from cradled import digest as digests
from cradled import failpoints
from cradled.core.content import ContentInfo, ContentStore, IngestStatus, Reader, Writer
from cradled.core.scope import Scope, bound
from cradled.core.values import Labels
from cradled.errors import AlreadyExists, InvalidArgument, NotFound, Unavailable, quote
from cradled.events import topics
from cradled.metadata import graph, leases
from cradled.metadata import labels as marks
from cradled.metadata.backend_names import BackendNames
from cradled.metadata.engine import Engine, Row, Transaction
from cradled.metadata.ingest import NamespacedWriter
from cradled.metadata.janitor import Janitor

EXPIRY = 24 * 3600 * 10**9
"""Nanoseconds an ingest without a lease lives after it was opened."""

_INFO = "digest, size, created_at, updated_at, labels"
_STATUS = "ref, backend_ref, total, expected, started_at"
_FIND_INFO = f"SELECT {_INFO} FROM content WHERE namespace=? AND digest=?"
_FIND_STATUS = f"SELECT {_STATUS} FROM ingests WHERE namespace=? AND ref=?"
_SHAREABLE = (
    "SELECT 1 FROM content JOIN namespaces ON name=namespace WHERE digest=?"
    " AND json_extract(namespaces.labels, '$.\"containerd.io/namespace.shareable\"')='true' LIMIT 1"
)


@dataclass(slots=True)
class Common:
    """What the content stores of all namespaces share."""

    engine: Engine
    backend: ContentStore
    janitor: Janitor
    names: BackendNames
    isolated: bool = False
    locked: dict[tuple[str, str], int] = field(default_factory=dict)
    """When (in nanoseconds) the open writer of (namespace, ref) took its lock."""
    writers: dict[tuple[str, str], Writer] = field(default_factory=dict)


class Content:
    """Implements ``core.content.ContentStore`` for one namespace."""

    def __init__(self, common: Common, scope: Scope) -> None:
        self._common = common
        self._backend = bound(common.backend, scope)
        self._engine = common.engine
        self._scope = scope
        self._namespace = scope.namespace

    async def info(self, digest: str, /) -> ContentInfo:
        row = self._engine.one(_FIND_INFO, (self._namespace, digest))
        if row is None:
            digests.split(digest)
            raise NotFound(f"content digest {digest}")
        return _info(row)

    async def update(self, info: ContentInfo, fieldpaths: Sequence[str] = (), /) -> ContentInfo:
        new = marks.clean(info.labels, "info.Labels")

        def command(tx: Transaction) -> ContentInfo:
            row = tx.one(_FIND_INFO, (self._namespace, info.digest))
            if row is None:
                raise NotFound(f"content digest {info.digest}")
            updated = _info(row)
            labels: dict[str, str] | None = dict(updated.labels)
            for path in fieldpaths or ("labels",):
                labels = marks.masked(labels or {}, new, path)
                if labels is None:
                    what = f"cannot update {quote(path)} field on content info {quote(info.digest)}"
                    raise InvalidArgument(what)
            updated = replace(updated, labels=labels or {}, updated_at=time.time_ns())
            tx.execute(
                "UPDATE content SET updated_at=?, labels=?, gc=? WHERE namespace=? AND digest=?",
                (
                    updated.updated_at,
                    marks.dump(updated.labels),
                    marks.dump_relevant(updated.labels),
                    self._namespace,
                    info.digest,
                ),
            )
            tx.touch(self._namespace, graph.node(graph.CONTENT, info.digest))
            return updated

        return await self._engine.run(command)

    async def walk(self, filters: Sequence[str] = (), /) -> AsyncIterator[ContentInfo]:
        """By digest. Raises InvalidArgument for a bad filter."""
        selected = marks.parsed(filters)

        def make(row: Row) -> ContentInfo | None:
            if selected and not selected.match(marks.adaptor({"digest": row[0]}, row[4])):
                return None
            return _info(row)

        sql = f"SELECT {_INFO} FROM content WHERE namespace=? ORDER BY digest"
        for info in await self._engine.scan(sql, (self._namespace,), make):
            yield info

    async def delete(self, digest: str, /) -> None:
        """Take the entry away, also from the lease of the call; the blob goes when collected."""
        digests.split(digest)

        def command(tx: Transaction) -> None:
            sql = "DELETE FROM content WHERE namespace=? AND digest=?"
            if not tx.execute(sql, (self._namespace, digest)).rowcount:
                raise NotFound(f"content digest {digest}")
            leases.leave(tx, self._scope, "content", digest)
            tx.deleted()
            tx.emit(self._namespace, topics.content_deleted(digest))

        try:
            await self._engine.run(command)
        finally:
            self._common.janitor.blob(digest)

    async def open(self, digest: str, /) -> Reader:
        await self.info(digest)
        return await self._backend.open(digest)

    async def status(self, ref: str, /) -> IngestStatus:
        row = self._engine.one(_FIND_STATUS, (self._namespace, ref))
        if row is None:
            raise NotFound(f"reference {ref}")
        return await self._status(row)

    async def list_statuses(self, filters: Sequence[str] = (), /) -> list[IngestStatus]:
        """By ref. Raises InvalidArgument for a bad filter."""
        selected = marks.parsed(filters)
        sql = f"SELECT {_STATUS} FROM ingests WHERE namespace=? ORDER BY ref"
        rows = await self._engine.scan(sql, (self._namespace,), lambda row: row)
        return [
            await self._status(row)
            for row in rows
            if not selected or selected.match(marks.adaptor({"ref": row[0]}, "{}"))
        ]

    async def abort(self, ref: str, /) -> None:
        janitor = self._common.janitor

        def command(tx: Transaction) -> tuple[str, str]:
            row = tx.one(_FIND_STATUS, (self._namespace, ref))
            if row is None:
                raise NotFound(f"reference {ref}")
            self._forget_ingest(tx, ref)
            tx.deleted()
            _, backend_ref, _, expected, _ = row
            return backend_ref, expected

        backend_ref, _ = await self._engine.run(command, lambda gone: janitor.ingest(*gone))
        await janitor.abort_ingest(backend_ref)

    async def writer(self, ref: str, /, *, total: int = 0, expected: str = "") -> Writer:
        if not ref:
            raise InvalidArgument("ref must not be empty")
        if expected:
            digests.split(expected)
        key = (self._namespace, ref)
        self._lock(key)
        try:
            writer = await self._open_writer(ref, total, expected)
        except BaseException:
            del self._common.locked[key]
            raise
        self._common.writers[key] = writer
        return writer

    async def _open_writer(self, ref: str, total: int, expected: str) -> Writer:
        backend_ref = await self._common.names.new(self._namespace, ref)
        now = time.time_ns()

        def command(tx: Transaction) -> tuple[str, int] | None:
            """Backend ref and start of the ingest; None when the content is there already."""
            if expected and tx.one(_FIND_INFO, (self._namespace, expected)):
                leases.join(tx, self._scope, "content", expected)
                return None
            expires_at = 0 if leases.join(tx, self._scope, "ingests", ref) else now + EXPIRY
            tx.execute(
                "INSERT INTO ingests VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
                " expected=iif(excluded.expected='', expected, excluded.expected),"
                " expires_at=excluded.expires_at",
                (self._namespace, ref, backend_ref, total, expected, now, expires_at),
            )
            tx.touch(self._namespace, graph.node(graph.INGEST, ref))
            tx.expires(expires_at or None)
            _, kept_ref, _, _, started_at = tx.one(_FIND_STATUS, (self._namespace, ref)) or ()
            return kept_ref, started_at

        opened = await self._engine.run(command)
        if opened is None:
            raise AlreadyExists(f"content {expected}")
        open_backend = functools.partial(self._backend_writer, opened[0], total, expected)
        status = IngestStatus(ref, 0, total, expected, opened[1], now)
        if expected and opened[0] == backend_ref and self._may_adopt(expected):
            async with self._common.janitor.hold_blob(expected):
                with contextlib.suppress(NotFound):
                    size = (await self._backend.info(expected)).size
                    status = replace(status, offset=size, total=size)
                    return NamespacedWriter(self, status, None, open_backend)
        return NamespacedWriter(self, status, await open_backend(), open_backend)

    def _may_adopt(self, digest: str) -> bool:
        return not self._common.isolated or self._engine.one(_SHAREABLE, (digest,)) is not None

    async def _backend_writer(self, backend_ref: str, total: int, expected: str) -> Writer:
        """``expected`` only tells the algorithm: that the backend has the blob is no obstacle."""
        backend = self._backend
        if expected and not expected.startswith(f"{digests.CANONICAL}:"):
            with contextlib.suppress(AlreadyExists):
                return await backend.writer(backend_ref, total=total, expected=expected)
        return await backend.writer(backend_ref, total=total)

    async def _status(self, row: Row) -> IngestStatus:
        ref, backend_ref, total, expected, started_at = row
        if writer := self._common.writers.get((self._namespace, ref)):
            return writer.status()
        try:
            found = await self._backend.status(backend_ref)
        except NotFound:  # opened, but nothing was written
            return IngestStatus(ref, 0, total, expected, started_at, started_at)
        return replace(found, ref=ref, expected=expected)

    def _lock(self, key: tuple[str, str]) -> None:
        now = time.time_ns()
        since = self._common.locked.setdefault(key, now)
        if since is not now:
            age = f"{(now - since) / 1e9:.6f}s"
            when = datetime.fromtimestamp(since / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S.%f UTC")
            raise Unavailable(f"ref {key[1]} locked for {age} (since {when})")

    def _forget_ingest(self, tx: Transaction, ref: str) -> None:
        tx.execute("DELETE FROM ingests WHERE namespace=? AND ref=?", (self._namespace, ref))
        leases.leave(tx, self._scope, "ingests", ref)

    # For the writers.

    def release(self, ref: str) -> None:
        """Let others open the ref."""
        self._common.writers.pop((self._namespace, ref), None)
        self._common.locked.pop((self._namespace, ref), None)

    async def copy_blob(self, digest: str, writer: Writer) -> None:
        """Write the whole blob to a backend writer."""
        reader = await self._backend.open(digest)
        try:
            offset = 0
            while data := await reader.read(offset, 1 << 20):
                await writer.write(data)
                offset += len(data)
        finally:
            reader.close()

    async def adopt(
        self, ref: str, digest: str, size: int, labels: Labels, writer: Writer | None, /
    ) -> None:
        """Have the backend commit what ``writer`` wrote (None: it has the blob) and name it here.

        Raises AlreadyExists ``content D`` when the namespace has it; its lease gets it even then.
        """
        kept = marks.clean(labels, "info.Labels")
        async with self._common.janitor.hold_blob(digest):
            if writer is None:
                await self._backend.info(digest)
            else:
                with contextlib.suppress(AlreadyExists):
                    await writer.commit(size, digest, {})
            failpoints.hit("metadata.content.committed")
            try:
                new = await self._engine.run(
                    lambda tx: self._name_blob(tx, ref, digest, size, kept)
                )
            except BaseException:
                self._common.janitor.blob(digest)
                raise
        if not new:
            raise AlreadyExists(f"content {digest}")

    def _name_blob(
        self, tx: Transaction, ref: str, digest: str, size: int, labels: dict[str, str]
    ) -> bool:
        now = time.time_ns()
        relevant = marks.dump_relevant(labels)
        row = (self._namespace, digest, size, now, now, marks.dump(labels), relevant)
        sql = "INSERT OR IGNORE INTO content VALUES (?, ?, ?, ?, ?, ?, ?)"
        new = bool(tx.execute(sql, row).rowcount)
        leases.join(tx, self._scope, "content", digest)
        self._forget_ingest(tx, ref)
        tx.touch(self._namespace, graph.node(graph.CONTENT, digest))
        if new:
            tx.emit(self._namespace, topics.content_created(digest, size))
        return new


def _info(row: Row) -> ContentInfo:
    digest, size, created_at, updated_at, labels = row
    return ContentInfo(digest, size, created_at, updated_at, marks.load(labels))
