"""Async. Layers onto mounts, and from the difference of two."""

from __future__ import annotations

from cradled.api import diff_pb2 as pb
from cradled.convert import mounts
from cradled.convert.values import (
    any_from_proto,
    descriptor_from_proto,
    descriptor_to_proto,
    nanoseconds,
)
from cradled.core.content import Reader
from cradled.core.diff import DiffOptions
from cradled.core.scope import bound
from cradled.differs.ordered import Differ
from cradled.errors import InvalidArgument, NotFound
from cradled.metadata.db import Database
from cradled.rpc.call import Call


class DiffService:
    def __init__(self, db: Database, differ: Differ) -> None:
        self._db = db
        self._differ = differ

    async def apply(self, call: Call, request: pb.ApplyRequest) -> pb.ApplyResponse:
        layer = descriptor_from_proto(request.diff)
        blob = await self._open(call, layer.digest)
        try:
            applied = await bound(self._differ, call.scope()).apply(
                layer,
                blob,
                [mounts.from_proto(mount) for mount in request.mounts],
                payloads={key: any_from_proto(value) for key, value in request.payloads.items()},
                sync_fs=request.sync_fs,
            )
        finally:
            blob.close()
        return pb.ApplyResponse(applied=descriptor_to_proto(applied))

    async def diff(self, call: Call, request: pb.DiffRequest) -> pb.DiffResponse:
        content = self._db.scoped(call.scope()).content
        epoch = request.source_date_epoch
        options = DiffOptions(
            media_type=request.media_type,
            ref=request.ref,
            labels=dict(request.labels),
            source_date_epoch=nanoseconds(epoch) if request.HasField("source_date_epoch") else None,
        )
        left = [mounts.from_proto(mount) for mount in request.left]
        right = [mounts.from_proto(mount) for mount in request.right]
        differ = bound(self._differ, call.scope())
        made = await differ.compare(left, right, content, options)
        return pb.DiffResponse(diff=descriptor_to_proto(made))

    async def _open(self, call: Call, digest: str) -> Reader:
        content = self._db.scoped(call.scope()).content
        try:
            return await content.open(digest)
        except (NotFound, InvalidArgument) as error:  # what is no digest is not found either
            text = f"failed to get reader from content store: content digest {digest}"
            raise NotFound(text) from error
