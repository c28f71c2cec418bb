"""Async. The event exchange: what one publishes, all subscribers get, in the order published.

``publish`` never waits: each subscriber has a queue of its own, and one that lets 64 Ki events
gather is cut off. An event is serialised at most once however many subscribers there are, and its
payload is opened only when somebody filters on its fields. Subscribers with equal filters are
matched together. A subscription that nobody holds any more is forgotten.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from cradled import filters, identifiers
from cradled.convert import events as convert
from cradled.core.events import Envelope
from cradled.errors import InvalidArgument, ResourceExhausted
from cradled.events import topics
from cradled.events.journal import Journal

_log = logging.getLogger(__name__)

QUEUE_LIMIT = 65536


class Exchange:
    """Implements ``core.events.Publisher``. With a journal, task events are written to it first."""

    def __init__(self, journal: Journal | None = None) -> None:
        self._journal = journal
        self._groups: dict[tuple[str, ...], _Group] = {}

    def publish(self, envelopes: Sequence[Envelope], /) -> None:
        """Hand events to all subscribers. Raises InvalidArgument, and then publishes none."""
        for envelope in envelopes:
            check(envelope.namespace, envelope.topic)
        for envelope in envelopes:
            self._publish(_Record(envelope))

    def forward(self, envelope: Envelope, /) -> None:
        """Publish an envelope of another origin as it is, its time included."""
        check(envelope.namespace, envelope.topic)
        if not envelope.timestamp:
            raise InvalidArgument("timestamp must be set on forwarded event")
        self._publish(_Record(envelope))

    def subscribe(self, expressions: Iterable[str] = ()) -> Subscription:
        """Everything published from now on that a filter selects, of all namespaces.

        Raises InvalidArgument for a bad filter.
        """
        key = tuple(expressions)
        group = self._groups.get(key)
        if group is None:
            group = self._groups.setdefault(key, _Group(filters.parse(key)))
        subscription = Subscription(group.members)
        group.members.add(subscription)
        return subscription

    def _publish(self, record: _Record) -> None:
        if self._journal is not None and record.envelope.topic.startswith(topics.TASKS):
            try:
                self._journal.append(record.encoded)
            except OSError:  # told twice after a restart is better than not told at all
                _log.exception("cannot write the event journal")
        for key, group in list(self._groups.items()):
            if not group.members:
                del self._groups[key]
            elif group.filter.match(record.field):
                for subscription in list(group.members):
                    subscription.put(record)


class Subscription:
    """An endless iterator of envelopes; ``encoded`` yields them serialised. Use one of the two.

    Raises ResourceExhausted after the last event that a subscriber got before it was cut off.
    """

    def __init__(self, members: weakref.WeakSet[Subscription]) -> None:
        self._members = members
        self._queue: deque[_Record] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._cut = False

    def __aiter__(self) -> AsyncIterator[Envelope]:
        return self

    async def __anext__(self) -> Envelope:
        return (await self._next()).envelope

    async def encoded(self) -> AsyncIterator[bytes]:
        """Each envelope as the bytes of its message."""
        while True:
            yield (await self._next()).encoded

    def close(self) -> None:
        """Get nothing more; what waits can still be read."""
        self._members.discard(self)

    def put(self, record: _Record) -> None:
        """For the exchange: add an event, or cut this subscriber off."""
        if len(self._queue) >= QUEUE_LIMIT:
            self._cut = True
            self._members.discard(self)
        else:
            self._queue.append(record)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _next(self) -> _Record:
        while not self._queue:
            if self._cut:
                raise ResourceExhausted("event subscriber is too slow: cut off")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._queue.popleft()


class _Group:
    """The subscribers that gave the same filters."""

    def __init__(self, parsed: filters.Filter) -> None:
        self.filter = parsed
        self.members: weakref.WeakSet[Subscription] = weakref.WeakSet()


class _Record:
    """One event on its way, with what was made of it so far."""

    def __init__(self, envelope: Envelope) -> None:
        self.envelope = envelope

    @functools.cached_property
    def encoded(self) -> bytes:
        return convert.to_proto(self.envelope).SerializeToString()

    @functools.cached_property
    def _event_field(self) -> Callable[[tuple[str, ...]], str | None]:
        return topics.field_reader(self.envelope.event)

    def field(self, path: tuple[str, ...]) -> str | None:
        """What filters ask for."""
        if path[0] == "event":
            return self._event_field(path[1:])
        if path[0] == "topic":
            return self.envelope.topic or None
        if path[0] == "namespace":
            return self.envelope.namespace or None
        return None


@functools.lru_cache(1024)
def check(namespace: str, topic: str) -> None:
    """Raise InvalidArgument unless an event may be published there under this topic."""
    try:
        identifiers.validate(namespace)
    except InvalidArgument as error:
        raise InvalidArgument(f"event envelope has invalid namespace: {error.what}") from None
    about = f'envelope topic "{topic}"'
    if not topic:
        raise InvalidArgument(f"{about}: must not be empty")
    if topic[0] != "/":
        raise InvalidArgument(f"{about}: must start with '/'")
    if len(topic) == 1:
        raise InvalidArgument(f"{about}: must have at least one component")
    for component in topic[1:].split("/"):
        try:
            identifiers.validate(component)
        except InvalidArgument as error:
            what = f'{about}: failed validation on component "{component}": {error.what}'
            raise InvalidArgument(what) from None
