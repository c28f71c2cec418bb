"""The exchange: who gets what, in which order, and what is refused."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cradled.api.types_pb2 import Envelope as EnvelopeMessage
from cradled.convert import events as convert
from cradled.core.events import Envelope
from cradled.core.values import AnyValue
from cradled.errors import InvalidArgument, ResourceExhausted
from cradled.events import exchange as exchanges
from cradled.events import topics
from cradled.events.cursor import Cursor
from cradled.events.exchange import Exchange, Parting, Subscription
from cradled.events.journal import Journal


def envelope(
    number: int = 1, namespace: str = "ns", topic: str = "/t", event: AnyValue | None = None
) -> Envelope:
    return Envelope(number, namespace, topic, event or AnyValue("x", b"\x01"))


def about(event: topics.Event, namespace: str = "ns") -> Envelope:
    return envelope(1, namespace, *event)


def waiting(subscription: Subscription) -> list[Envelope]:
    """What a subscriber got so far."""
    found = []
    while True:
        step = subscription.__anext__()
        try:
            step.send(None)
        except StopIteration as end:
            found.append(end.value)
        else:
            step.close()
            return found


async def test_everybody_gets_everything_in_order() -> None:
    exchange = Exchange()
    exchange.publish([envelope(0)])
    subscriptions = [exchange.subscribe() for _ in range(3)]
    sent = [envelope(number) for number in range(1, 6)]
    exchange.publish(sent[:2])
    exchange.publish(sent[2:])
    for subscription in subscriptions:
        assert waiting(subscription) == sent


async def test_a_waiting_subscriber_is_woken() -> None:
    exchange = Exchange()
    subscription = exchange.subscribe()
    task = asyncio.ensure_future(anext(subscription))
    await asyncio.sleep(0)
    exchange.publish([envelope(1), envelope(2)])
    assert (await task).timestamp == 1
    assert (await anext(subscription)).timestamp == 2


async def test_encoded_is_the_message() -> None:
    exchange = Exchange()
    first, second = exchange.subscribe().batches(), exchange.subscribe().batches()
    sent = [envelope(1_500_000_000), envelope(2)]
    exchange.publish(sent)
    batch = await anext(first)
    assert await anext(second) is batch
    parsed = [EnvelopeMessage.FromString(message) for message in batch.messages]
    assert [convert.from_proto(message) for message in parsed] == sent


async def test_what_comes_in_one_turn_is_one_batch_and_one_waking() -> None:
    exchange = Exchange()
    subscription = exchange.subscribe()
    batches: asyncio.Queue[int] = asyncio.Queue()

    async def read() -> None:
        async for batch in subscription.batches():
            batches.put_nowait(len(batch))

    task = asyncio.ensure_future(read())
    await asyncio.sleep(0)
    for number in range(1, 11):
        exchange.publish([envelope(number)])
    assert batches.empty()
    assert await batches.get() == 10
    exchange.publish([envelope(11)])  # soon after another: waits a little for more
    exchange.publish([envelope(12)])
    assert await batches.get() == 2
    task.cancel()


async def test_a_batch_is_no_larger_than_a_frame() -> None:
    exchange = Exchange()
    subscription = exchange.subscribe()
    exchange.publish([envelope(number, event=AnyValue("x", bytes(1000))) for number in range(100)])
    sizes, count = [], 0
    async for batch in subscription.batches():
        sizes.append(sum(map(len, batch.messages)) + 5 * len(batch))
        count += len(batch)
        if count == 100:
            break
    assert len(sizes) > 5
    assert max(sizes) <= 16384


async def test_who_comes_later_gets_nothing_of_before() -> None:
    exchange = Exchange()
    early = exchange.subscribe()
    exchange.publish([envelope(1)])
    late = exchange.subscribe()
    exchange.publish([envelope(2)])
    assert [each.timestamp for each in waiting(late)] == [2]
    assert [each.timestamp for each in waiting(early)] == [1, 2]


@pytest.mark.parametrize(
    ("expressions", "expected"),
    [
        ([], "abcd"),
        (["namespace==moby,topic~=|^/tasks/|"], "b"),
        (['topic=="/tasks/exit"'], "bc"),
        (["event.container_id==c1"], "bc"),
        (["event.id==e1", "event.key==k"], "cd"),
        (["event.labels.a.b==1"], "a"),
        (["event"], ""),
        (["timestamp"], ""),
        (["topic"], "abcd"),
        (["event.pid"], ""),
    ],
)
async def test_filters(expressions: list[str], expected: str) -> None:
    exit_of = topics.Exit(7, 0, 1)
    events = {
        "a": about(topics.namespace_created("n", {"a.b": "1"})),
        "b": about(topics.task_exited("c1", "c1", exit_of), "moby"),
        "c": about(topics.task_exited("c1", "e1", exit_of)),
        "d": about(topics.snapshot_prepared("s", "k", "p")),
    }
    exchange = Exchange()
    subscription = exchange.subscribe(expressions)
    exchange.publish(list(events.values()))
    assert waiting(subscription) == [events[letter] for letter in expected]


async def test_a_bad_filter() -> None:
    with pytest.raises(InvalidArgument, match="filters: parse error"):
        Exchange().subscribe(["topic=="])


async def test_events_are_opened_only_for_filters_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = Exchange()
    opened: list[AnyValue] = []
    real = topics.field_reader
    monkeypatch.setattr(topics, "field_reader", lambda event: opened.append(event) or real(event))
    kept = [exchange.subscribe(['topic=="/t"']), exchange.subscribe()]
    exchange.publish([envelope()])
    assert opened == []
    kept += [exchange.subscribe(["event.id==1"]), exchange.subscribe(["event.id==2"])]
    exchange.publish([envelope()])
    assert len(opened) == 1


async def test_one_that_nobody_holds_is_forgotten() -> None:
    exchange = Exchange()
    subscription = exchange.subscribe(['topic=="/t"'])
    assert len(exchange._groups) == 1
    del subscription
    gc.collect()
    exchange.publish([envelope()])
    assert exchange._groups == {}


async def test_a_closed_one_gets_nothing_more() -> None:
    exchange = Exchange()
    subscription = exchange.subscribe()
    exchange.publish([envelope(1)])
    subscription.close()
    subscription.close()
    exchange.publish([envelope(2)])
    assert [each.timestamp for each in waiting(subscription)] == [1]


async def test_a_slow_one_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "QUEUE_BYTES", 9 << 20)
    exchange = Exchange()
    slow, quick = exchange.subscribe(), exchange.subscribe()
    for number in range(1, 6):
        exchange.publish([envelope(number, event=AnyValue("x", bytes(900 << 10)))])
        assert (await anext(quick)).timestamp == number
    assert [(await anext(slow)).timestamp for _ in range(3)] == [1, 2, 3]
    for _ in range(2):
        with pytest.raises(ResourceExhausted, match="subscriber is too slow: over 9 MiB waited"):
            await anext(slow)


async def test_one_that_waits_while_cut_off_hears_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "QUEUE_BYTES", 0)
    exchange = Exchange()
    task = asyncio.ensure_future(anext(exchange.subscribe()))
    await asyncio.sleep(0)
    exchange.publish([envelope()])
    with pytest.raises(ResourceExhausted):
        await task


@pytest.mark.parametrize(
    ("topic", "text"),
    [
        ("", 'envelope topic "": must not be empty'),
        ("t", "envelope topic \"t\": must start with '/'"),
        ("/", 'envelope topic "/": must have at least one component'),
        (
            "/a//b",
            'envelope topic "/a//b": failed validation on component "":'
            " identifier must not be empty",
        ),
        ("/a/b c", 'envelope topic "/a/b c": failed validation on component "b c": identifier '),
    ],
)
async def test_bad_topics(topic: str, text: str) -> None:
    exchange = Exchange()
    subscription = exchange.subscribe()
    for publish in (
        lambda: exchange.publish([envelope(), envelope(topic=topic)]),
        lambda: exchange.forward(envelope(topic=topic)),
    ):
        with pytest.raises(InvalidArgument) as caught:
            publish()
        assert str(caught.value).startswith(text)
        assert str(caught.value).endswith(": invalid argument")
    assert waiting(subscription) == []


async def test_forwarding() -> None:
    exchange = Exchange()
    subscription = exchange.subscribe()
    exchange.forward(envelope(5, "other", "/tasks/oom"))
    assert waiting(subscription) == [envelope(5, "other", "/tasks/oom")]
    with pytest.raises(InvalidArgument, match="timestamp must be set on forwarded event"):
        exchange.forward(envelope(0))
    with pytest.raises(InvalidArgument, match="event envelope has invalid namespace: identifier"):
        exchange.forward(envelope(namespace=""))


async def test_events_go_to_the_journal(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    exchange = Exchange(journal)
    sent = [
        about(topics.container_deleted("c")),
        about(topics.task_exited("c", "c", topics.Exit(7, 1, 2))),
        about(topics.container_deleted("d")),
    ]
    exchange.publish(sent[:1])
    exchange.forward(sent[1])
    exchange.publish_late(sent[2:])
    kept = Cursor(str(tmp_path)).read(journal.last)
    messages = [EnvelopeMessage.FromString(payload) for _, payload in kept]
    assert [convert.from_proto(message) for message in messages] == sent
    assert journal.exits() == {("ns", "c", "c", 7)}
    journal.close()


async def test_who_comes_back_hears_what_happened_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exchange = Exchange()
    now = time.time_ns()
    before = envelope(1, topic="/tasks/exit")
    other = envelope(1, namespace="other", topic="/tasks/exit")
    instead = envelope(now + 1, topic="/tasks/delete")
    exchange.forward(before)
    exchange.forward(other)
    exchange.publish_late([instead])  # in place of a shim that died
    exchange.publish([envelope(now, topic="/tasks/delete")])  # of this life
    exchange.forward(envelope(now + 10**9, topic="/tasks/start"))
    exchange.publish([envelope(now, topic="/images/create")])
    late = exchange.subscribe(["namespace==ns"])
    assert waiting(late) == [before, instead]
    after = envelope(2, topic="/tasks/exit")
    exchange.forward(after)
    assert waiting(late) == [after]
    assert waiting(exchange.subscribe()) == [before, other, instead, after]
    monkeypatch.setattr(exchanges, "LATE_SECONDS", -1.0)
    exchange.forward(after)
    assert waiting(exchange.subscribe()) == []


async def test_what_may_have_reached_nobody_is_told_again(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    exchange = Exchange(journal)
    exchange.publish([envelope(1)])
    async with asyncio.timeout(20):
        while journal.handed < 1:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    exchange.publish([envelope(2), envelope(3)])  # and the daemon dies
    journal.close()
    journal = Journal(str(tmp_path))
    exchange = Exchange(journal)
    assert waiting(exchange.subscribe()) == [envelope(2), envelope(3)]
    assert journal.last == 3
    async with asyncio.timeout(20):
        while journal.handed < 3:  # noqa: ASYNC110 - now it has reached somebody
            await asyncio.sleep(0.001)
    exchange.publish([envelope(4)])
    async with asyncio.timeout(20):
        while journal.handed < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    journal.close()
    journal = Journal(str(tmp_path))
    assert waiting(Exchange(journal).subscribe()) == []
    journal.close()


async def test_many_that_reached_nobody_stay_within_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchanges, "_LATE", 10)
    journal = Journal(str(tmp_path))
    Exchange(journal).publish([envelope(number) for number in range(1, 101)])
    journal.hand(1)
    journal.close()
    journal = Journal(str(tmp_path))
    told = waiting(Exchange(journal).subscribe())
    assert told == [envelope(number) for number in range(91, 101)]
    journal.close()


# From one daemon to the next


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(str(tmp_path))
    yield journal
    journal.close()


async def test_subscribers_go_on_where_they_were(journal: Journal) -> None:
    before = Exchange(journal)
    subscription = before.subscribe(["namespace==ns"], 7)
    gone = before.subscribe(["namespace==ns"], 8)
    before.publish([envelope(1), envelope(2)])
    reading = asyncio.ensure_future(anext(subscription))
    assert (await reading).timestamp == 1
    parting = asyncio.ensure_future(before.part(60))
    await asyncio.sleep(0)
    before.publish([envelope(3)])
    assert waiting(gone) == [envelope(1), envelope(2), envelope(3)]
    assert waiting(subscription) == [envelope(2), envelope(3)]
    parted = await parting
    assert parted == Parting(3, parted.watchers)
    assert sorted(parted.watchers) == [(7, ("namespace==ns",)), (8, ("namespace==ns",))]
    before.publish([envelope(4), envelope(5, "other")])
    assert waiting(subscription) == []
    after = Exchange(journal, parted)
    after.publish([envelope(6)])
    again = after.subscribe(["namespace==ns"], 7)
    after.publish([envelope(7)])
    assert waiting(again) == [envelope(4), envelope(6), envelope(7)]


async def test_only_who_was_there_goes_on(journal: Journal) -> None:
    before = Exchange(journal)
    there = [before.subscribe(["namespace==ns"], watcher) for watcher in (7, 7, 0)]
    parted = await before.part(60)
    assert parted == Parting(0, [(7, ("namespace==ns",))] * 2)
    before.publish([envelope(1)])
    journal.hand(1)
    after = Exchange(journal, parted)
    assert waiting(after.subscribe(["namespace==ns"], 8)) == []
    assert waiting(after.subscribe(["namespace==ns"])) == []
    assert waiting(after.subscribe(["namespace==other"], 7)) == []
    for told in ([envelope(1)], [envelope(1)], []):
        assert waiting(after.subscribe(["namespace==ns"], 7)) == told
    assert len(there) == 3


async def test_who_does_not_read_is_not_waited_for_long(journal: Journal) -> None:
    exchange = Exchange(journal)
    slow, quick = exchange.subscribe((), 7), exchange.subscribe((), 8)
    exchange.publish([envelope(1)])
    assert waiting(quick) == [envelope(1)]
    parted = await exchange.part(0)
    assert parted == Parting(1, [(8, ())])
    await asyncio.sleep(2 * exchanges._DELIVERY)
    assert journal.handed == 0  # the next daemon tells it again
    assert waiting(slow) == [envelope(1)]


async def test_what_was_told_is_not_told_again(journal: Journal) -> None:
    before = Exchange(journal)
    before.publish([envelope(1)])
    await before.part(0)
    assert journal.handed == 1
    assert waiting(Exchange(journal).subscribe()) == []


async def test_parting_again_takes_back_nothing(journal: Journal) -> None:
    exchange = Exchange(journal)
    slow = exchange.subscribe()
    exchange.publish([envelope(1)])
    parted = await exchange.part(0)
    exchange.publish([envelope(2)])
    assert await exchange.part(0) == parted  # as a daemon does that ends after it has made way
    assert journal.handed == 0
    assert waiting(Exchange(journal).subscribe()) == [envelope(1), envelope(2)]
    assert waiting(slow) == [envelope(1)]
