"""Async. The journal of events (``cradled.v1.Journal``), for clients that resume by numbers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from cradled.api import cradled_pb2 as pb
from cradled.events import following
from cradled.events.exchange import Exchange
from cradled.events.journal import Journal
from cradled.rpc.call import Call
from cradled.rpc.service import Batch

_ENVELOPE = bytes([pb.Entry.DESCRIPTOR.fields_by_name["envelope"].number << 3 | 2])


class JournalService:
    def __init__(self, exchange: Exchange, journal: Journal) -> None:
        self._exchange = exchange
        self._journal = journal

    async def follow(self, call: Call, request: pb.FollowRequest) -> AsyncIterator[Batch]:
        followed = following.follow(
            self._exchange,
            self._journal,
            request.filters,
            since=request.since,
            since_time=request.since_time,
        )
        async with aclosing(followed):
            async for events in followed:
                yield Batch([self._entry(*event) for event in events])

    def _entry(self, number: int, encoded: bytes) -> bytes:
        """A serialised ``Entry``; the envelope in it is not taken apart."""
        entry = pb.Entry(position=self._journal.position(number)).SerializeToString()
        if encoded:
            entry += _ENVELOPE + _varint(len(encoded)) + encoded
        return entry


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
