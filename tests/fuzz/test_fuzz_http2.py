"""HTTP/2 connections against bytes: kept cases, frames that are nearly right, and noise.

The files of ``corpus/http2`` are what a peer sends after its greeting, to the role that the file's
name begins with. Each was made for, or found by, a branch of the parser.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
from harness.corpus import fuzz
from hypothesis import given
from hypothesis import strategies as st

from cradled.http2 import frames, hpack, limits
from cradled.http2.connection import STREAM_WINDOW, Connection
from cradled.http2.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PREFACE,
    WITH_PRIORITY,
    frame,
)
from cradled.http2.streams import DataReceived, Event, GoneAway, HeadersReceived, StreamReset

CORPUS = sorted((Path(__file__).parent / "corpus" / "http2").glob("*.bin"))
REQUEST = hpack.encode([(b":method", b"POST"), (b":path", b"/a.B/C"), (b"key", b"value")])
INSERTING = b"\x40\x01a\x01b"
TRAILERS = hpack.encode([(b"grpc-status", b"0")])


def greeted(role: str) -> Connection:
    """A connection of a role whose peer has said hello."""
    connection = Connection(server=role == "server", clock=lambda: 0.0)
    hello = frames.settings([])
    assert hear(connection, PREFACE + hello if role == "server" else hello) == []
    if role == "client":
        for end in (True, False, False):
            connection.open(REQUEST, end)
    sent(connection)
    return connection


def hear(connection: Connection, data: bytes) -> list[Event]:
    events = connection.receive(data)
    while connection.more:
        events += connection.receive(b"")
    return events


def sent(connection: Connection) -> bytes:
    out = []
    while connection.outbox:
        out += connection.take(1 << 30)
    return b"".join(out)


def summary(events: list[Event]) -> list[Any]:
    """Events in a form that does not depend on how the bytes were cut."""
    out: list[Any] = []
    for event in events:
        if isinstance(event, DataReceived):
            if out and out[-1][:2] == ["data", event.stream.id]:
                out[-1] = ["data", event.stream.id, out[-1][2] + bytes(event.data), event.ended]
            else:
                out.append(["data", event.stream.id, bytes(event.data), event.ended])
        elif isinstance(event, HeadersReceived):
            out.append(["headers", event.stream.id, event.head, event.ended])
        elif isinstance(event, StreamReset):
            out.append(["reset", event.stream.id, event.code])
        else:
            out.append(["away", event.code, event.text])
    return out


def check(connection: Connection) -> None:
    """Whatever came: little is kept, and the accounts are right."""
    assert len(connection._rest) <= limits.CONTROL_SIZE + 9
    block = connection._block
    assert block is None or block.size <= limits.BLOCK_SIZE
    unread = [STREAM_WINDOW - s.receive_window - s.owed for s in connection.streams.values()]
    assert connection._unread == sum(unread)
    assert min(unread, default=0) >= 0
    queued = [s.queued for s in connection.streams.values()]
    assert connection.outbox.queued == sum(queued)
    for stream in connection.streams.values():
        assert not stream.over
        assert not (stream.sent_end and stream.received_end)
    assert connection._decoder._size <= hpack.TABLE_SIZE


def listen(role: str, pieces: list[bytes]) -> tuple[list[Any], bytes, bool]:
    """What a connection makes of bytes, with nobody acting on it."""
    connection = greeted(role)
    events = []
    for piece in pieces:
        heard = hear(connection, piece)
        events += [DataReceived(e.stream, memoryview(bytes(e.data)), e.ended)
                   if isinstance(e, DataReceived) else e for e in heard]  # fmt: skip
        check(connection)
    return summary(events), sent(connection), connection.closed


def serve(role: str, pieces: list[bytes], random: Random) -> None:
    """The same, with a shell that answers, reads, resets and writes as it pleases."""
    connection = greeted(role)
    total = answered = 0
    known = list(connection.streams.values())
    for piece in pieces:
        total += len(piece)
        for event in hear(connection, piece):
            if isinstance(event, GoneAway):
                continue
            known.append(event.stream)
            if isinstance(event, DataReceived) and random.random() < 0.7:
                connection.release(event.stream, len(event.data))
            if not event.stream.ending and not event.stream.reset:
                answered += act(connection, event, random)
        check(connection)
        if random.random() < 0.5:
            connection.take(random.choice([1, 1 << 20]))
    for stream in known:
        connection.release(stream, 0)
    output = sent(connection)
    assert len(output) <= 40 * total + 200 * answered + 1000
    if connection.closed:
        assert hear(connection, frame(HEADERS, END_HEADERS, 99, REQUEST)) == []


def act(connection: Connection, event: Any, random: Random) -> int:
    match random.randrange(6):
        case 0:
            connection.send_reply(event.stream, b"\x88", b"pre", b"body", TRAILERS)
        case 1:
            connection.send_headers(event.stream, TRAILERS, end=True)
        case 2:
            connection.send_data(event.stream, bytes(100))
        case 3:
            connection.reset(event.stream, frames.ErrorCode.CANCEL)
        case 4:
            connection.reject(event.stream, frames.ErrorCode.PROTOCOL_ERROR)
        case _:
            return 0
    return 1


def cuts(data: bytes, random: Random) -> list[bytes]:
    pieces = []
    while data:
        size = random.choice([1, 2, 8, 9, 10, 30, 1000])
        pieces.append(data[:size])
        data = data[size:]
    return pieces


def try_all(role: str, data: bytes, seed: int) -> None:
    random = Random(seed)
    whole = listen(role, [data])
    assert listen(role, cuts(data, random)) == whole
    serve(role, [data], random)
    serve(role, cuts(data, random), random)


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_kept_cases(path: Path) -> None:
    role, data = path.name.partition("-")[0], path.read_bytes()
    assert listen(role, [data[i : i + 1] for i in range(len(data))]) == listen(role, [data])
    for seed in range(5):
        try_all(role, data, seed)


def test_the_corpus_is_there() -> None:
    assert len(CORPUS) > 50


# Frames that are nearly right

stream_ids = st.sampled_from([0, 1, 1, 3, 3, 5, 7, 2, 99])
numbers = st.one_of(st.sampled_from([0, 1, 65535, (1 << 31) - 1, 1 << 31]), st.integers(0, 1 << 32))
blocks = st.sampled_from([REQUEST, REQUEST, TRAILERS, INSERTING, b"\xbe", b"\x20", b"\x88", b""])


def number(value: int) -> bytes:
    return min(value, (1 << 32) - 1).to_bytes(4, "big")


def padded(kind: int, flags: int, stream_id: int, payload: bytes, padding: int) -> bytes:
    return frame(kind, flags | PADDED, stream_id, bytes([padding]) + payload + bytes(padding))


def continued(stream_id: int, flags: int, block: bytes, at: int) -> bytes:
    return frame(HEADERS, flags & END_STREAM, stream_id, block[:at]) + frame(
        CONTINUATION, END_HEADERS, stream_id, block[at:]
    )


ends = st.sampled_from([0, END_STREAM])
valid = st.one_of(
    st.builds(lambda i, e, b: frame(HEADERS, END_HEADERS | e, i, b), stream_ids, ends, blocks),
    st.builds(lambda i, e, b: frame(HEADERS, END_HEADERS | e, i, b), stream_ids, ends, blocks),
    st.builds(
        lambda i, e, b: frame(HEADERS, END_HEADERS | WITH_PRIORITY | e, i, bytes(5) + b),
        stream_ids,
        ends,
        blocks,
    ),
    st.builds(continued, stream_ids, ends, blocks, st.integers(0, 30)),
    st.builds(lambda i, e, d: frame(DATA, e, i, d), stream_ids, ends, st.binary(max_size=40)),
    st.builds(
        padded,
        st.sampled_from([DATA, HEADERS]),
        st.integers(0, 5),
        stream_ids,
        st.binary(max_size=20),
        st.integers(0, 30),
    ),
    st.builds(lambda i, n: frame(frames.RST_STREAM, 0, i, number(n)), stream_ids, numbers),
    st.builds(lambda i, n: frame(frames.WINDOW_UPDATE, 0, i, number(n)), stream_ids, numbers),
    st.builds(
        lambda pairs, a: frame(frames.SETTINGS, a, 0, b"".join(pairs)),
        st.lists(
            st.builds(lambda k, n: bytes([0, k]) + number(n), st.integers(0, 8), numbers),
            max_size=4,
        ),
        st.sampled_from([0, 0, 1]),
    ),
    st.builds(lambda a, p: frame(frames.PING, a, 0, p), st.integers(0, 1), st.just(b"draining")),
    st.builds(lambda n, m: frame(GOAWAY, 0, 0, number(n) + number(m)), numbers, numbers),
    st.builds(lambda i: frame(frames.PRIORITY, 0, i, bytes(5)), stream_ids),
    st.builds(lambda k, i, d: frame(k, 0xFF, i, d), st.integers(9, 255), stream_ids, st.binary()),
    st.just(frame(frames.PUSH_PROMISE, END_HEADERS, 1, bytes(4))),
)
damages = st.tuples(
    st.sampled_from(["flip", "cut", "insert", "double"]),
    st.integers(0, 1 << 16),
    st.integers(1, 255),
)


def damaged(data: bytes, wounds: list[tuple[str, int, int]]) -> bytes:
    out = bytearray(data)
    for kind, at, value in wounds:
        if not out:
            break
        at %= len(out)
        match kind:
            case "flip":
                out[at] ^= value
            case "cut":
                del out[at : at + value % 12]
            case "insert":
                out[at:at] = bytes([value])
            case "double":
                out[at:at] = out[at : at + value]
    return bytes(out)


@fuzz(500)
@given(
    st.sampled_from(["server", "server", "client"]),
    st.lists(valid, max_size=25).map(b"".join),
    st.lists(damages, max_size=4),
    st.integers(0, 1000),
)
def test_frames_that_are_nearly_right(
    role: str, data: bytes, wounds: list[tuple[str, int, int]], seed: int
) -> None:
    try_all(role, damaged(data, wounds), seed)


@fuzz(150)
@given(st.sampled_from(["server", "client"]), st.binary(max_size=300), st.integers(0, 1000))
def test_noise(role: str, data: bytes, seed: int) -> None:
    try_all(role, data, seed)


@fuzz(100)
@given(st.lists(damages, min_size=1, max_size=3), st.integers(0, 1000))
def test_damaged_greetings(wounds: list[tuple[str, int, int]], seed: int) -> None:
    data = damaged(PREFACE + frames.settings([(4, 1 << 20)]), wounds)
    whole, cut = Connection(server=True), Connection(server=True)
    events = hear(whole, data)
    seen = [event for piece in cuts(data, Random(seed)) for event in hear(cut, piece)]
    assert summary(seen) == summary(events)
    assert (cut.closed, sent(cut)) == (whole.closed, sent(whole))


# Both ends at once


@fuzz(150)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["open", "data", "headers", "end", "reset", "release", "pump"]),
            st.booleans(),
            st.integers(0, 5),
            st.integers(0, 200_000),
        ),
        max_size=40,
    ),
    st.integers(0, 1000),
)
def test_two_ends_that_keep_the_rules_never_quarrel(
    steps: list[tuple[str, bool, int, int]], seed: int
) -> None:
    random = Random(seed)
    client, server = Connection(server=False), Connection(server=True)
    ends = {True: client, False: server}

    def pump() -> None:
        while client.outbox or server.outbox:
            for source, target in ((client, server), (server, client)):
                for piece in cuts(b"".join(source.take(random.choice([1000, 1 << 20]))), random):
                    for event in hear(target, piece):
                        if isinstance(event, DataReceived) and random.random() < 0.9:
                            target.release(event.stream, len(event.data))

    for what, by_client, which, size in steps:
        end = ends[by_client]
        streams = list(end.streams.values())
        stream = streams[which % len(streams)] if streams else None
        if what == "open":
            client.open(client.encode(((b"key", b"%d" % which),)))
        elif what == "pump":
            pump()
        elif stream is None:
            continue
        elif what == "reset":
            end.reset(stream, frames.ErrorCode.CANCEL)
        elif stream.ending:
            continue
        elif what == "data":
            end.send_data(stream, bytes(size), end=size % 3 == 0)
        elif what == "end" or (what == "headers" and not by_client and size % 2):
            end.send_headers(stream, TRAILERS, end=True)
        check(client)
        check(server)
    pump()
    assert not client.closed
    assert not server.closed
