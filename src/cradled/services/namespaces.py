"""Async. Namespaces and their labels."""

from __future__ import annotations

from cradled.api import namespaces_pb2 as pb
from cradled.api.wellknown_pb2 import Empty
from cradled.metadata.db import Database
from cradled.rpc.call import Call


class NamespacesService:
    def __init__(self, db: Database) -> None:
        self._namespaces = db.namespaces

    async def get(self, call: Call, request: pb.GetNamespaceRequest) -> pb.GetNamespaceResponse:
        labels = await self._namespaces.get(request.name)
        return pb.GetNamespaceResponse(namespace=pb.Namespace(name=request.name, labels=labels))

    async def list(
        self, call: Call, request: pb.ListNamespacesRequest
    ) -> pb.ListNamespacesResponse:
        found = await self._namespaces.list()
        return pb.ListNamespacesResponse(
            namespaces=[pb.Namespace(name=name, labels=labels) for name, labels in found]
        )

    async def create(
        self, call: Call, request: pb.CreateNamespaceRequest
    ) -> pb.CreateNamespaceResponse:
        namespace = request.namespace
        await self._namespaces.create(namespace.name, dict(namespace.labels))
        return pb.CreateNamespaceResponse(namespace=namespace)

    async def update(
        self, call: Call, request: pb.UpdateNamespaceRequest
    ) -> pb.UpdateNamespaceResponse:
        """The original answers without the namespace."""
        namespace = request.namespace
        paths = list(request.update_mask.paths)
        await self._namespaces.update(namespace.name, dict(namespace.labels), paths)
        return pb.UpdateNamespaceResponse()

    async def delete(self, call: Call, request: pb.DeleteNamespaceRequest) -> Empty:
        await self._namespaces.delete(request.name)
        return Empty()
