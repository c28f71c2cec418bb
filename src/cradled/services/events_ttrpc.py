"""Async. The one service shims call: their events come in here."""

from __future__ import annotations

from cradled.api import events_ttrpc_pb2 as pb
from cradled.api.wellknown_pb2 import Empty
from cradled.events.exchange import Exchange
from cradled.rpc.call import Call
from cradled.services.events import forward


class EventsTtrpcService:
    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def forward(self, call: Call, request: pb.ForwardRequest) -> Empty:
        forward(self._exchange, request.envelope)
        return Empty()
