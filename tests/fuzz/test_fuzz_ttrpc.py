"""ttrpc by bytes: frames, connections of both roles, envelopes. A file of ``corpus/ttrpc`` is what
one peer sends on one connection; it is taken by a server and by a client."""

from __future__ import annotations

from itertools import pairwise

from harness.corpus import fuzz, replay
from hypothesis import given
from hypothesis import strategies as st

from cradled.api import ttrpc_pb2
from cradled.ttrpc import connection as core
from cradled.ttrpc import frames
from cradled.ttrpc.connection import CLIENT, SERVER, Connection
from cradled.ttrpc.envelope import (
    Request,
    Response,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)
from cradled.ttrpc.frames import HEADER, MAX_DATA, FrameReader, frame

IDS = st.one_of(st.integers(0, 12), st.sampled_from([0x7FFFFFFF, 0xFFFFFFFF]))
FLAGS = st.one_of(st.sampled_from([0, 1, 2, 3, 4, 5]), st.integers(0, 255))
BODIES = st.one_of(
    st.builds(
        lambda payload: encode_request(Request("s.S", "M", payload, 5, [("k", "v")])),
        st.binary(max_size=30),
    ),
    st.builds(lambda payload: encode_response(Response(payload, 0, "")), st.binary(max_size=30)),
    st.builds(lambda code: encode_response(Response(b"", code, "it")), st.integers(0, 1 << 31)),
    st.binary(max_size=60),
)
KINDS = st.one_of(st.integers(1, 3), st.integers(0, 255))
FRAMES = st.builds(frame, IDS, KINDS, FLAGS, BODIES)
LIES = st.builds(HEADER.pack, st.integers(0, 0xFFFFFFFF), IDS, KINDS, FLAGS)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Frames in any order, and a few of them damaged."""
    data = bytearray(b"".join(draw(st.lists(st.one_of(FRAMES, FRAMES, LIES), max_size=12))))
    for _ in range(draw(st.integers(0, 3)) if data else 0):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


def run(role: int, pieces: list[bytes]) -> list[object]:
    """What a connection makes of pieces. A server answers what it can, a client has made calls."""
    connection = Connection(role)
    if role == CLIENT:
        for flags in (0, 1, 2, 0):
            connection.send_request("s.S", "M", b"", flags=flags)
        connection.data_to_send()
    seen: list[object] = []
    opened = 0
    for piece in pieces:
        for event in connection.receive_data(piece):
            seen.append([getattr(event, name) for name in event.__slots__])
            if isinstance(event, core.RequestReceived):
                opened += 1
                if opened % 3 == 0:
                    connection.send_response(event.stream_id, event.payload)
            assert connection.open_streams <= max(opened, 4)
        assert len(connection._reader._buffer) <= MAX_DATA + frames.HEADER_SIZE
    check_answers(connection.data_to_send())
    return seen


def check_answers(data: bytes) -> None:
    """They are frames that protobuf can read."""
    for answer in FrameReader().feed(data):
        assert answer.kind == frames.RESPONSE
        assert answer.data is not None
        ttrpc_pb2.Response.FromString(answer.data)


def check(data: bytes, cuts: list[int]) -> None:
    """However it is cut, it is the same; nothing is raised."""
    places = sorted({0, *(cut % (len(data) + 1) for cut in cuts), len(data)})
    pieces = [data[a:b] for a, b in pairwise(places)]
    for role in (SERVER, CLIENT):
        whole = run(role, [data])
        assert run(role, pieces) == whole
        if len(data) < 300:
            assert run(role, [bytes((byte,)) for byte in data]) == whole


@replay("ttrpc")
def test_the_kept_cases(data: bytes) -> None:
    check(data, [1, 9, 10, 11, 50])


@fuzz(150)
@given(streams(), st.lists(st.integers(0, 1000), max_size=8))
def test_streams(data: bytes, cuts: list[int]) -> None:
    check(data, cuts)


@fuzz(120)
@given(st.binary(max_size=200))
def test_garbage(data: bytes) -> None:
    check(data, [7])


@fuzz(200)
@given(BODIES, st.lists(st.tuples(st.integers(0, 100), st.integers(0, 255)), max_size=3))
def test_envelopes(body: bytes, wounds: list[tuple[int, int]]) -> None:
    """What they make of bytes, protobuf makes of them too, and it is what they would write."""
    data = bytearray(body)
    for place, byte in wounds:
        if data:
            data[place % len(data)] = byte
    try:
        request = decode_request(bytes(data))
    except ValueError:
        pass
    else:
        again = decode_request(encode_request(request))
        assert (again.service, again.method, again.payload, again.timeout_nano) == (
            request.service,
            request.method,
            request.payload,
            request.timeout_nano,
        )
        theirs = ttrpc_pb2.Request.FromString(encode_request(request))
        assert theirs == without_unknown(ttrpc_pb2.Request, bytes(data))
    try:
        response = decode_response(bytes(data))
    except ValueError:
        pass
    else:
        written = encode_response(response)
        assert decode_response(written).payload == response.payload


def without_unknown(kind: type, data: bytes) -> object:
    message = kind.FromString(data)  # type: ignore[attr-defined]
    message.DiscardUnknownFields()
    return message
