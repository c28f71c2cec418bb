"""Followers: from which number on, what they select, and that they miss and repeat nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest

from cradled.api.types_pb2 import Envelope as EnvelopeMessage
from cradled.convert import events as convert
from cradled.core.events import Envelope
from cradled.core.values import AnyValue
from cradled.errors import FailedPrecondition, InvalidArgument, OutOfRange
from cradled.events import topics
from cradled.events.exchange import Exchange
from cradled.events.following import Numbered, follow
from cradled.events.journal import Journal

Followed = AsyncGenerator[list[Numbered], None]


def envelope(number: int, namespace: str = "ns", size: int = 1) -> Envelope:
    return Envelope(number, namespace, "/t", AnyValue("x", b"\x01" * size))


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    journal = Journal(str(tmp_path), 1 << 20)
    yield journal
    journal.close()


@pytest.fixture
def exchange(journal: Journal) -> Exchange:
    return Exchange(journal)


async def take(followed: Followed, count: int) -> list[tuple[int, int]]:
    """Number and timestamp of the next events."""
    found: list[tuple[int, int]] = []
    while len(found) < count:
        for number, encoded in await anext(followed):
            message = EnvelopeMessage.FromString(encoded)
            found.append((number, convert.from_proto(message).timestamp))
    assert len(found) == count
    return found


async def begin(followed: Followed) -> int:
    [(number, encoded)] = await anext(followed)
    assert encoded == b""
    return number


async def test_from_now_on(exchange: Exchange, journal: Journal) -> None:
    exchange.publish([envelope(1)])
    followed = follow(exchange, journal)
    assert await begin(followed) == 1
    exchange.publish([envelope(2), envelope(3)])
    assert await take(followed, 2) == [(2, 2), (3, 3)]
    await followed.aclose()


async def test_who_waits_is_woken(exchange: Exchange, journal: Journal) -> None:
    followed, other = follow(exchange, journal), follow(exchange, journal)
    await begin(followed)
    await begin(other)
    waiting = [asyncio.ensure_future(take(one, 1)) for one in (followed, other)]
    await asyncio.sleep(0)
    gone = asyncio.ensure_future(exchange.grown(0))
    await asyncio.sleep(0)
    gone.cancel()
    exchange.publish([envelope(1)])
    assert await asyncio.gather(*waiting) == [[(1, 1)], [(1, 1)]]
    await followed.aclose()
    await other.aclose()


async def test_resumes_behind_a_position(exchange: Exchange, journal: Journal) -> None:
    exchange.publish([envelope(number) for number in range(1, 6)])
    for since in ("2", journal.position(2)):
        followed = follow(exchange, journal, since=since)
        assert await begin(followed) == 2
        exchange.publish([])
        assert await take(followed, 3) == [(3, 3), (4, 4), (5, 5)]
        await followed.aclose()


async def test_what_cannot_be_resumed(exchange: Exchange, journal: Journal) -> None:
    cases = {"x": InvalidArgument, "1": OutOfRange, "00000000-0": FailedPrecondition}
    for since, error in cases.items():
        with pytest.raises(error):
            await anext(follow(exchange, journal, since=since))
    with pytest.raises(InvalidArgument, match="filters"):
        await anext(follow(exchange, journal, ["=="]))


async def test_from_a_time_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0
    monkeypatch.setattr("cradled.events.journal.time.time_ns", lambda: clock)
    journal = Journal(str(tmp_path))
    exchange = Exchange(journal)
    for number in range(1, 6):
        clock = number * 100 + 100
        exchange.publish([envelope(number)])
    followed = follow(exchange, journal, since_time=350)
    assert await begin(followed) == 2
    assert await take(followed, 3) == [(3, 3), (4, 4), (5, 5)]
    await followed.aclose()
    both = follow(exchange, journal, since_time=350, since="4")
    assert await begin(both) == 4
    assert await take(both, 1) == [(5, 5)]
    await both.aclose()
    journal.close()


async def test_filters(exchange: Exchange, journal: Journal) -> None:
    other = Envelope(3, "b", *topics.container_deleted("c"))
    exchange.publish([envelope(1, "a"), envelope(2, "b"), other])
    by_namespace = follow(exchange, journal, ["namespace==b"], since="0")
    await begin(by_namespace)
    assert await take(by_namespace, 2) == [(2, 2), (3, 3)]
    by_field = follow(exchange, journal, ["event.id==c", "namespace==c"], since="0")
    await begin(by_field)
    assert await take(by_field, 1) == [(3, 3)]
    await by_namespace.aclose()
    await by_field.aclose()


async def test_old_and_new_join_without_gap_or_repetition(
    exchange: Exchange, journal: Journal
) -> None:
    exchange.publish([envelope(number) for number in range(1, 2001)])
    followed = follow(exchange, journal, since="0")
    await begin(followed)
    found: list[int] = []
    sent = 2000
    while len(found) < 5000:
        found += [number for number, _ in await anext(followed)]
        if sent < 5000:
            exchange.publish([envelope(number) for number in range(sent + 1, sent + 101)])
            sent += 100
    assert found == list(range(1, 5001))
    await followed.aclose()


async def test_who_is_too_slow_is_told_where_to_go_on(exchange: Exchange, journal: Journal) -> None:
    exchange.publish([envelope(1)])
    followed = follow(exchange, journal, since="0")
    await begin(followed)
    assert await take(followed, 1) == [(1, 1)]
    exchange.publish([envelope(number, size=5000) for number in range(2, 500)])
    with pytest.raises(OutOfRange, match="are not kept, the oldest are those after") as refused:
        await take(followed, 1000)
    position = refused.value.what.rpartition(" ")[2]
    again = follow(exchange, journal, since=position)
    first = await begin(again) + 1
    assert first == journal.oldest
    found: list[int] = []
    while len(found) < 500 - first:
        found += [number for number, _ in await anext(again)]
    assert found == list(range(first, 500))
    await again.aclose()


async def test_a_journal_that_cannot_be_written_stops_nobody(
    exchange: Exchange, journal: Journal
) -> None:
    followed = follow(exchange, journal)
    await begin(followed)
    subscription = exchange.subscribe()
    exchange.publish([envelope(1, size=1 << 20), envelope(2)])
    assert (await anext(subscription)).timestamp == 1
    assert (await anext(subscription)).timestamp == 2
    assert await take(followed, 1) == [(2, 2)]
    await followed.aclose()
