"""Async. The namespaces of a server."""

from __future__ import annotations

from collections.abc import Sequence

from cradled.api import namespaces_pb2 as pb
from cradled.api.wellknown_pb2 import FieldMask
from cradled.core.values import Labels
from cradled.rpc.stub import Stub, Transport


class ProxyNamespaces:
    def __init__(self, transport: Transport) -> None:
        self._stub = Stub(transport, pb.Namespaces)

    async def get(self, name: str, /) -> Labels:
        """Labels; empty for a namespace that is not there."""
        response = await self._stub.get(pb.GetNamespaceRequest(name=name))
        return dict(response.namespace.labels)

    async def list(self) -> list[tuple[str, Labels]]:
        response = await self._stub.list(pb.ListNamespacesRequest())
        return [(namespace.name, dict(namespace.labels)) for namespace in response.namespaces]

    async def create(self, name: str, labels: Labels, /) -> None:
        namespace = pb.Namespace(name=name, labels=labels)
        await self._stub.create(pb.CreateNamespaceRequest(namespace=namespace))

    async def update(self, name: str, labels: Labels, fieldpaths: Sequence[str] = (), /) -> None:
        namespace, mask = pb.Namespace(name=name, labels=labels), FieldMask(paths=fieldpaths)
        await self._stub.update(pb.UpdateNamespaceRequest(namespace=namespace, update_mask=mask))

    async def delete(self, name: str, /) -> None:
        await self._stub.delete(pb.DeleteNamespaceRequest(name=name))
