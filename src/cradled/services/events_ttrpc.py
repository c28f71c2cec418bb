"""Async. The one service shims call: their events come in here."""

from __future__ import annotations

from collections.abc import Callable

from cradled.api import events_ttrpc_pb2 as pb
from cradled.api.wellknown_pb2 import Empty
from cradled.core.events import Envelope
from cradled.rpc.call import Call
from cradled.services.events import forward


class EventsTtrpcService:
    """``to`` takes each event; the runtime looks at it before it is published."""

    def __init__(self, to: Callable[[Envelope], None]) -> None:
        self._to = to

    async def forward(self, call: Call, request: pb.ForwardRequest) -> Empty:
        forward(self._to, request.envelope)
        return Empty()
