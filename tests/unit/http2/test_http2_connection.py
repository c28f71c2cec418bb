"""The connection, by bytes: against itself in pieces of all sizes, and against bad peers."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cradled.http2 import frames, hpack
from cradled.http2.connection import (
    CONNECTION_WINDOW,
    FRAME_SIZE,
    STREAM_WINDOW,
    Connection,
)
from cradled.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    ErrorCode,
    LocalProtocolError,
    frame,
    goaway,
    rst_stream,
    window_update,
)
from cradled.http2.limits import CONTROL_SIZE, HEADERS_LIMIT
from cradled.http2.streams import DataReceived, GoneAway, HeadersReceived, StreamReset
from cradled.http2.windows import Outbox

KIB, MIB = 1 << 10, 1 << 20
REQUEST = [(b":method", b"POST"), (b":path", b"/a.B/C"), (b"key", b"value")]
BLOCK = hpack.encode(REQUEST)
HELLO = PREFACE + frames.settings([])


def sent(connection, limit=1 << 30):
    """All bytes that a connection wants to send."""
    out = []
    while connection.outbox:
        out += connection.take(limit)
    return b"".join(out)


def hear(connection, data):
    """All events of bytes, however many there are."""
    events = connection.receive(data)
    while connection.more:
        events += connection.receive(b"")
    return events


def parse(data):
    """Frames of bytes: (type, flags, stream, payload)."""
    out = []
    while data:
        word, flags, stream_id = frames.HEAD.unpack_from(data)
        size = word >> 8
        assert len(data) >= 9 + size
        out.append((word & 0xFF, flags, stream_id, data[9 : 9 + size]))
        data = data[9 + size :]
    return out


def greeted():
    """A server whose client has said hello."""
    server = Connection(server=True)
    assert hear(server, HELLO) == []
    sent(server)
    return server


def request(stream_id=1, flags=END_HEADERS | END_STREAM, block=BLOCK):
    return frame(HEADERS, flags, stream_id, block)


def whole(data):
    return [data]


def bytewise(data):
    return [data[i : i + 1] for i in range(len(data))]


class Pair:
    """A client and a server that hear each other, in pieces that ``cut`` makes."""

    def __init__(self, cut=whole):
        self.client = Connection(server=False)
        self.server = Connection(server=True)
        self.cut = cut

    def pump(self):
        """Carry bytes until there are none: (events of the client, events of the server)."""
        events = ([], [])
        while self.client.outbox or self.server.outbox:
            for source, target, seen in (
                (self.client, self.server, events[1]),
                (self.server, self.client, events[0]),
            ):
                data = sent(source)
                for piece in self.cut(data):
                    seen += hear(target, piece)
        return events


def summary(events):
    """Events in a form that does not depend on how the bytes were cut."""
    out = []
    for event in events:
        if isinstance(event, DataReceived):
            if out and out[-1][0] == "data" and out[-1][1] == event.stream.id:
                out[-1] = ("data", event.stream.id, out[-1][2] + bytes(event.data), event.ended)
            else:
                out.append(("data", event.stream.id, bytes(event.data), event.ended))
        elif isinstance(event, HeadersReceived):
            out.append(("headers", event.stream.id, event.head, event.ended))
        elif isinstance(event, StreamReset):
            out.append(("reset", event.stream.id, event.code))
        else:
            out.append(("away", event.code, event.text))
    return out


def converse(pair):
    client, server = pair.client, pair.server
    stream = client.open(BLOCK)
    client.send_data(stream, b"x" * 100_000, end=True)
    seen = [pair.pump()]
    answer = server.streams[1]
    server.send_headers(answer, b"\x88")
    server.send_data(answer, b"y" * 70_000)
    server.send_headers(answer, hpack.encode([(b"grpc-status", b"0")]), end=True)
    seen.append(pair.pump())
    other = client.open(BLOCK, end=True)
    seen.append(pair.pump())
    server.send_reply(server.streams[other.id], b"\x88", b"pre", b"body", b"\x88")
    seen.append(pair.pump())
    assert not client.streams
    assert not server.streams
    return [(summary(a), summary(b)) for a, b in seen]


EXPECTED = [
    ([], [("headers", 1, REQUEST, False), ("data", 1, b"x" * 100_000, True)]),
    (
        [
            ("headers", 1, [(b":status", b"200")], False),
            ("data", 1, b"y" * 70_000, False),
            ("headers", 1, [(b"grpc-status", b"0")], True),
        ],
        [],
    ),
    ([], [("headers", 3, REQUEST, True)]),
    (
        [
            ("headers", 3, [(b":status", b"200")], False),
            ("data", 3, b"prebody", False),
            ("headers", 3, [(b":status", b"200")], True),
        ],
        [],
    ),
]


@pytest.mark.parametrize("cut", [whole, bytewise])
def test_a_conversation(cut):
    assert converse(Pair(cut)) == EXPECTED


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1 << 32))
def test_a_conversation_cut_anywhere(seed):
    random = Random(seed)

    def cut(data):
        while data:
            size = random.choice((1, 3, 9, 10, 100, 5000, 20000, 1 << 20))
            yield data[:size]
            data = data[size:]

    assert converse(Pair(cut)) == EXPECTED


def test_settings_go_out_before_anything_comes_in():
    server = Connection(server=True)
    kinds = [kind for kind, *_ in parse(sent(server))]
    assert kinds == [SETTINGS, WINDOW_UPDATE]
    client = Connection(server=False)
    assert sent(client).startswith(PREFACE + b"\x00\x00")


def test_settings_limit_no_streams():
    (_, _, _, payload), *_ = parse(sent(Connection(server=True)))
    assert dict(frames.SETTING.iter_unpack(payload)) == {
        4: STREAM_WINDOW,
        5: FRAME_SIZE,
        6: HEADERS_LIMIT,
    }


# What is allowed and odd


def test_header_block_in_parts():
    server = greeted()
    fragments = bytewise(BLOCK)
    data = frame(HEADERS, END_STREAM, 1, fragments[0])
    for fragment in fragments[1:]:
        data += frame(CONTINUATION, 0, 1, fragment)
    events = hear(server, data + frame(CONTINUATION, END_HEADERS, 1))
    assert summary(events) == [("headers", 1, REQUEST, True)]


def test_padding_and_priority():
    server = greeted()
    payload = b"\x03" + b"\x80\x00\x00\x00\x10" + BLOCK + bytes(3)
    events = hear(server, frame(HEADERS, END_HEADERS | PADDED | WITH_PRIORITY, 1, payload))
    events += hear(server, frame(DATA, PADDED, 1, b"\x05hello" + bytes(5)))
    events += hear(server, frame(DATA, PADDED | END_STREAM, 1, b"\x02" + bytes(2)))
    assert summary(events) == [("headers", 1, REQUEST, False), ("data", 1, b"hello", True)]
    # padding counts for the windows
    assert server.streams[1].receive_window == STREAM_WINDOW - 11 - 3


def test_the_unknown_is_ignored():
    server = greeted()
    data = frame(0xEE, 0xFF, 77, b"?") + frames.settings([(0x99, 1), (3, 100)])
    data += frame(PRIORITY, 0, 9, bytes(5)) + request()
    assert summary(hear(server, data)) == [("headers", 1, REQUEST, True)]
    assert not server.closed


def test_ping():
    server = greeted()
    hear(server, frame(PING, 0, 0, b"12345678") * 1000 + frame(PING, ACK, 0, b"abcdefgh"))
    assert parse(sent(server)) == [(PING, ACK, 0, b"12345678")] * 1000


def test_settings_are_acknowledged():
    server = greeted()
    hear(server, frames.settings([(4, 100)]) + frame(SETTINGS, ACK, 0))
    assert parse(sent(server)) == [(SETTINGS, ACK, 0, b"")]


def test_reserved_bit_of_stream_ids_is_ignored():
    server = greeted()
    events = hear(server, request(1 | 1 << 31))
    assert summary(events) == [("headers", 1, REQUEST, True)]


def test_long_header_blocks_are_continued():
    server = greeted()
    hear(server, request())
    text = bytes(40_000)
    server.send_headers(server.streams[1], hpack.encode([(b"a", text)]), end=True)
    out = parse(sent(server))
    assert [(kind, flags) for kind, flags, *_ in out] == [
        (HEADERS, END_STREAM),
        (CONTINUATION, 0),
        (CONTINUATION, END_HEADERS),
    ]
    block = b"".join(payload for *_, payload in out)
    assert hpack.Decoder(list, 1 << 20).decode(block) == [(b"a", text)]


def test_a_smaller_table_is_acknowledged_in_the_next_block():
    server = greeted()
    hear(server, frames.settings([(1, 0)]) + request(1) + request(3))
    sent(server)
    server.send_reply(server.streams[1], b"\x88", b"", b"x", b"\x88")
    server.send_reply(server.streams[3], b"\x88", b"", b"x", b"\x88")
    blocks = [payload for kind, *_, payload in parse(sent(server)) if kind == HEADERS]
    assert blocks == [b"\x20\x88", b"\x88", b"\x88", b"\x88"]


def test_trailers_of_a_request():
    server = greeted()
    events = hear(server, request(flags=END_HEADERS) + request())
    assert [type(event) for event in events] == [HeadersReceived, DataReceived]
    assert [event.ended for event in events] == [False, True]


def test_very_many_frames_are_handled_some_at_a_time():
    server = greeted()
    data = b"".join(request(i) for i in range(1, 2001, 2))
    seen, rounds = [], 0
    for event in server.receive(data):
        seen.append(event.stream.id)
    while server.more:
        rounds += 1
        for event in server.receive(b""):
            seen.append(event.stream.id)
    assert seen == list(range(1, 2001, 2))
    assert rounds == 1000 // 256


# Ends


def test_an_early_end_stops_the_client():
    server = greeted()
    hear(server, request(flags=END_HEADERS) + frame(DATA, 0, 1, b"abc"))
    server.send_headers(server.streams[1], b"\x88", end=True)
    assert parse(sent(server)) == [
        (HEADERS, END_HEADERS | END_STREAM, 1, b"\x88"),
        (RST_STREAM, 0, 1, b"\0\0\0\0"),
    ]
    assert not server.streams
    assert hear(server, frame(DATA, END_STREAM, 1, b"late")) == []
    assert hear(server, rst_stream(1, 8)) == []
    assert hear(server, window_update(1, 10)) == []
    assert not server.closed


def test_reset_by_the_peer():
    server = greeted()
    (headers, reset) = hear(server, request(flags=END_HEADERS) + rst_stream(1, ErrorCode.CANCEL))
    assert isinstance(reset, StreamReset)
    assert reset.code == ErrorCode.CANCEL
    stream = headers.stream
    assert stream.reset
    server.send_headers(stream, b"\x88")  # who sends does not know yet
    server.send_data(stream, b"x")
    server.send_reply(stream, b"\x88", b"", b"", b"\x88")
    server.reset(stream, ErrorCode.CANCEL)
    assert sent(server) == b""


def test_reset_drops_what_is_queued():
    server = greeted()
    hear(server, request())
    stream = server.streams[1]
    server.send_data(stream, bytes(MIB))
    drained = []
    stream.drained = lambda: drained.append(stream.queued)
    hear(server, rst_stream(1, 8))
    assert drained == [0]
    assert sent(server) == b""


def test_sending_after_the_end_is_our_bug():
    server = greeted()
    hear(server, request(flags=END_HEADERS))
    stream = server.streams[1]
    server.send_headers(stream, b"\x88", end=True)
    with pytest.raises(LocalProtocolError):
        server.send_data(stream, b"x")
    with pytest.raises(LocalProtocolError):
        server.send_reply(stream, b"\x88", b"", b"", b"\x88")
    with pytest.raises(LocalProtocolError):
        server.open(BLOCK)


def test_draining_loses_no_stream():
    server = greeted()
    hear(server, request(1))
    server.drain()
    server.drain()
    (first, ping) = parse(sent(server))
    assert first[3][:4] == b"\x7f\xff\xff\xff"
    hear(server, request(3) + frame(PING, ACK, 0, ping[3]))
    (last,) = parse(sent(server))
    assert (last[0], last[3][:4]) == (GOAWAY, b"\0\0\0\3")
    assert hear(server, request(5) + frame(DATA, END_STREAM, 5, b"x")) == []
    assert parse(sent(server)) == [(RST_STREAM, 0, 5, b"\0\0\0\7")]
    server.send_headers(server.streams[3], b"\x88", end=True)
    assert not server.closed


def test_client_of_a_server_that_goes_away():
    client = Connection(server=False)
    hear(client, frames.settings([]))
    streams = [client.open(BLOCK, end=True) for _ in range(3)]
    events = hear(client, goaway(3, ErrorCode.NO_ERROR, "bye"))
    assert summary(events) == [("reset", 5, ErrorCode.REFUSED_STREAM), ("away", 0, "bye")]
    assert isinstance(events[-1], GoneAway)
    assert not client.usable
    with pytest.raises(LocalProtocolError):
        client.open(BLOCK)
    events = hear(client, frame(HEADERS, END_HEADERS | END_STREAM, 3, b"\x88"))
    assert events[0].stream is streams[1]


def test_limit_of_streams():
    client = Connection(server=False)
    hear(client, frames.settings([(3, 1)]))
    stream = client.open(BLOCK, end=True)
    assert client.usable
    assert not client.can_open
    hear(client, frame(HEADERS, END_HEADERS | END_STREAM, stream.id, b"\x88"))
    assert client.can_open


def test_stream_ids_run_out():
    client = Connection(server=False)
    client._next_id = frames.MAX_STREAM_ID
    client.open(BLOCK)
    assert not client.usable


def test_close():
    server = greeted()
    hear(server, request(7))
    server.close(ErrorCode.NO_ERROR, "done")
    server.close(ErrorCode.INTERNAL_ERROR)
    assert parse(sent(server)) == [(GOAWAY, 0, 0, b"\0\0\0\7\0\0\0\0done")]
    assert hear(server, request(9)) == []


# Flow control


def test_data_waits_for_windows_and_takes_turns():
    server = greeted()
    hear(server, frames.settings([(4, MIB)]) + request(1) + request(3))
    sent(server)
    one, three = server.streams[1], server.streams[3]
    server.send_data(one, b"1" * MIB, end=True)
    server.send_data(three, b"3" * MIB)
    server.send_headers(three, b"\x88", end=True)  # waits behind the data
    out = parse(sent(server))
    assert sum(len(payload) for *_, payload in out) == 65535
    assert {stream_id for *_, stream_id, _ in out} == {1, 3}
    assert one.queued + three.queued == 2 * MIB - 65535

    hear(server, window_update(0, 200_000))
    by_stream = {1: 0, 3: 0}
    for _, _, stream_id, payload in parse(sent(server)):
        by_stream[stream_id] += len(payload)
    assert sum(by_stream.values()) == 200_000
    assert max(by_stream.values()) - min(by_stream.values()) <= 64 * KIB

    hear(server, window_update(0, 4 * MIB))
    out = parse(sent(server))
    ends = [(kind, stream_id) for kind, flags, stream_id, _ in out if flags & END_STREAM]
    assert sorted(ends) == [(DATA, 1), (HEADERS, 3)]
    assert not server.streams


@pytest.mark.parametrize("increment", [1000, 10_000, 65_535, 300_000])
def test_a_small_window_of_the_connection_is_shared(increment):
    """However little the peer lets through at a time, no stream gets it all."""
    server = greeted()
    hear(server, frames.settings([(4, MIB)]) + b"".join(request(i) for i in (1, 3, 5, 7)))
    for stream in server.streams.values():
        server.send_data(stream, bytes(800_000))
    got = dict.fromkeys((1, 3, 5, 7), 0)
    while sum(got.values()) < 1_600_000:
        for kind, _, stream_id, payload in parse(sent(server)):
            if kind == DATA:
                got[stream_id] += len(payload)
        assert max(got.values()) - min(got.values()) <= 2 * 65_536
        hear(server, window_update(0, increment))


def test_what_cannot_be_sent_costs_nothing(monkeypatch):
    """A peer with very many streams opens the window a little: only those that send are touched."""
    server = greeted()
    hear(server, b"".join(request(2 * i + 1) for i in range(2000)))
    for stream in server.streams.values():
        server.send_data(stream, bytes(1000))
    sent(server)
    turns = []
    turn = Outbox._turn
    monkeypatch.setattr(Outbox, "_turn", lambda *args: turns.append(1) or turn(*args))
    for _ in range(100):
        hear(server, window_update(0, 100))
        sent(server)
    assert len(turns) <= 200


def test_a_small_answer_overtakes_large_ones():
    server = greeted()
    hear(
        server,
        window_update(0, 8 * MIB) + frames.settings([(4, 8 * MIB)]) + request(1) + request(3),
    )
    sent(server)
    server.send_data(server.streams[1], bytes(4 * MIB))
    server.send_reply(server.streams[3], b"\x88", b"", b"small", b"\x88")
    first = b"".join(server.take(64 * KIB))
    assert b"small" in first
    assert len(first) < 70 * KIB


def test_take_is_limited():
    server = greeted()
    hear(server, window_update(0, 8 * MIB) + frames.settings([(4, 8 * MIB)]) + request(1))
    server.send_data(server.streams[1], bytes(4 * MIB))
    assert len(b"".join(server.take(MIB))) < MIB + 2 * KIB
    assert parse(b"".join(server.take(0))) == []
    hear(server, frame(PING, 0, 0, bytes(8)))
    assert parse(b"".join(server.take(0))) == [(PING, ACK, 0, bytes(8))]


def test_frames_are_as_large_as_the_peer_allows():
    server = greeted()
    hear(server, window_update(0, MIB) + frames.settings([(4, MIB), (5, 100_000)]) + request(1))
    sent(server)
    server.send_data(server.streams[1], bytes(MIB))
    assert max(len(payload) for *_, payload in parse(sent(server))) <= 100_000


def test_a_full_socket_holds_data_back():
    server = greeted()
    hear(server, request(1))
    stream = server.streams[1]
    server.outbox.hold = True
    server.send_data(stream, b"abc")
    assert b"".join(server.take(0)) == b""
    assert stream.queued == 3
    server.outbox.hold = False
    assert parse(sent(server)) == [(DATA, 0, 1, b"abc")]


def test_windows_that_become_negative():
    server = greeted()
    hear(server, request(1))
    stream = server.streams[1]
    server.send_data(stream, bytes(50_000))
    sent(server)
    hear(server, frames.settings([(4, 10)]))
    assert stream.send_window == 10 - 50_000
    server.send_data(stream, b"", end=False)  # an empty frame needs no window
    server.send_data(stream, b"abc")
    assert [len(payload) for kind, *_, payload in parse(sent(server)) if kind == DATA] == [0]
    hear(server, window_update(1, 50_000))
    assert parse(sent(server)) == [(DATA, 0, 1, b"abc")]


def test_a_grown_initial_window_frees_what_waits():
    server = greeted()
    hear(server, window_update(0, MIB) + frames.settings([(4, 0)]) + request(1))
    sent(server)
    server.send_data(server.streams[1], b"abc", end=True)
    assert sent(server) == b""
    hear(server, frames.settings([(4, 5)]))
    assert (DATA, END_STREAM, 1, b"abc") in parse(sent(server))


def test_drained_is_told_when_little_is_left():
    server = greeted()
    hear(server, window_update(0, MIB) + frames.settings([(4, 0)]) + request(1))
    stream = server.streams[1]
    server.send_data(stream, bytes(200_000))
    told = []
    stream.drained = lambda: told.append(stream.queued)
    hear(server, window_update(1, 100_000))
    sent(server)
    assert told == []
    hear(server, window_update(1, 60_000))
    sent(server)
    assert told == [40_000]


def test_consumed_data_is_given_back():
    server = greeted()
    hear(server, request(flags=END_HEADERS))
    stream = server.streams[1]
    data = frame(DATA, 0, 1, bytes(FRAME_SIZE)) * 4
    hear(server, data)
    updates = [stream_id for kind, _, stream_id, _ in parse(sent(server)) if kind == WINDOW_UPDATE]
    assert updates == [0]  # the connection's, at once; the stream's waits for us
    assert stream.receive_window == 0
    server.release(stream, 100)
    assert sent(server) == b""
    server.release(stream, 4 * FRAME_SIZE - 100)
    assert parse(sent(server)) == [(WINDOW_UPDATE, 0, 1, (4 * FRAME_SIZE).to_bytes(4, "big"))]


def test_data_of_reset_streams_counts_for_the_connection():
    server = greeted()
    hear(server, request(flags=END_HEADERS))
    server.reset(server.streams[1], ErrorCode.CANCEL)
    sent(server)
    for _ in range(2 * CONNECTION_WINDOW // FRAME_SIZE):
        assert hear(server, frame(DATA, 0, 1, bytes(FRAME_SIZE))) == []
    increments = [int.from_bytes(payload, "big") for *_, payload in parse(sent(server))]
    assert sum(increments) == 2 * CONNECTION_WINDOW
    assert not server.closed


# Peers that break the rules

GREETED_ERRORS = {
    "frame too large": (b"\xff\xff\xff\0\0\0\0\0\1", "FRAME_SIZE_ERROR"),
    "data of an idle stream": (frame(DATA, 0, 1, b"x"), "PROTOCOL_ERROR"),
    "data without a stream": (frame(DATA, 0, 0, b"x"), "PROTOCOL_ERROR"),
    "reset of an idle stream": (rst_stream(1, 0), "PROTOCOL_ERROR"),
    "reset without a stream": (rst_stream(0, 0), "PROTOCOL_ERROR"),
    "window of an idle stream": (window_update(1, 1), "PROTOCOL_ERROR"),
    "even stream": (request(2), "PROTOCOL_ERROR"),
    "headers without a stream": (request(0), "PROTOCOL_ERROR"),
    "short reset": (request() + frame(RST_STREAM, 0, 1, b"abc"), "FRAME_SIZE_ERROR"),
    "short window update": (frame(WINDOW_UPDATE, 0, 0, b"abc"), "FRAME_SIZE_ERROR"),
    "window update of 0": (window_update(0, 0), "PROTOCOL_ERROR"),
    "window overflow": (window_update(0, (1 << 31) - 1), "FLOW_CONTROL_ERROR"),
    "short ping": (frame(PING, 0, 0, b"abc"), "FRAME_SIZE_ERROR"),
    "ping of a stream": (frame(PING, 0, 1, bytes(8)), "PROTOCOL_ERROR"),
    "settings of a stream": (frame(SETTINGS, 0, 1), "PROTOCOL_ERROR"),
    "short settings": (frame(SETTINGS, 0, 0, b"abc"), "FRAME_SIZE_ERROR"),
    "settings ack with payload": (frame(SETTINGS, ACK, 0, bytes(6)), "FRAME_SIZE_ERROR"),
    "bad frame size": (frames.settings([(5, 100)]), "PROTOCOL_ERROR"),
    "bad initial window": (frames.settings([(4, 1 << 31)]), "FLOW_CONTROL_ERROR"),
    "bad push": (frames.settings([(2, 2)]), "PROTOCOL_ERROR"),
    "settings overflow a stream": (
        request() + window_update(1, (1 << 31) - 1 - 65535) + frames.settings([(4, 65536)]),
        "FLOW_CONTROL_ERROR",
    ),
    "push": (frame(PUSH_PROMISE, END_HEADERS, 1, bytes(4)), "PROTOCOL_ERROR"),
    "short priority": (frame(PRIORITY, 0, 1, bytes(4)), "FRAME_SIZE_ERROR"),
    "priority without a stream": (frame(PRIORITY, 0, 0, bytes(5)), "PROTOCOL_ERROR"),
    "short goaway": (frame(GOAWAY, 0, 0, bytes(7)), "PROTOCOL_ERROR"),
    "lone continuation": (frame(CONTINUATION, 0, 1, b"x"), "PROTOCOL_ERROR"),
    "not continued": (frame(HEADERS, 0, 1, BLOCK) + frame(PING, 0, 0, bytes(8)), "PROTOCOL_ERROR"),
    "continued elsewhere": (
        frame(HEADERS, 0, 1, BLOCK) + frame(CONTINUATION, END_HEADERS, 3),
        "PROTOCOL_ERROR",
    ),
    "padding too long": (frame(HEADERS, END_HEADERS | PADDED, 1, b"\x05abc"), "PROTOCOL_ERROR"),
    "padded and empty": (frame(HEADERS, END_HEADERS | PADDED, 1), "PROTOCOL_ERROR"),
    "short with priority": (
        frame(HEADERS, END_HEADERS | WITH_PRIORITY, 1, b"abc"),
        "FRAME_SIZE_ERROR",
    ),
    "bad hpack": (request(block=b"\x80"), "COMPRESSION_ERROR"),
    "long ping": (frame(PING, 0, 0, bytes(CONTROL_SIZE + 1)), "FRAME_SIZE_ERROR"),
    "long headers": (request(block=bytes(CONTROL_SIZE + 1)), "ENHANCE_YOUR_CALM"),
    "long settings": (frame(SETTINGS, 0, 0, bytes(6 * 30_000)), "ENHANCE_YOUR_CALM"),
    "endless block": (
        frame(HEADERS, 0, 1, BLOCK) + frame(CONTINUATION, 0, 1, bytes(16_000)) * 9,
        "ENHANCE_YOUR_CALM",
    ),
    "endless empty continuations": (
        frame(HEADERS, 0, 1, BLOCK) + frame(CONTINUATION, 0, 1) * 300,
        "ENHANCE_YOUR_CALM",
    ),
}


@pytest.mark.parametrize("cut", [whole, bytewise])
@pytest.mark.parametrize("name", GREETED_ERRORS)
def test_errors_of_the_connection(name, cut):
    data, code = GREETED_ERRORS[name]
    server = greeted()
    for piece in cut(data):
        hear(server, piece)
    assert server.closed
    kind, _, _, payload = parse(sent(server))[-1]
    assert kind == GOAWAY
    assert ErrorCode(int.from_bytes(payload[4:8], "big")).name == code


STREAM_ERRORS = {
    "many trailers": (
        request(flags=END_HEADERS)
        + request(block=b"\x40\x01a\x7f\xa1\x1e" + bytes(4000) + b"\xbe" * 20),
        "FRAME_SIZE_ERROR",
    ),
    "data after the end": (request() + frame(DATA, 0, 1, b"x"), "STREAM_CLOSED"),
    "headers after the end": (request() + request(), "STREAM_CLOSED"),
    "headers twice": (request(flags=END_HEADERS) * 2, "PROTOCOL_ERROR"),
    "beyond the window": (
        request(flags=END_HEADERS) + frame(DATA, 0, 1, bytes(FRAME_SIZE)) * 5,
        "FLOW_CONTROL_ERROR",
    ),
    "window update of 0": (request() + window_update(1, 0), "PROTOCOL_ERROR"),
    "window overflow": (request() + window_update(1, (1 << 31) - 1), "FLOW_CONTROL_ERROR"),
}


@pytest.mark.parametrize("name", STREAM_ERRORS)
def test_errors_of_a_stream(name):
    data, code = STREAM_ERRORS[name]
    server = greeted()
    events = hear(server, data)
    assert isinstance(events[-1], StreamReset)
    assert ErrorCode(events[-1].code).name == code
    (reset,) = [f for f in parse(sent(server)) if f[0] == RST_STREAM]
    assert ErrorCode(int.from_bytes(reset[3], "big")).name == code
    assert summary(hear(server, request(3))) == [("headers", 3, REQUEST, True)]


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        PREFACE[:-1] + b"x",
        PREFACE + request(),
        PREFACE + frame(PING, 0, 0, bytes(8)),
    ],
)
@pytest.mark.parametrize("cut", [whole, bytewise])
def test_peers_that_do_not_say_hello(data, cut):
    server = Connection(server=True)
    for piece in cut(data):
        hear(server, piece)
    assert server.closed


def test_servers_that_break_the_rules_of_clients():
    for data in (
        frame(PUSH_PROMISE, END_HEADERS, 1, bytes(4)),
        frame(HEADERS, END_HEADERS, 2, b"\x88"),
        frame(HEADERS, END_HEADERS, 3, b"\x88"),
    ):
        client = Connection(server=False)
        hear(client, frames.settings([]))
        client.open(BLOCK)
        hear(client, data)
        assert client.closed


# Garbage


def check_sane(connection, received):
    """Whatever came: no stream has more than the windows allow, nothing piles up."""
    assert len(connection._rest) <= FRAME_SIZE + 9
    assert len(sent(connection)) <= 100 * received + 1000
    if connection.closed:
        assert hear(connection, request(99)) == []


raw_frames = st.builds(
    frame,
    st.one_of(st.integers(0, 9), st.integers(0, 255)),
    st.one_of(st.sampled_from([0, 1, 4, 5, 8, 0x20]), st.integers(0, 255)),
    st.one_of(st.integers(0, 7), st.integers(0, (1 << 32) - 1)),
    st.one_of(
        st.binary(max_size=50),
        st.just(BLOCK),
        st.integers(0, (1 << 32) - 1).map(lambda n: n.to_bytes(4, "big")),
        st.lists(st.tuples(st.integers(0, 8), st.integers(0, (1 << 32) - 1)), max_size=3).map(
            lambda pairs: b"".join(frames.SETTING.pack(*pair) for pair in pairs)
        ),
    ),
)


@settings(max_examples=400, deadline=None)
@given(st.booleans(), st.lists(st.one_of(raw_frames, st.binary(max_size=30)), max_size=20))
def test_garbage_never_raises(server, pieces):
    connection = Connection(server=server)
    hear(connection, (PREFACE if server else b"") + frames.settings([]))
    if not server:
        connection.open(BLOCK)
    sent(connection)
    total = 0
    for piece in pieces:
        total += len(piece)
        for event in hear(connection, piece):
            if server and isinstance(event, HeadersReceived) and not event.stream.ending:
                connection.send_reply(event.stream, b"\x88", b"", b"x", b"\x88")
    check_sane(connection, total)


@settings(max_examples=200, deadline=None)
@given(st.lists(raw_frames, max_size=12), st.randoms(use_true_random=False))
def test_garbage_means_the_same_however_it_is_cut(pieces, random):
    data = b"".join(pieces)
    one, other = greeted(), greeted()
    events = hear(one, data)
    seen = []
    while data:
        size = random.randint(1, 20)
        seen += hear(other, data[:size])
        data = data[size:]
    assert summary(seen) == summary(events)
    assert other.closed == one.closed
    assert sent(other) == sent(one)
