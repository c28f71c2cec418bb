"""Async. The leases of a server."""

from __future__ import annotations

from collections.abc import Sequence

from cradled.api import leases_pb2 as pb
from cradled.convert import leases as convert
from cradled.core.leases import Lease, Resource
from cradled.core.scope import Scope
from cradled.core.values import Labels
from cradled.proxies.scope import metadata
from cradled.rpc.stub import Stub, Transport


class ProxyLeases:
    def __init__(self, transport: Transport, scope: Scope) -> None:
        self._stub = Stub(transport, pb.Leases, metadata(scope))

    async def create(self, id: str, labels: Labels, /) -> Lease:
        """The server makes up an id for an empty one."""
        response = await self._stub.create(pb.CreateRequest(id=id, labels=labels))
        return convert.from_proto(response.lease)

    async def delete(self, id: str, /, *, sync: bool = False) -> None:
        """``sync`` waits for one full garbage collection."""
        await self._stub.delete(pb.DeleteRequest(id=id, sync=sync))

    async def list(self, filters: Sequence[str] = (), /) -> list[Lease]:
        response = await self._stub.list(pb.ListRequest(filters=filters))
        return [convert.from_proto(lease) for lease in response.leases]

    async def add_resource(self, id: str, resource: Resource, /) -> None:
        held = convert.resource_to_proto(resource)
        await self._stub.add_resource(pb.AddResourceRequest(id=id, resource=held))

    async def delete_resource(self, id: str, resource: Resource, /) -> None:
        held = convert.resource_to_proto(resource)
        await self._stub.delete_resource(pb.DeleteResourceRequest(id=id, resource=held))

    async def list_resources(self, id: str, /) -> Sequence[Resource]:
        response = await self._stub.list_resources(pb.ListResourcesRequest(id=id))
        return [convert.resource_from_proto(resource) for resource in response.resources]
