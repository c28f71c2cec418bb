"""Async. Version: what clients show as the server's version."""

from __future__ import annotations

from cradled.api import version_pb2 as pb
from cradled.api.wellknown_pb2 import Empty
from cradled.rpc.call import Call


class VersionService:
    def __init__(self, version: str, revision: str) -> None:
        self._reply = pb.VersionResponse(version=version, revision=revision)

    async def version(self, call: Call, request: Empty) -> pb.VersionResponse:
        return self._reply
