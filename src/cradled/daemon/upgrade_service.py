"""Async. ``cradled.v1.Daemon``: upgrades, for clients that ask for them."""

from __future__ import annotations

from cradled.api import cradled_pb2 as pb
from cradled.daemon.upgrade import Upgrades
from cradled.rpc.call import Call
from cradled.version import VERSION


class DaemonService:
    def __init__(self, upgrades: Upgrades) -> None:
        self._upgrades = upgrades

    async def upgrade(self, call: Call, request: pb.UpgradeRequest) -> pb.UpgradeResponse:
        new = await self._upgrades.begin()
        return pb.UpgradeResponse(old_version=VERSION, new_version=new.version, new_pid=new.pid)

    async def outcome(self, call: Call, request: pb.OutcomeRequest) -> pb.OutcomeResponse:
        last = await self._upgrades.outcome()
        return pb.OutcomeResponse(**last._asdict())
