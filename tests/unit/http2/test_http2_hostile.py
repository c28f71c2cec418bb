"""Peers that mean harm: what they get, and what they can make a connection hold.

Floods are fed to a connection whose clock the test turns. The same frames at a bearable rate, or
between useful work, must never end a connection: then only rates are limited, not counts.
"""

import itertools
from typing import NamedTuple

import pytest

from cradled.http2 import frames, hpack, limits
from cradled.http2.connection import CONNECTION_WINDOW, STREAM_WINDOW, Connection
from cradled.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    MAX_WINDOW,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ErrorCode,
    frame,
    rst_stream,
    window_update,
)
from cradled.http2.streams import DataReceived, HeadersReceived

KIB, MIB = 1 << 10, 1 << 20
BLOCK = hpack.encode([(b":method", b"POST"), (b":path", b"/a.B/C")])
TRAILERS = hpack.encode([(b"grpc-status", b"0")])
PATIENCE = 2000


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Server:
    """A connection, with a peer that reads nothing unless told so."""

    def __init__(self, settings=()):
        self.clock = Clock()
        self.http2 = Connection(server=True, clock=self.clock)
        self.hear(PREFACE + frames.settings(settings))
        self.read()

    def hear(self, data):
        """All events; the output stays where it is."""
        events = self.http2.receive(data)
        while self.http2.more:
            events += self.http2.receive(b"")
        return events

    def read(self, limit=1 << 30):
        return b"".join(self.http2.take(limit))

    def last_words(self):
        """(code, text) of the GOAWAY at the end of the output."""
        *_, payload = parse(self.read())[-1]
        return ErrorCode(int.from_bytes(payload[4:8], "big")), payload[8:].decode()


def parse(data):
    out = []
    while data:
        word, flags, stream_id = frames.HEAD.unpack_from(data)
        out.append((word & 0xFF, flags, stream_id, data[9 : 9 + (word >> 8)]))
        data = data[9 + (word >> 8) :]
    return out


def headers(stream_id, flags=END_HEADERS | END_STREAM, block=BLOCK):
    return frame(HEADERS, flags, stream_id, block)


def ids():
    return itertools.count(3, 2)


@pytest.fixture(autouse=True)
def little_patience(monkeypatch):
    monkeypatch.setattr(limits, "PATIENCE", PATIENCE)


class Flood(NamedTuple):
    """Frames to repeat, after those that come first, what they cost, and what they are called."""

    make: object
    first: bytes = b""
    cost: int = 1
    text: str = ""


def over(stream_id):
    """A stream that the client has opened and reset."""
    return headers(stream_id) + rst_stream(stream_id, 8)


FLOODS = {
    "pings": Flood(lambda i: frame(PING, 0, 0, bytes(8)), text="too many pings"),
    "answers to no ping": Flood(lambda i: frame(PING, ACK, 0, bytes(8)), text="too many pings"),
    "empty settings": Flood(lambda i: frame(SETTINGS, 0, 0), text="too many SETTINGS frames"),
    "acks of no settings": Flood(lambda i: frame(SETTINGS, ACK, 0)),
    "settings": Flood(lambda i: frames.settings([(99, 1)] * 100), cost=101),
    "window settings": Flood(
        lambda i: frames.settings([(4, i // 2 % 2)]),
        first=b"".join(headers(2 * i + 1) for i in range(1600)),
        cost=102,
    ),
    "empty data": Flood(
        lambda i: frame(DATA, 0, 1), headers(1, END_HEADERS), text="too many empty DATA frames"
    ),
    "padding": Flood(
        lambda i: frame(DATA, PADDED, 1, bytes([99]) + bytes(99)), headers(1, END_HEADERS)
    ),
    "data of a stream that is over": Flood(lambda i: frame(DATA, 0, 1, b"x"), over(1)),
    "headers of a stream that is over": Flood(lambda i: headers(1), over(3) + over(5)),
    "resets of a stream that is over": Flood(lambda i: rst_stream(1, 8), over(1)),
    "rapid resets": Flood(over, cost=4, text="too many streams broken off"),
    "resets made by us": Flood(lambda i: headers(i) + window_update(i, 0), cost=4),
    "more data than the window": Flood(
        lambda i: headers(i) + frame(DATA, 0, i, b"x"), cost=3, text="too many streams with errors"
    ),
    "priorities": Flood(lambda i: frame(PRIORITY, 0, i, bytes(5)), text="too many PRIORITY frames"),
    "unknown frames": Flood(lambda i: frame(0x42, 0, 0, b"x"), text="too many unknown frames"),
    "long unknown frames": Flood(lambda i: frame(0x42, 0, 0, bytes(70 * KIB))),
    "window updates": Flood(lambda i: window_update(0, 1), text="too many window updates"),
    "window updates of a stream": Flood(lambda i: window_update(1, 1), headers(1)),
    "goaways": Flood(lambda i: frames.goaway(0, 0)),
    "empty continuations": Flood(
        lambda i: (
            headers(i, END_STREAM)
            + frame(CONTINUATION, 0, i) * 100
            + frame(CONTINUATION, END_HEADERS, i)
        ),
        cost=101,
        text="too many CONTINUATION frames",
    ),
    "header lists over the limit": Flood(
        lambda i: headers(i, block=b"\xbe" * 20),
        headers(1, block=b"\x40\x01a" + hpack._encode_integer(4000, 0x7F, 0) + bytes(4000)),
        cost=1000,
        text="too many header lists over the limit",
    ),
}


@pytest.mark.parametrize("name", FLOODS)
def test_floods(name):
    flood, server = FLOODS[name], Server()
    server.hear(flood.first)
    streams = len(server.http2.streams)
    sent = 0
    for i in ids():
        sent += 1
        server.hear(flood.make(i))
        if server.http2.closed:
            break
        assert sent < 2 * PATIENCE
    assert sent * flood.cost <= PATIENCE + flood.cost + 8
    assert sum(map(len, server.http2.outbox._frames)) < 40 * PATIENCE  # though nobody reads
    assert len(server.http2.streams) <= streams + 20
    code, text = server.last_words()
    assert code == ErrorCode.ENHANCE_YOUR_CALM
    assert text.startswith(flood.text or "too many ")


@pytest.mark.parametrize("name", FLOODS)
def test_the_same_at_a_bearable_rate(name):
    flood, server = FLOODS[name], Server()
    server.hear(flood.first)
    made = 0
    for i in ids():
        made += flood.cost
        server.hear(flood.make(i))
        server.read()
        server.clock.now += (flood.cost + 0.01) / limits.PER_SECOND
        if made > 4 * PATIENCE:
            break
    assert not server.http2.closed


def test_patience_that_was_not_used_does_not_pile_up():
    server = Server()
    server.clock.now += 1e6
    for _ in range(3 * PATIENCE):
        server.hear(frame(PING, 0, 0, bytes(8)))
    assert server.http2.closed


# Peers that only look alike


def test_calls_earn_their_pings_and_window_updates():
    """What Go's clients do: a ping and window updates around each answer, for hours."""
    server = Server()
    for i in range(1, 10 * PATIENCE, 2):
        fuss = frame(PING, 0, 0, bytes(8)) + window_update(0, 10) * 2
        (event,) = server.hear(fuss + headers(i))
        server.http2.send_reply(event.stream, b"\x88", b"pre", b"body", TRAILERS)
        server.read()
        server.hear(rst_stream(i, 8) + fuss)
    assert not server.http2.closed


def test_data_earns_its_window_updates():
    """A large answer to a client that opens its windows after each frame."""
    server = Server()
    (event,) = server.hear(headers(1))
    server.http2.send_headers(event.stream, b"\x88")
    got, size = 0, 200 * MIB
    while got < size:
        if not event.stream.queued:
            server.http2.send_data(event.stream, bytes(4 * MIB))
        for kind, _, _, payload in parse(server.read()):
            if kind == DATA:
                got += len(payload)
                updates = window_update(0, len(payload)) + window_update(1, len(payload))
                server.hear(updates + frame(PING, 0, 0, bytes(8)))
    assert not server.http2.closed


def test_all_of_ten_thousand_calls_are_given_up_at_once(monkeypatch):
    """As when a daemon that waits for that many containers ends."""
    monkeypatch.setattr(limits, "PATIENCE", 1 << 16)
    server = Server()
    server.hear(b"".join(headers(2 * i + 1) for i in range(10_000)))
    assert len(server.http2.streams) == 10_000
    server.hear(b"".join(rst_stream(2 * i + 1, 8) for i in range(10_000)))
    assert not server.http2.streams
    assert not server.http2.closed


def test_a_window_opened_byte_by_byte_earns_nothing():
    server = Server([(4, 0)])
    (event,) = server.hear(headers(1))
    server.http2.send_data(event.stream, bytes(MIB))
    for _ in range(2 * PATIENCE):
        server.hear(window_update(1, 1))
        server.read()
    assert server.http2.closed


def test_a_server_that_floods_its_client():
    client = Connection(server=False, clock=Clock())
    client.receive(frames.settings([]))
    for _ in range(2 * PATIENCE):
        client.receive(frame(PING, 0, 0, bytes(8)))
    assert client.closed


def test_a_server_that_wants_no_more_of_a_request_does_no_harm():
    client = Connection(server=False, clock=Clock())
    client.receive(frames.settings([]))
    for i in range(1, 4 * PATIENCE, 2):
        client.open(BLOCK)
        client.receive(headers(i, block=TRAILERS) + rst_stream(i, 0))
        client.take(1)
    assert not client.streams
    assert not client.closed


# Memory


def test_streams_are_limited(monkeypatch):
    monkeypatch.setattr(limits, "MAX_STREAMS", 100)
    server = Server()
    server.hear(b"".join(headers(2 * i + 1) for i in range(150)))
    assert len(server.http2.streams) == 100
    resets = [f for f in parse(server.read()) if f[0] == RST_STREAM]
    assert {f[3] for f in resets} == {int(ErrorCode.REFUSED_STREAM).to_bytes(4, "big")}
    assert [f[2] for f in resets] == list(range(201, 301, 2))
    server.http2.send_headers(server.http2.streams[1], TRAILERS, end=True)
    assert len(server.hear(headers(301))) == 1
    assert not server.http2.closed


def granted(server):
    """What the connection's window has been given back."""
    return sum(
        int.from_bytes(payload, "big")
        for kind, _, stream_id, payload in parse(server.read())
        if kind == WINDOW_UPDATE and stream_id == 0
    )


def fill(server, stream_id):
    server.hear(headers(stream_id, END_HEADERS))
    server.hear(frame(DATA, 0, stream_id, bytes(MIB)) * (STREAM_WINDOW // MIB))
    return server.http2.streams[stream_id]


def test_what_nobody_reads_is_limited_for_all_streams_together():
    server = Server()
    count = (limits.UNREAD + CONNECTION_WINDOW) // STREAM_WINDOW
    streams = [fill(server, 2 * i + 1) for i in range(count)]
    assert server.http2._unread == count * STREAM_WINDOW
    assert granted(server) <= limits.UNREAD + CONNECTION_WINDOW // 4
    # Reading, and the end of streams, open it again.
    for stream in streams[:2]:
        server.http2.reset(stream, ErrorCode.CANCEL)
    server.hear(rst_stream(streams[2].id, 8))
    assert server.http2._unread == (count - 3) * STREAM_WINDOW
    assert granted(server) == 0
    server.http2.release(streams[3], STREAM_WINDOW)
    assert granted(server) > 0
    for stream in streams[4:]:
        server.http2.release(stream, MIB)
        server.http2.send_headers(stream, TRAILERS, end=True)
    server.http2.release(streams[5], 3 * MIB)  # late: it has been counted with its end
    assert server.http2._unread == 0


def test_padding_is_given_back_to_the_stream():
    server = Server()
    server.hear(headers(1, END_HEADERS))
    stream = server.http2.streams[1]
    for _ in range(2 * STREAM_WINDOW // 200):
        (event,) = server.hear(frame(DATA, PADDED, 1, bytes([198]) + b"x" + bytes(198)))
        server.http2.release(stream, len(event.data))
        server.read()
    assert not stream.reset
    assert server.http2._unread == 0


def test_padding_is_not_kept():
    server = Server()
    server.hear(headers(1, END_HEADERS))
    data = frame(DATA, PADDED | END_STREAM, 1, bytes([255]) + b"data" + bytes(255))
    events = []
    for i in range(len(data)):
        events += server.hear(data[i : i + 1])
        assert len(server.http2._rest) <= 9
    assert b"".join(bytes(e.data) for e in events) == b"data"
    assert [e.ended for e in events] == [False, False, False, True]


def test_frames_of_unknown_kinds_are_not_kept():
    server = Server()
    data = frame(0x42, 0xFF, 7, bytes(MIB)) + headers(1)
    for at in range(0, len(data), 1000):
        events = server.hear(data[at : at + 1000])
        assert len(server.http2._rest) < 100
    assert [type(e) for e in events] == [HeadersReceived]


@pytest.mark.parametrize("kind", [HEADERS, CONTINUATION, SETTINGS, GOAWAY, PING, RST_STREAM])
def test_frames_that_would_be_kept_are_refused_by_their_head(kind):
    server = Server()
    if kind == CONTINUATION:
        server.hear(headers(1, 0))
    server.hear(frame(kind, 0, 1, bytes(MIB))[:9])
    assert server.http2.closed


def test_a_block_that_never_ends():
    server = Server()
    server.hear(headers(1, 0))
    for _ in range(300):
        server.hear(frame(CONTINUATION, 0, 1, bytes(8 * KIB)))
        block = server.http2._block
        assert block is None or block.size <= limits.BLOCK_SIZE + 16 * KIB
    assert server.last_words()[0] == ErrorCode.ENHANCE_YOUR_CALM


def test_a_header_list_over_the_limit_costs_its_stream_only():
    server = Server()
    assert len(server.hear(headers(1, END_HEADERS))) == 1
    large = hpack.encode([(b"a", b"\xff" * 40_000), (b"b", b"\xff" * 40_000)])
    assert server.hear(headers(3, block=large)) == []
    (reset,) = [f for f in parse(server.read()) if f[0] == RST_STREAM]
    assert reset[2:] == (3, int(ErrorCode.FRAME_SIZE_ERROR).to_bytes(4, "big"))
    assert list(server.http2.streams) == [1]
    (event,) = server.hear(frame(DATA, END_STREAM, 1, b"x"))
    assert isinstance(event, DataReceived)


def test_windows_that_never_open_hold_what_was_queued_and_no_more():
    server = Server([(4, 0)])
    events = server.hear(b"".join(headers(2 * i + 1) for i in range(100)))
    for event in events:
        server.http2.send_headers(event.stream, b"\x88")
        server.http2.send_data(event.stream, bytes(10_000))
    assert server.http2.outbox.queued == 1_000_000
    assert len(server.read()) < 100 * 20
    for event in events[:50]:
        server.hear(rst_stream(event.stream.id, 8))
    assert server.http2.outbox.queued == 500_000
    server.hear(frames.settings([(4, MAX_WINDOW)]) + window_update(0, MAX_WINDOW - 65535))
    server.read()
    assert server.http2.outbox.queued == 0


@pytest.mark.parametrize("seed", range(3))
def test_garbage_instead_of_a_preface(seed):
    server = Connection(server=True)
    for i in range(256):
        server.receive(bytes([(i * 7 + seed) & 0xFF]))
    assert server.closed
    assert not server._rest
