"""Async. The container records of a server."""

from __future__ import annotations

from collections.abc import Sequence

from cradled.api import containers_pb2 as pb
from cradled.api.wellknown_pb2 import FieldMask
from cradled.convert import containers as convert
from cradled.core.containers import Container
from cradled.core.scope import Scope
from cradled.errors import Unimplemented
from cradled.proxies.scope import metadata
from cradled.rpc.stub import Stub, Transport


class ProxyContainers:
    def __init__(self, transport: Transport, scope: Scope) -> None:
        self._stub = Stub(transport, pb.Containers, metadata(scope))

    async def get(self, id: str, /) -> Container:
        response = await self._stub.get(pb.GetContainerRequest(id=id))
        return convert.from_proto(response.container)

    async def list(self, filters: Sequence[str] = (), /) -> list[Container]:
        """One record a message: many big specs must not meet the limit of one.

        A server that cannot is asked for all of them at once.
        """
        request = pb.ListContainersRequest(filters=filters)
        try:
            stream = self._stub.list_stream(request)
            return [convert.from_proto(response.container) async for response in stream]
        except Unimplemented:
            response = await self._stub.list(request)
            return [convert.from_proto(container) for container in response.containers]

    async def create(self, container: Container, /) -> Container:
        request = pb.CreateContainerRequest(container=convert.to_proto(container))
        return convert.from_proto((await self._stub.create(request)).container)

    async def update(self, container: Container, fieldpaths: Sequence[str] = (), /) -> Container:
        request = pb.UpdateContainerRequest(
            container=convert.to_proto(container), update_mask=FieldMask(paths=fieldpaths)
        )
        return convert.from_proto((await self._stub.update(request)).container)

    async def delete(self, id: str, /) -> None:
        await self._stub.delete(pb.DeleteContainerRequest(id=id))
