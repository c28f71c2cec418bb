"""Async. Sandboxes: their records. The controllers that run them are served elsewhere."""

from __future__ import annotations

from cradled.api import sandbox_pb2 as pb
from cradled.convert import sandboxes as convert
from cradled.metadata.db import Database
from cradled.rpc.call import Call


class SandboxStoreService:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def create(self, call: Call, request: pb.StoreCreateRequest) -> pb.StoreCreateResponse:
        sandboxes = self._db.scoped(call.scope()).sandboxes
        created = await sandboxes.create(convert.from_proto(request.sandbox))
        return pb.StoreCreateResponse(sandbox=convert.to_proto(created))

    async def update(self, call: Call, request: pb.StoreUpdateRequest) -> pb.StoreUpdateResponse:
        sandboxes = self._db.scoped(call.scope()).sandboxes
        sandbox = convert.from_proto(request.sandbox)
        updated = await sandboxes.update(sandbox, list(request.fields))
        return pb.StoreUpdateResponse(sandbox=convert.to_proto(updated))

    async def get(self, call: Call, request: pb.StoreGetRequest) -> pb.StoreGetResponse:
        sandbox = await self._db.scoped(call.scope()).sandboxes.get(request.sandbox_id)
        return pb.StoreGetResponse(sandbox=convert.to_proto(sandbox))

    async def list(self, call: Call, request: pb.StoreListRequest) -> pb.StoreListResponse:
        found = await self._db.scoped(call.scope()).sandboxes.list(list(request.filters))
        return pb.StoreListResponse(list=map(convert.to_proto, found))

    async def delete(self, call: Call, request: pb.StoreDeleteRequest) -> pb.StoreDeleteResponse:
        await self._db.scoped(call.scope()).sandboxes.delete(request.sandbox_id)
        return pb.StoreDeleteResponse()
