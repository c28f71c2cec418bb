"""Async. Mount activation (2.2+).

Nothing here handles special mount types yet: every activation answers UNIMPLEMENTED, upon which
callers mount for themselves, and nothing is ever active.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from cradled.api import mounts_pb2 as pb
from cradled.api.wellknown_pb2 import Empty
from cradled.errors import NotFound, Unimplemented, quote
from cradled.rpc.call import Call


class MountsService:
    async def activate(self, call: Call, request: pb.ActivateRequest) -> pb.ActivateResponse:
        call.scope()
        raise Unimplemented

    async def deactivate(self, call: Call, request: pb.DeactivateRequest) -> Empty:
        call.scope()
        raise NotFound(f"mount {quote(request.name)}")

    async def info(self, call: Call, request: pb.InfoRequest) -> pb.InfoResponse:
        call.scope()
        raise NotFound(f"mount {quote(request.name)}")

    async def list(self, call: Call, request: pb.ListRequest) -> AsyncIterator[pb.ListMessage]:
        call.scope()
        active: list[pb.ListMessage] = []
        for message in active:
            yield message
