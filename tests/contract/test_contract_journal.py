"""Events by their numbers (``protos/cradled.proto``). It needs no namespace."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from harness.contract import Case, Door, Refused, Served, ask_all

from cradled.api import cradled_pb2 as pb
from cradled.convert import events as convert
from cradled.core.events import Envelope
from cradled.core.values import AnyValue
from cradled.events.exchange import Exchange
from cradled.events.journal import Journal
from cradled.rpc.status import Code
from cradled.services.journal import JournalService

EPOCH = "0a0b0c0d"


class Told(NamedTuple):
    """An exchange with a journal, and what was published."""

    exchange: Exchange
    journal: Journal


@pytest.fixture
def told(directory: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    monkeypatch.setattr("os.urandom", lambda count: bytes.fromhex(EPOCH)[:count])
    journal = Journal(str(Path(directory) / "journal"), 1 << 20)
    monkeypatch.undo()
    yield Told(Exchange(journal), journal)
    journal.close()


@pytest.fixture
def extra(told: Told) -> list[Served]:
    return [(pb.Journal, JournalService(*told))]


def envelope(number: int, size: int = 1) -> Envelope:
    return Envelope(number, "a" if number % 2 else "b", "/t", AnyValue("x", bytes(size)))


def entry(number: int) -> pb.Entry:
    return pb.Entry(position=f"{EPOCH}-{number}", envelope=convert.to_proto(envelope(number)))


async def first(rpc: Any, request: pb.FollowRequest, count: int) -> list[pb.Entry]:
    stream = rpc(request)
    try:
        return [await anext(stream) for _ in range(count)]
    finally:
        await stream.aclose()


async def test_follow(door: Door, told: Told) -> None:
    journal = door.stub(pb.Journal, "")
    told.exchange.publish([envelope(number) for number in range(1, 6)])
    at = pb.Entry(position=f"{EPOCH}-3")
    for since in ("3", f"{EPOCH}-3"):
        found = await first(journal.follow, pb.FollowRequest(since=since), 3)
        assert found == [at, entry(4), entry(5)]
    found = await first(journal.follow, pb.FollowRequest(since_time=1), 6)
    assert found[1:] == [entry(number) for number in range(1, 6)]
    request = pb.FollowRequest(since="0", filters=["namespace==b", "topic==nothing"])
    found = await first(journal.follow, request, 3)
    assert found[1:] == [entry(2), entry(4)]


async def test_from_now_on(door: Door, told: Told) -> None:
    told.exchange.publish([envelope(1)])
    stream = door.stub(pb.Journal, "").follow(pb.FollowRequest())
    assert await anext(stream) == pb.Entry(position=f"{EPOCH}-1")
    large = envelope(2, size=300_000)
    told.exchange.publish([large, envelope(3)])
    assert (await anext(stream)).envelope == convert.to_proto(large)
    assert await anext(stream) == entry(3)
    await stream.aclose()


async def test_refusals(door: Door, told: Told) -> None:
    many = [envelope(number, size=1000) for number in range(2000)]
    told.exchange.publish(many)
    before = told.journal.oldest - 1
    assert before > 1
    rows = {
        "1": (
            Code.OUT_OF_RANGE,
            f"events after 1 are not kept, the oldest are those after {EPOCH}-{before}",
        ),
        "2001": (
            Code.OUT_OF_RANGE,
            f"event 2001 has not happened yet, the last one is {EPOCH}-2000",
        ),
        "11111111-7": (
            Code.FAILED_PRECONDITION,
            f"events of 11111111 are lost, the journal has been begun anew as {EPOCH}",
        ),
        "x": (Code.INVALID_ARGUMENT, '"x" is no position in the journal of events'),
    }
    texts = {
        Code.OUT_OF_RANGE: "out of range",
        Code.FAILED_PRECONDITION: "failed precondition",
        Code.INVALID_ARGUMENT: "invalid argument",
    }
    await ask_all(
        door.stub(pb.Journal, "").follow,
        [
            Case(since, pb.FollowRequest(since=since), Refused(code, f"{text}: {texts[code]}"))
            for since, (code, text) in rows.items()
        ],
    )
