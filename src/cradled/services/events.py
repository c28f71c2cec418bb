"""Async. Events: publish, forward another daemon's or a shim's, subscribe."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable

from cradled.api import events_service_pb2 as pb
from cradled.api.types_pb2 import Envelope as EnvelopeMessage
from cradled.api.wellknown_pb2 import Empty
from cradled.convert import events as convert
from cradled.convert.values import any_from_proto
from cradled.core.events import Envelope
from cradled.errors import Error, FailedPrecondition, InvalidArgument
from cradled.events.exchange import Exchange
from cradled.rpc.call import Call
from cradled.rpc.service import Batch


class EventsService:
    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def publish(self, call: Call, request: pb.PublishRequest) -> Empty:
        namespace = _namespace(call)
        event = any_from_proto(request.event)
        self._exchange.publish([Envelope(time.time_ns(), namespace, request.topic, event)])
        return Empty()

    async def forward(self, call: Call, request: pb.ForwardRequest) -> Empty:
        forward(self._exchange.forward, request.envelope)
        return Empty()

    async def subscribe(self, call: Call, request: pb.SubscribeRequest) -> AsyncIterator[Batch]:
        try:
            watcher = call.peer.pid if call.peer is not None else 0
            subscription = self._exchange.subscribe(request.filters, watcher)
        except InvalidArgument as error:
            text = f"subscription error: failed parsing subscription filters: {error}"
            raise Error(text) from error
        try:
            async for batch in subscription.batches():
                yield batch
        finally:
            subscription.close()


def _namespace(call: Call) -> str:
    try:
        return call.scope().namespace
    except (FailedPrecondition, InvalidArgument) as error:
        raise type(error)(f"failed publishing event: {error.what}") from error


def forward(to: Callable[[Envelope], None], message: EnvelopeMessage) -> None:
    """Hand on a foreign envelope. Raises InvalidArgument for a bad one."""
    if not message.HasField("timestamp"):
        raise InvalidArgument("timestamp must be set on forwarded event")
    to(convert.from_proto(message))
