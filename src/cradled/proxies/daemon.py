"""Async. The daemon behind a transport, as such."""

from __future__ import annotations

from typing import Any

from cradled.api import cradled_pb2 as pb
from cradled.rpc.stub import Stub, Transport


class ProxyDaemon:
    def __init__(self, transport: Transport) -> None:
        self._stub = Stub(transport, pb.Daemon)

    async def upgrade(self) -> Any:
        """Begin an upgrade; returns when the new program is about to take over.

        Raises FailedPrecondition when it does not start, Unimplemented where there is no such
        thing.
        """
        return await self._stub.upgrade(pb.UpgradeRequest())

    async def outcome(self) -> Any:
        """How the last upgrade ended, when it has. Raises Unavailable while it ends, NotFound."""
        return await self._stub.outcome(pb.OutcomeRequest())
