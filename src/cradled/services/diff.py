"""Async. Layers onto mounts."""

from __future__ import annotations

from cradled.api import diff_pb2 as pb
from cradled.convert import mounts
from cradled.convert.values import any_from_proto, descriptor_from_proto, descriptor_to_proto
from cradled.core.diff import Applier
from cradled.metadata.db import Database
from cradled.rpc.call import Call


class DiffService:
    def __init__(self, db: Database, applier: Applier) -> None:
        self._db = db
        self._applier = applier

    async def apply(self, call: Call, request: pb.ApplyRequest) -> pb.ApplyResponse:
        layer = descriptor_from_proto(request.diff)
        blob = await self._db.scoped(call.scope()).content.open(layer.digest)
        try:
            applied = await self._applier.apply(
                layer,
                blob,
                [mounts.from_proto(mount) for mount in request.mounts],
                payloads={key: any_from_proto(value) for key, value in request.payloads.items()},
                sync_fs=request.sync_fs,
            )
        finally:
            blob.close()
        return pb.ApplyResponse(applied=descriptor_to_proto(applied))
