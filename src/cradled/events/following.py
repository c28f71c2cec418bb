"""Async. Events by their numbers: what happened since some moment, then what happens.

A follower reads the journal's files, the old part and the new alike: nothing waits for it in
memory, and however slow it is, it misses nothing that is kept.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from typing import NamedTuple

from cradled import filters
from cradled.aio import threads
from cradled.api.types_pb2 import Envelope as EnvelopeMessage
from cradled.convert import events as convert
from cradled.errors import OutOfRange
from cradled.events.cursor import Cursor, Dropped
from cradled.events.exchange import Exchange, field_reader
from cradled.events.journal import Journal


class Numbered(NamedTuple):
    """An event serialised, and its number; empty where there is none to the number."""

    number: int
    encoded: bytes


async def follow(
    exchange: Exchange,
    journal: Journal,
    expressions: Iterable[str] = (),
    *,
    since: str = "",
    since_time: int = 0,
) -> AsyncGenerator[list[Numbered], None]:
    """The events a filter selects that follow the position ``since``, written at ``since_time``
    (nanoseconds since the epoch) or later; without both, those from now on. The first list has
    one entry, without an event: where it begins.

    Raises InvalidArgument for a bad filter, what ``Journal.number`` raises, and OutOfRange when
    the reader was so slow that what is next was dropped.
    """
    parsed = filters.parse(tuple(expressions))
    begin = journal.number(since) if since else 0 if since_time else journal.last
    cursor = Cursor(journal.directory, begin)
    try:
        if since_time:
            await threads.run("fs", cursor.seek, since_time)
            cursor.number = max(cursor.number, begin)
        yield [Numbered(cursor.number, b"")]
        while True:
            await exchange.grown(cursor.number)
            found = await threads.run("fs", cursor.read, journal.last)
            chosen = [Numbered(*one) for one in found if _is_selected(parsed, one[1])]
            if chosen:
                yield chosen
    except Dropped:
        journal.check(cursor.number)
        raise OutOfRange(f"events after {cursor.number} are not kept any more") from None
    finally:
        cursor.close()


def _is_selected(parsed: filters.Filter, encoded: bytes) -> bool:
    if not parsed:
        return True
    envelope = convert.from_proto(EnvelopeMessage.FromString(encoded))
    return parsed.match(field_reader(envelope))
