"""Async. The sandbox records of a server."""

from __future__ import annotations

from collections.abc import Sequence

from cradled.api import sandbox_pb2 as pb
from cradled.convert import sandboxes as convert
from cradled.core.sandboxes import Sandbox
from cradled.core.scope import Scope
from cradled.proxies.scope import metadata
from cradled.rpc.stub import Stub, Transport


class ProxySandboxes:
    def __init__(self, transport: Transport, scope: Scope) -> None:
        self._stub = Stub(transport, pb.Store, metadata(scope))

    async def get(self, id: str, /) -> Sandbox:
        response = await self._stub.get(pb.StoreGetRequest(sandbox_id=id))
        return convert.from_proto(response.sandbox)

    async def list(self, filters: Sequence[str] = (), /) -> list[Sandbox]:
        response = await self._stub.list(pb.StoreListRequest(filters=filters))
        return [convert.from_proto(sandbox) for sandbox in response.list]

    async def create(self, sandbox: Sandbox, /) -> Sandbox:
        request = pb.StoreCreateRequest(sandbox=convert.to_proto(sandbox))
        return convert.from_proto((await self._stub.create(request)).sandbox)

    async def update(self, sandbox: Sandbox, fieldpaths: Sequence[str] = (), /) -> Sandbox:
        request = pb.StoreUpdateRequest(sandbox=convert.to_proto(sandbox), fields=fieldpaths)
        return convert.from_proto((await self._stub.update(request)).sandbox)

    async def delete(self, id: str, /) -> None:
        await self._stub.delete(pb.StoreDeleteRequest(sandbox_id=id))
