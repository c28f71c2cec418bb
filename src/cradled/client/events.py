"""Async. Events as people read them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cradled.client.session import Session
from cradled.core.events import Envelope
from cradled.proxies import events

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened; ``time`` in nanoseconds since the epoch.

    ``position`` is what to resume after it with; empty for one that came without.
    """

    time: int
    namespace: str
    topic: str
    envelope: Envelope
    position: str = ""

    @property
    def fields(self) -> dict[str, Any]:
        """The event's own fields that are set; empty for an event of an unknown type.

        Times are nanoseconds since the epoch, bytes base64 text.
        """
        return events.fields(self.envelope.event)


async def subscribe(session: Session, filters: Sequence[str]) -> AsyncGenerator[Event, None]:
    """What happens from now on, in all namespaces unless a filter says otherwise."""
    source = events.ProxyEvents(session.transport, session.scope)
    async for envelope in source.subscribe(filters):
        yield _event(envelope)


async def follow(
    session: Session, filters: Sequence[str], since: str | timedelta | datetime
) -> AsyncGenerator[Event, None]:
    """What happened since a position, for so long, or since a time; then what happens."""
    if isinstance(since, timedelta):
        since = datetime.now(UTC) - since
    position, moment = "", 0
    if isinstance(since, str):
        position = since
    else:
        moment = (since - _EPOCH) // timedelta(microseconds=1) * 1000
    source = events.ProxyEvents(session.transport, session.scope)
    followed = source.follow(filters, since=position, since_time=moment)
    async with aclosing(followed):
        async for number, envelope in followed:
            yield _event(envelope, number)


def _event(envelope: Envelope, position: str = "") -> Event:
    return Event(envelope.timestamp, envelope.namespace, envelope.topic, envelope, position)
