"""Async. The sandboxes of a server: their records, and one of the controllers that run them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cradled.api import sandbox_pb2 as pb
from cradled.convert import sandbox_control as control
from cradled.convert import sandboxes as convert
from cradled.core.sandboxes import (
    CreateSandbox,
    Sandbox,
    SandboxPlatform,
    SandboxStatus,
    StartedSandbox,
)
from cradled.core.scope import Scope
from cradled.core.tasks import Exit
from cradled.core.values import AnyValue
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


class ProxySandboxController:
    """Implements core.sandboxes.SandboxController: that of the server called ``sandboxer``."""

    def __init__(self, transport: Transport, sandboxer: str) -> None:
        self._transport = transport
        self._sandboxer = sandboxer

    async def create(self, scope: Scope, request: CreateSandbox, /) -> None:
        message = control.create_to_proto(request)
        message.sandboxer = self._sandboxer
        await self._stub(scope).create(message)

    async def start(self, scope: Scope, id: str, /) -> StartedSandbox:
        response = await self._stub(scope).start(self._about(pb.ControllerStartRequest, id))
        return control.started_from_proto(response)

    async def platform(self, scope: Scope, id: str, /) -> SandboxPlatform:
        request = self._about(pb.ControllerPlatformRequest, id)
        return control.platform_from_proto((await self._stub(scope).platform(request)).platform)

    async def stop(self, scope: Scope, id: str, timeout: int, /) -> None:
        request = self._about(pb.ControllerStopRequest, id)
        request.timeout_secs = timeout
        await self._stub(scope).stop(request)

    async def wait(self, scope: Scope, id: str, /) -> Exit:
        request = self._about(pb.ControllerWaitRequest, id)
        return control.exit_from_proto(await self._stub(scope).wait(request))

    async def status(self, scope: Scope, id: str, verbose: bool, /) -> SandboxStatus:
        request = self._about(pb.ControllerStatusRequest, id)
        request.verbose = verbose
        response = await self._stub(scope).status(request)
        return control.status_from_proto(response, response.address, response.version)

    async def shutdown(self, scope: Scope, id: str, /) -> None:
        await self._stub(scope).shutdown(self._about(pb.ControllerShutdownRequest, id))

    async def metrics(self, scope: Scope, id: str, /) -> tuple[str, int, AnyValue]:
        request = self._about(pb.ControllerMetricsRequest, id)
        return control.metric_from_proto((await self._stub(scope).metrics(request)).metrics)

    async def update(self, scope: Scope, sandbox: Sandbox, fieldpaths: Sequence[str], /) -> None:
        request = self._about(pb.ControllerUpdateRequest, sandbox.id)
        request.sandbox.CopyFrom(convert.to_proto(sandbox))
        request.fields.extend(fieldpaths)
        await self._stub(scope).update(request)

    def _stub(self, scope: Scope) -> Stub:
        return Stub(self._transport, pb.Controller, metadata(scope))

    def _about(self, request: Any, id: str) -> Any:
        return request(sandbox_id=id, sandboxer=self._sandboxer)
