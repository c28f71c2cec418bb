"""Async. Sandboxes: their records, and the controllers that run them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from cradled.api import sandbox_pb2 as pb
from cradled.convert import sandbox_control as control
from cradled.convert import sandboxes as convert
from cradled.convert.values import timestamp
from cradled.core.events import Envelope
from cradled.core.sandboxes import SandboxController
from cradled.core.scope import Scope
from cradled.errors import InvalidArgument, NotFound, quote
from cradled.events import topics
from cradled.events.exchange import Exchange
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


class SandboxControllerService:
    """``controllers`` by the name that requests give as their sandboxer.

    What becomes of sandboxes is told here; of an end when somebody waits for it.
    """

    def __init__(
        self, db: Database, controllers: Mapping[str, SandboxController], exchange: Exchange
    ) -> None:
        self._db = db
        self._controllers = controllers
        self._exchange = exchange

    async def create(
        self, call: Call, request: pb.ControllerCreateRequest
    ) -> pb.ControllerCreateResponse:
        """A request without a record means the one in the store."""
        scope, controller = call.scope(), self._controller(request.sandboxer)
        wanted = control.create_from_proto(request)
        if not request.HasField("sandbox"):
            stored = await self._db.scoped(scope).sandboxes.get(request.sandbox_id)
            wanted = replace(wanted, sandbox=stored)
        await controller.create(scope, wanted)
        self._tell(scope, topics.sandbox_created(wanted.sandbox.id))
        return pb.ControllerCreateResponse(sandbox_id=wanted.sandbox.id)

    async def start(
        self, call: Call, request: pb.ControllerStartRequest
    ) -> pb.ControllerStartResponse:
        scope = call.scope()
        started = await self._controller(request.sandboxer).start(scope, request.sandbox_id)
        self._tell(scope, topics.sandbox_started(request.sandbox_id))
        return control.started_to_proto(started)

    async def platform(
        self, call: Call, request: pb.ControllerPlatformRequest
    ) -> pb.ControllerPlatformResponse:
        controller = self._controller(request.sandboxer)
        platform = await controller.platform(call.scope(), request.sandbox_id)
        return pb.ControllerPlatformResponse(platform=control.platform_to_proto(platform))

    async def stop(
        self, call: Call, request: pb.ControllerStopRequest
    ) -> pb.ControllerStopResponse:
        controller = self._controller(request.sandboxer)
        await controller.stop(call.scope(), request.sandbox_id, request.timeout_secs)
        return pb.ControllerStopResponse()

    async def wait(
        self, call: Call, request: pb.ControllerWaitRequest
    ) -> pb.ControllerWaitResponse:
        scope = call.scope()
        end = await self._controller(request.sandboxer).wait(scope, request.sandbox_id)
        self._tell(scope, topics.sandbox_exited(request.sandbox_id, end))
        return pb.ControllerWaitResponse(exit_status=end.status, exited_at=timestamp(end.exited_at))

    async def status(
        self, call: Call, request: pb.ControllerStatusRequest
    ) -> pb.ControllerStatusResponse:
        controller = self._controller(request.sandboxer)
        status = await controller.status(call.scope(), request.sandbox_id, request.verbose)
        return control.status_to_proto(status)

    async def shutdown(
        self, call: Call, request: pb.ControllerShutdownRequest
    ) -> pb.ControllerShutdownResponse:
        controller = self._controller(request.sandboxer)
        await controller.shutdown(call.scope(), request.sandbox_id)
        return pb.ControllerShutdownResponse()

    async def metrics(
        self, call: Call, request: pb.ControllerMetricsRequest
    ) -> pb.ControllerMetricsResponse:
        controller = self._controller(request.sandboxer)
        measured = await controller.metrics(call.scope(), request.sandbox_id)
        return pb.ControllerMetricsResponse(metrics=control.metric_to_proto(measured))

    async def update(
        self, call: Call, request: pb.ControllerUpdateRequest
    ) -> pb.ControllerUpdateResponse:
        controller = self._controller(request.sandboxer)
        sandbox = replace(convert.from_proto(request.sandbox), id=request.sandbox_id)
        await controller.update(call.scope(), sandbox, list(request.fields))
        return pb.ControllerUpdateResponse()

    def _controller(self, name: str) -> SandboxController:
        if not name:
            raise InvalidArgument("sandbox controller name can not be empty")
        controller = self._controllers.get(name)
        if controller is None:
            raise NotFound(f"sandbox controller {quote(name)}")
        return controller

    def _tell(self, scope: Scope, event: topics.Event) -> None:
        self._exchange.publish([Envelope(time.time_ns(), scope.namespace, *event)])
