"""Async. Image records: names for descriptors. They are kept as the messages they are served as."""

from __future__ import annotations

import builtins
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cradled import digest
from cradled.convert import images as convert
from cradled.core.images import Image
from cradled.core.scope import Scope
from cradled.errors import AlreadyExists, InvalidArgument, NotFound, quote
from cradled.events import topics
from cradled.metadata import graph, leases
from cradled.metadata import labels as marks
from cradled.metadata.engine import Engine, Row, Transaction

_SELECT = "SELECT record FROM images WHERE namespace=? AND name=?"


class Images:
    """The images of one namespace."""

    def __init__(self, engine: Engine, scope: Scope) -> None:
        self._engine = engine
        self._scope = scope
        self._namespace = scope.namespace

    async def get(self, name: str, /) -> Image:
        """Raises NotFound."""
        return convert.decode(await self.get_record(name))

    async def get_record(self, name: str, /) -> bytes:
        """The serialised message; raises NotFound."""
        row = self._engine.one(_SELECT, (self._namespace, name))
        if row is None:
            raise NotFound(f"image {quote(name)}")
        record: bytes = row[0]
        return record

    async def list(self, filters: Sequence[str] = (), /) -> builtins.list[Image]:
        """Those that a filter selects, by name. Raises InvalidArgument for a bad filter."""
        return [convert.decode(record) for record in await self.list_records(filters)]

    async def list_records(self, filters: Sequence[str] = (), /) -> builtins.list[bytes]:
        """As ``list``, serialised."""
        selected = marks.parsed(filters)
        annotated = "annotations" in selected.fields()

        def make(row: Row) -> bytes | None:
            name, target, media_type, labels, record = row
            if selected:
                fields = {
                    "name": name or None,
                    "target.digest": target or None,
                    "target.mediatype": media_type or None,
                }
                annotations = convert.decode(record).target.annotations if annotated else {}
                if not selected.match(marks.adaptor(fields, labels, annotations)):
                    return None
            found: bytes = record
            return found

        columns = "name, digest, media_type, labels, record"
        sql = f"SELECT {columns} FROM images WHERE namespace=? ORDER BY name"
        return await self._engine.scan(sql, (self._namespace,), make)

    async def create(self, image: Image, /, source_date_epoch: int | None = None) -> Image:
        """Returns it with its times: now, or ``source_date_epoch`` (ns).

        Raises AlreadyExists, InvalidArgument.
        """
        made = _validated(image)
        now = time.time_ns() if source_date_epoch is None else source_date_epoch
        made = replace(made, created_at=now, updated_at=now)
        row = _row(self._namespace, made)
        event = topics.image_created(made)

        def command(tx: Transaction) -> None:
            sql = "INSERT OR IGNORE INTO images VALUES (?, ?, ?, ?, ?, ?, ?)"
            if not tx.execute(sql, row).rowcount:
                raise AlreadyExists(f"image {quote(made.name)}")
            self._settle(tx, made)
            tx.emit(self._namespace, event)

        await self._engine.run(command)
        return made

    async def update(
        self,
        image: Image,
        fieldpaths: Sequence[str] = (),
        /,
        source_date_epoch: int | None = None,
    ) -> Image:
        """Change the fields that the paths name; without paths everything but the creation time.

        It counts as updated now, or at ``source_date_epoch`` (ns). Raises NotFound,
        InvalidArgument.
        """
        if not image.name:
            raise InvalidArgument("image name is required for update")

        def command(tx: Transaction) -> Image:
            stored = tx.one(_SELECT, (self._namespace, image.name))
            if stored is None:
                raise NotFound(f"image {quote(image.name)}")
            updated = convert.decode(stored[0])
            for path in fieldpaths:
                updated = _field_updated(updated, image, path)
            if not fieldpaths:
                updated = replace(image, created_at=updated.created_at)
            now = time.time_ns() if source_date_epoch is None else source_date_epoch
            updated = replace(_validated(updated), updated_at=now)
            tx.execute(
                "UPDATE images SET digest=?, media_type=?, labels=?, gc=?, record=?"
                " WHERE namespace=? AND name=?",
                (*_row(self._namespace, updated)[2:], self._namespace, image.name),
            )
            self._settle(tx, updated)
            tx.emit(self._namespace, topics.image_updated(updated))
            return updated

        return await self._engine.run(command)

    async def delete(self, name: str, /, target: str = "") -> None:
        """Remove the record; with ``target`` only if that is the digest it names.

        Raises NotFound. Content goes when it is collected.
        """
        event = topics.image_deleted(name)

        def command(tx: Transaction) -> None:
            row = tx.one(
                "SELECT digest FROM images WHERE namespace=? AND name=?", (self._namespace, name)
            )
            if row is None:
                raise NotFound(f"image {quote(name)}")
            if target and row[0] != target:
                raise NotFound(f"image {quote(name)} has target {row[0]}, not {target}")
            tx.execute("DELETE FROM images WHERE namespace=? AND name=?", (self._namespace, name))
            leases.leave(tx, self._scope, "images", name)
            tx.deleted()
            tx.emit(self._namespace, event)

        await self._engine.run(command)

    def _settle(self, tx: Transaction, image: Image) -> None:
        """What every write does besides: an image that expires joins the lease of the call."""
        if graph.EXPIRE in image.labels:
            leases.join(tx, self._scope, "images", image.name)
        tx.touch(self._namespace, graph.node(graph.IMAGE, image.name))
        tx.expires(graph.expiry(image.labels))


def _row(namespace: str, image: Image) -> tuple[Any, ...]:
    return (
        namespace,
        image.name,
        image.target.digest,
        image.target.media_type,
        marks.dump(image.labels),
        marks.dump_relevant(image.labels),
        convert.encode(image),
    )


def _field_updated(old: Image, new: Image, path: str) -> Image:
    if path == "target":
        return replace(old, target=new.target)
    annotations = new.target.annotations if path == "annotations" else None
    if annotations is None:
        annotations = marks.replaced(
            old.target.annotations, new.target.annotations, path, "annotations."
        )
    if annotations is not None:
        return replace(old, target=replace(old.target, annotations=annotations))
    labels = marks.masked(old.labels, new.labels, path)
    if labels is None:
        raise InvalidArgument(f"cannot update {quote(path)} field on image {quote(old.name)}")
    return replace(old, labels=labels)


def _validated(image: Image) -> Image:
    """The image without empty labels and annotations; raises InvalidArgument."""
    if not image.name:
        raise InvalidArgument("image name must not be empty")
    kept = marks.clean(image.labels, "image.Labels")
    target = image.target
    if reason := digest.fault(target.digest):
        raise InvalidArgument(f"target.Digest {quote(target.digest)} invalid: {reason}")
    if target.size <= 0:
        raise InvalidArgument("target.Size must be greater than zero")
    if not target.media_type:
        raise InvalidArgument("target.MediaType must be set")
    annotations = {key: value for key, value in target.annotations.items() if value}
    return replace(image, labels=kept, target=replace(target, annotations=annotations))
