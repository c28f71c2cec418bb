"""Async. Leases and the resources they hold."""

from __future__ import annotations

from cradled.api import leases_pb2 as pb
from cradled.api.wellknown_pb2 import Empty
from cradled.convert import leases as convert
from cradled.gc.scheduler import Scheduler
from cradled.metadata.db import Database
from cradled.rpc.call import Call


class LeasesService:
    def __init__(self, db: Database, scheduler: Scheduler) -> None:
        self._db = db
        self._scheduler = scheduler

    async def create(self, call: Call, request: pb.CreateRequest) -> pb.CreateResponse:
        leases = self._db.scoped(call.scope()).leases
        lease = await leases.create(request.id, dict(request.labels))
        return pb.CreateResponse(lease=convert.to_proto(lease))

    async def delete(self, call: Call, request: pb.DeleteRequest) -> Empty:
        await self._db.scoped(call.scope()).leases.delete(request.id)
        if request.sync:
            await self._scheduler.collect()
        return Empty()

    async def list(self, call: Call, request: pb.ListRequest) -> pb.ListResponse:
        found = await self._db.scoped(call.scope()).leases.list(list(request.filters))
        return pb.ListResponse(leases=[convert.to_proto(lease) for lease in found])

    async def add_resource(self, call: Call, request: pb.AddResourceRequest) -> Empty:
        leases = self._db.scoped(call.scope()).leases
        await leases.add_resource(request.id, convert.resource_from_proto(request.resource))
        return Empty()

    async def delete_resource(self, call: Call, request: pb.DeleteResourceRequest) -> Empty:
        leases = self._db.scoped(call.scope()).leases
        await leases.delete_resource(request.id, convert.resource_from_proto(request.resource))
        return Empty()

    async def list_resources(
        self, call: Call, request: pb.ListResourcesRequest
    ) -> pb.ListResourcesResponse:
        held = await self._db.scoped(call.scope()).leases.list_resources(request.id)
        return pb.ListResourcesResponse(resources=[convert.resource_to_proto(r) for r in held])
