"""Async. grpc.health.v1: Go clients ask on connect whether the daemon serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from cradled.api import health_pb2 as pb
from cradled.errors import NotFound
from cradled.rpc.call import Call

_STATUS = pb.HealthCheckResponse
_SERVING = _STATUS(status=_STATUS.SERVING)
_SERVICE_UNKNOWN = _STATUS(status=_STATUS.SERVICE_UNKNOWN)


class HealthService:
    """The daemon as a whole is the one service known, under the empty name."""

    async def check(self, call: Call, request: pb.HealthCheckRequest) -> pb.HealthCheckResponse:
        if request.service:
            raise NotFound("unknown service", verbatim=True)
        return _SERVING

    async def list(self, call: Call, request: pb.HealthListRequest) -> pb.HealthListResponse:
        return pb.HealthListResponse(statuses={"": _SERVING})

    async def watch(
        self, call: Call, request: pb.HealthCheckRequest
    ) -> AsyncIterator[pb.HealthCheckResponse]:
        """The status never changes while there is somebody to answer: one reply, then silence."""
        yield _SERVICE_UNKNOWN if request.service else _SERVING
        await asyncio.get_running_loop().create_future()
