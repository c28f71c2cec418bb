"""Async. The events of a server."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from cradled.api import events_pb2, images_pb2
from cradled.api import events_service_pb2 as pb
from cradled.api.wellknown_pb2 import Timestamp
from cradled.convert import events as convert
from cradled.convert.values import STATUS, any_to_proto, nanoseconds
from cradled.core.events import Envelope
from cradled.core.scope import Scope
from cradled.core.values import AnyValue
from cradled.proxies.scope import metadata
from cradled.rpc.stub import Stub, Transport

_MODULES = (events_pb2, images_pb2)


class ProxyEvents:
    def __init__(self, transport: Transport, scope: Scope) -> None:
        self._transport = transport
        self._metadata = metadata(scope)
        self._stub = Stub(transport, pb.Events, self._metadata)

    async def subscribe(self, filters: Sequence[str] = (), /) -> AsyncIterator[Envelope]:
        """What happens from now on, in all namespaces unless a filter says otherwise."""
        async for message in self._stub.subscribe(pb.SubscribeRequest(filters=filters)):
            yield convert.from_proto(message)

    async def follow(
        self, filters: Sequence[str] = (), /, *, since: str = "", since_time: int = 0
    ) -> AsyncGenerator[tuple[str, Envelope], None]:
        """Events with their positions: those after ``since``, that happened at ``since_time``
        (nanoseconds since the epoch) or later, then those that happen.

        Raises Unimplemented where the server has no journal.
        """
        from cradled.api import cradled_pb2

        request = cradled_pb2.FollowRequest(filters=filters, since=since, since_time=since_time)
        journal = Stub(self._transport, cradled_pb2.Journal, self._metadata)
        async with aclosing(journal.follow(request)) as entries:
            async for entry in entries:
                if entry.HasField("envelope"):
                    yield entry.position, convert.from_proto(entry.envelope)

    async def publish(self, topic: str, event: AnyValue, /) -> None:
        await self._stub.publish(pb.PublishRequest(topic=topic, event=any_to_proto(event)))


def fields(event: AnyValue) -> dict[str, Any]:
    """An event as plain values by proto field name; empty for one of an unknown type.

    Only fields that are set. Times are nanoseconds since the epoch, bytes base64 text.
    """
    full_name = event.type_url.rpartition("/")[2]
    if full_name == STATUS:
        from cradled.convert import denials

        return {**denials.texts(event)}
    for module in _MODULES:
        message_class = getattr(module, full_name.rpartition(".")[2], None)
        if message_class is not None and message_class.DESCRIPTOR.full_name == full_name:
            plain: dict[str, Any] = _plain(message_class.FromString(event.value))
            return plain
    return {}


def _plain(value: Any) -> Any:
    """A field's value, or a message with all its set fields, as JSON could hold it."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Timestamp):
        return nanoseconds(value)
    if hasattr(value, "ListFields"):
        return {field.name: _plain(inner) for field, inner in value.ListFields()}
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(inner) for inner in value]
    return value
