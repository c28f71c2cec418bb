"""Async. Container records. Reads answer with stored bytes, not with messages made anew."""

from __future__ import annotations

from collections.abc import AsyncIterator

from cradled.api import containers_pb2 as pb
from cradled.api.wellknown_pb2 import Empty
from cradled.convert import containers as convert
from cradled.convert.encoded import embed
from cradled.errors import InvalidArgument
from cradled.metadata.db import Database
from cradled.rpc.call import Call
from cradled.rpc.service import Encoded


class ContainersService:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def get(self, call: Call, request: pb.GetContainerRequest) -> Encoded:
        containers = self._db.scoped(call.scope()).containers
        return Encoded(embed(await containers.get_record(request.id)))

    async def list(self, call: Call, request: pb.ListContainersRequest) -> Encoded:
        containers = self._db.scoped(call.scope()).containers
        records = await containers.list_records(list(request.filters))
        return Encoded(*map(embed, records))

    async def list_stream(
        self, call: Call, request: pb.ListContainersRequest
    ) -> AsyncIterator[Encoded]:
        containers = self._db.scoped(call.scope()).containers
        for record in await containers.list_records(list(request.filters)):
            yield Encoded(embed(record))

    async def create(
        self, call: Call, request: pb.CreateContainerRequest
    ) -> pb.CreateContainerResponse:
        containers = self._db.scoped(call.scope()).containers
        created = await containers.create(convert.from_proto(request.container))
        return pb.CreateContainerResponse(container=convert.to_proto(created))

    async def update(
        self, call: Call, request: pb.UpdateContainerRequest
    ) -> pb.UpdateContainerResponse:
        if not request.container.id:
            raise InvalidArgument("Container.ID required", verbatim=True)
        containers = self._db.scoped(call.scope()).containers
        container = convert.from_proto(request.container)
        updated = await containers.update(container, list(request.update_mask.paths))
        return pb.UpdateContainerResponse(container=convert.to_proto(updated))

    async def delete(self, call: Call, request: pb.DeleteContainerRequest) -> Empty:
        await self._db.scoped(call.scope()).containers.delete(request.id)
        return Empty()
