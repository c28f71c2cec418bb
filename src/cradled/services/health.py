"""Async. grpc.health.v1: Go clients ask on connect whether the daemon serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from cradled.api import health_pb2 as pb
from cradled.errors import NotFound
from cradled.rpc.call import Call

_STATUS = pb.HealthCheckResponse
_SERVICE_UNKNOWN = _STATUS(status=_STATUS.SERVICE_UNKNOWN)


class HealthService:
    """The daemon as a whole is the one service known, under the empty name.

    It serves until ``stop``; watchers are told then, and their calls end, so that they do not
    hold up the end of the daemon.
    """

    def __init__(self) -> None:
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Serve no more: to be called before the servers stop."""
        self._stopping.set()

    async def check(self, call: Call, request: pb.HealthCheckRequest) -> pb.HealthCheckResponse:
        if request.service:
            raise NotFound("unknown service", verbatim=True)
        return self._status()

    async def list(self, call: Call, request: pb.HealthListRequest) -> pb.HealthListResponse:
        return pb.HealthListResponse(statuses={"": self._status()})

    async def watch(
        self, call: Call, request: pb.HealthCheckRequest
    ) -> AsyncIterator[pb.HealthCheckResponse]:
        """The status now, and once more when it changes. That of an unknown service never does."""
        yield _SERVICE_UNKNOWN if request.service else self._status()
        if not self._stopping.is_set():
            await self._stopping.wait()
            if not request.service:
                yield self._status()

    def _status(self) -> pb.HealthCheckResponse:
        stopping = self._stopping.is_set()
        return _STATUS(status=_STATUS.NOT_SERVING if stopping else _STATUS.SERVING)
