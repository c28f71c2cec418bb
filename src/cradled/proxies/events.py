"""Async. The events of a server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from cradled.api import events_pb2, images_pb2
from cradled.api import events_service_pb2 as pb
from cradled.convert import events as convert
from cradled.convert.values import any_to_proto
from cradled.core.events import Envelope
from cradled.core.scope import Scope
from cradled.core.values import AnyValue
from cradled.proxies.scope import metadata
from cradled.rpc.stub import Stub, Transport

_MODULES = (events_pb2, images_pb2)


class ProxyEvents:
    def __init__(self, transport: Transport, scope: Scope) -> None:
        self._stub = Stub(transport, pb.Events, metadata(scope))

    async def subscribe(self, filters: Sequence[str] = (), /) -> AsyncIterator[Envelope]:
        """What happens from now on, in all namespaces unless a filter says otherwise."""
        async for message in self._stub.subscribe(pb.SubscribeRequest(filters=filters)):
            yield convert.from_proto(message)

    async def publish(self, topic: str, event: AnyValue, /) -> None:
        await self._stub.publish(pb.PublishRequest(topic=topic, event=any_to_proto(event)))


def fields(event: AnyValue) -> dict[str, Any]:
    """An event as plain values by proto field name; empty for one of an unknown type.

    64-bit numbers and times are text, as in protobuf's own JSON.
    """
    from google.protobuf import json_format  # heavy, and wanted by few

    name = event.type_url.rpartition("/")[2].rpartition(".")[2]
    for module in _MODULES:
        message_class = getattr(module, name, None)
        if (
            message_class is not None
            and message_class.DESCRIPTOR.full_name == (event.type_url.rpartition("/")[2])
        ):
            message = message_class.FromString(event.value)
            return json_format.MessageToDict(message, preserving_proto_field_name=True)
    return {}
