"""Async. Events as people read them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from cradled.client.session import Session
from cradled.core.events import Envelope
from cradled.proxies import events


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened; ``time`` in nanoseconds since the epoch."""

    time: int
    namespace: str
    topic: str
    envelope: Envelope

    @property
    def fields(self) -> dict[str, Any]:
        """The event's own fields that are set; empty for an event of an unknown type.

        Times are nanoseconds since the epoch, bytes base64 text.
        """
        return events.fields(self.envelope.event)


async def subscribe(session: Session, filters: Sequence[str]) -> AsyncIterator[Event]:
    """What happens from now on, in all namespaces unless a filter says otherwise."""
    source = events.ProxyEvents(session.transport, session.scope)
    async for envelope in source.subscribe(filters):
        yield Event(envelope.timestamp, envelope.namespace, envelope.topic, envelope)
