"""Async. The event exchange: what one publishes, all subscribers get, in the order published.

``publish`` never waits. What is published in one turn of the loop, or within a millisecond when it
comes thick, is handed out as one batch, so that a subscriber wakes once for many events. Those
with equal filters are matched together and share the batch, serialised and framed once however
many they are; an event's payload is opened only when somebody filters on its fields.

Batches wait for each subscriber without a bound in number but within ``QUEUE_BYTES``: whoever lets
more gather is cut off, gets what had waited until then, and an error after it. A subscription that
nobody holds any more is forgotten.

What happened while there was no daemon is told when there is one again, which is mostly before its
clients have noticed. So who subscribes within ``LATE_SECONDS`` is told that as well, or a client
that supervises containers by events would never hear of some exits; one that subscribes twice in
that time is told twice. So it is with what a daemon published in the very last moment of its life,
which may not have got out any more: better twice than never.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from cradled import failpoints, filters, identifiers
from cradled.api.types_pb2 import Envelope as Message
from cradled.convert import events as convert
from cradled.core.events import Envelope
from cradled.errors import InvalidArgument, ResourceExhausted, quote
from cradled.events import topics
from cradled.events.cursor import Cursor
from cradled.events.journal import Journal
from cradled.rpc.service import Batch

_log = logging.getLogger(__name__)

QUEUE_BYTES = 64 << 20
"""Memory that what waits for one subscriber may take."""

LATE_SECONDS = 30.0
"""How long after the start subscribers are told what happened before it."""

_LATE = 4096  # events at the most
_DELIVERY = 0.01  # seconds until an event has left for all who listen, if they take it
_BATCH_BYTES = 15 << 10  # a batch goes out in one frame of the size that all peers take
_SPACING = 0.001  # seconds between batches
_ON_WIRE = 40  # bytes of an envelope beside its texts and payload, about
_IN_MEMORY = 200  # bytes of an event beside three times what it is on the wire: that is, as it
# came, serialised, and in the batch


class Parting(NamedTuple):
    """Where subscribers were when they were cut off for an upgrade: all had been given the events
    up to ``number``. ``watchers`` are their processes and filters."""

    number: int
    watchers: list[tuple[int, tuple[str, ...]]]


class Exchange:
    """Implements ``core.events.Publisher``. With a journal, each event is written to it first.

    ``parted`` are subscribers of the daemon before, who go on where they were.
    """

    def __init__(self, journal: Journal | None = None, parted: Parting | None = None) -> None:
        self._journal = journal
        self._parted = parted
        self.published = 0
        self._groups: dict[tuple[str, ...], _Group] = {}
        self._handle: asyncio.Handle | None = None
        self._handed_out = 0.0
        self._born, self._started = time.time_ns(), time.monotonic()
        self._late = [] if journal is None else _since(journal, journal.handed)
        self._delivery: asyncio.Handle | None = None
        self._parting: Parting | None = None
        self._growth: asyncio.Future[None] | None = None

    def publish(self, envelopes: Sequence[Envelope], /) -> None:
        """Hand events to all subscribers. Raises InvalidArgument, and then publishes none."""
        for envelope in envelopes:
            check(envelope.namespace, envelope.topic)
        for envelope in envelopes:
            self._publish(_Record(envelope))

    def publish_late(self, envelopes: Sequence[Envelope], /) -> None:
        """Publish what is found out only now, though it happened before the start."""
        for envelope in envelopes:
            self._publish(_Record(envelope), late=True)

    def forward(self, envelope: Envelope, /) -> None:
        """Publish an envelope of another origin as it is, its time included."""
        check(envelope.namespace, envelope.topic)
        if not envelope.timestamp:
            raise InvalidArgument("timestamp must be set on forwarded event")
        self._publish(_Record(envelope), late=envelope.timestamp < self._born)

    def subscribe(self, expressions: Iterable[str] = (), watcher: int = 0) -> Subscription:
        """Everything published from now on that a filter selects, of all namespaces, after what
        happened before the start. ``watcher`` is the subscriber's process, where it has one.

        Raises InvalidArgument for a bad filter.
        """
        key = tuple(expressions)
        group = self._groups.get(key)
        if group is None:
            group = self._groups.setdefault(key, _Group(filters.parse(key)))
        subscription = group.join(watcher)
        late = [one for one in self._missed(watcher, key) if group.filter.match(one.field)]
        if late:
            subscription.put(_Chunk(late, sum(record.size for record in late)))
            self._expect_delivery()
        return subscription

    async def part(self, seconds: float) -> Parting:
        """Wait, so long at the most, until subscribers were given all that was published; what is
        published from then on they get from the next daemon. Once: the first time says it all."""
        if self._parting is not None:
            return self._parting
        for group in self._groups.values():
            group.hand_out()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while any(self.waiting()):  # noqa: ASYNC110 - hardly ever waited for
                    await asyncio.sleep(_SPACING)
        self._parting = self._cut_off()
        return self._parting

    def waiting(self) -> list[int]:
        """The bytes that wait for each subscriber."""
        return [one.size for group in self._groups.values() for one in group.members]

    async def grown(self, number: int) -> None:
        """Wait until the journal has events behind this number."""
        assert self._journal is not None
        while self._journal.last <= number:
            if self._growth is None:
                self._growth = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._growth)

    def _cut_off(self) -> Parting:
        if self._delivery is not None:
            self._delivery.cancel()
        groups, self._groups = self._groups, {}
        told = [
            (one.watcher, key)
            for key, group in groups.items()
            for one in group.members
            if one.watcher and not one.size
        ]
        if self._journal is None:
            return Parting(0, [])
        if not any(one.size for group in groups.values() for one in group.members):
            self._journal.hand(self._journal.last)
        return Parting(self._journal.last, told)

    def _missed(self, watcher: int, key: tuple[str, ...]) -> list[_Record]:
        """What a subscriber was not told that it would be, had there been one daemon all along."""
        if not self._is_young():
            self._late.clear()
            self._parted = None
        elif self._parted is not None and (watcher, key) in self._parted.watchers:
            assert self._journal is not None
            self._parted.watchers.remove((watcher, key))
            return _since(self._journal, self._parted.number)
        return self._late

    def _publish(self, record: _Record, *, late: bool = False) -> None:
        self.published += 1
        if self._journal is not None:
            try:
                self._journal.append(record.envelope, record.encoded)
            except OSError:  # told twice after a restart is better than not told at all
                _log.exception("cannot write the event journal")
            failpoints.hit("events.journalled")
            self._expect_delivery()
            if self._growth is not None and self._handle is None:
                self._handle = self._soon()
        if late and len(self._late) < _LATE and self._is_young():
            self._late.append(record)
        for key, group in list(self._groups.items()):
            if not group.members:
                del self._groups[key]
            elif group.filter.match(record.field):
                group.add(record)
                if self._handle is None:
                    self._handle = self._soon()

    def _expect_delivery(self) -> None:
        """See to it that the journal knows in a while how far all have been told."""
        if self._journal is not None and self._delivery is None and self._parting is None:
            loop = asyncio.get_running_loop()
            self._delivery = loop.call_later(_DELIVERY, self._delivered, self._journal.last)

    def _delivered(self, number: int) -> None:
        assert self._journal is not None
        if self._handle is not None:  # the loop is late
            number = self._journal.handed
        self._delivery = None
        if number > self._journal.handed:
            self._journal.hand(number)
        if number < self._journal.last:
            self._expect_delivery()

    def _is_young(self) -> bool:
        return time.monotonic() - self._started <= LATE_SECONDS

    def _soon(self) -> asyncio.Handle:
        loop = asyncio.get_running_loop()
        if loop.time() - self._handed_out >= _SPACING:
            return loop.call_soon(self._hand_out)
        return loop.call_later(_SPACING, self._hand_out)

    def _hand_out(self) -> None:
        self._handle = None
        self._handed_out = asyncio.get_running_loop().time()
        for group in self._groups.values():
            group.hand_out()
        if self._growth is not None:
            self._growth.set_result(None)
            self._growth = None


class Subscription:
    """An endless iterator of envelopes; ``batches`` yields them serialised. Use one of the two.

    Raises ResourceExhausted after the last event that a subscriber got before it was cut off.
    """

    def __init__(self, group: _Group, watcher: int) -> None:
        self.watcher = watcher
        self._group = group
        self._queue: deque[_Chunk] = deque()
        self._size = 0
        self._envelopes: deque[Envelope] = deque()  # of a chunk that is being iterated
        self._waiter: asyncio.Future[None] | None = None
        self._cut = False

    def __aiter__(self) -> AsyncIterator[Envelope]:
        return self

    async def __anext__(self) -> Envelope:
        if not self._envelopes:
            self._envelopes.extend((await self._next()).envelopes)
        return self._envelopes.popleft()

    @property
    def size(self) -> int:
        """Bytes that wait."""
        return self._size

    async def batches(self) -> AsyncIterator[Batch]:
        """The envelopes' messages, as many at a time as there are, up to a frame."""
        while True:
            yield (await self._next()).batch

    def close(self) -> None:
        """Get nothing more; what waits can still be read."""
        self._group.leave(self)

    def put(self, chunk: _Chunk) -> None:
        """For the exchange: add events, or cut this subscriber off."""
        if self._size + chunk.size > QUEUE_BYTES:
            self._cut = True
            self._group.leave(self)
        else:
            self._size += chunk.size
            self._queue.append(chunk)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _next(self) -> _Chunk:
        while not self._queue:
            if self._cut:
                limit = QUEUE_BYTES >> 20
                raise ResourceExhausted(f"event subscriber is too slow: over {limit} MiB waited")
            if self._group.hand_out():
                continue
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        chunk = self._queue.popleft()
        self._size -= chunk.size
        return chunk


class _Group:
    """The subscribers that gave the same filters, and what is to be handed out to them."""

    def __init__(self, parsed: filters.Filter) -> None:
        self.filter = parsed
        self.members: weakref.WeakSet[Subscription] = weakref.WeakSet()
        self._records: list[_Record] = []
        self._size = 0

    def join(self, watcher: int) -> Subscription:
        """A new member; what was published before is not for it."""
        self.hand_out()
        subscription = Subscription(self, watcher)
        self.members.add(subscription)
        return subscription

    def leave(self, subscription: Subscription) -> None:
        if subscription in self.members:
            self.hand_out()
            self.members.discard(subscription)

    def add(self, record: _Record) -> None:
        self._records.append(record)
        self._size += record.size
        if self._size >= _BATCH_BYTES:
            self.hand_out()

    def hand_out(self) -> bool:
        """Give what was added to all members; False if that is nothing."""
        if not self._records:
            return False
        chunk = _Chunk(self._records, self._size)
        self._records, self._size = [], 0
        for subscription in list(self.members):
            subscription.put(chunk)
        return True


class _Chunk:
    """Events that are handed out together; ``size`` is the memory they take, about."""

    def __init__(self, records: list[_Record], size: int) -> None:
        self.size = 3 * size + _IN_MEMORY * len(records)
        self._records = records

    @property
    def envelopes(self) -> list[Envelope]:
        return [record.envelope for record in self._records]

    @functools.cached_property
    def batch(self) -> Batch:
        return Batch([record.encoded for record in self._records])


class _Record:
    """One event on its way, with what was made of it so far."""

    def __init__(self, envelope: Envelope) -> None:
        self.envelope = envelope
        event = envelope.event
        self.size = _ON_WIRE + len(envelope.topic) + len(event.type_url) + len(event.value)

    @functools.cached_property
    def encoded(self) -> bytes:
        return convert.to_proto(self.envelope).SerializeToString()

    @functools.cached_property
    def field(self) -> Callable[[tuple[str, ...]], str | None]:
        """What filters ask for."""
        return field_reader(self.envelope)


def field_reader(envelope: Envelope) -> Callable[[tuple[str, ...]], str | None]:
    """What filters can ask of an event; it is opened only if they ask for what is in it."""
    event: Callable[[tuple[str, ...]], str | None] | None = None

    def field(path: tuple[str, ...]) -> str | None:
        nonlocal event
        if path[0] == "event":
            event = event or topics.field_reader(envelope.event)
            return event(path[1:])
        if path[0] == "topic":
            return envelope.topic or None
        if path[0] == "namespace":
            return envelope.namespace or None
        return None

    return field


def _since(journal: Journal, number: int) -> list[_Record]:
    """What was published after some event; the latest of it."""
    found: list[Envelope] = []
    cursor = Cursor(journal.directory, max(number, journal.oldest - 1))
    try:
        while records := cursor.read(journal.last):
            found += [convert.from_proto(Message.FromString(payload)) for _, payload in records]
    finally:
        cursor.close()
    return [_Record(one) for one in found[-_LATE:]]


@functools.lru_cache(1024)
def check(namespace: str, topic: str) -> None:
    """Raise InvalidArgument unless an event may be published there under this topic."""
    try:
        identifiers.validate(namespace)
    except InvalidArgument as error:
        raise InvalidArgument(f"event envelope has invalid namespace: {error.what}") from None
    about = f"envelope topic {quote(topic)}"
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
            what = f"{about}: failed validation on component {quote(component)}: {error.what}"
            raise InvalidArgument(what) from None
