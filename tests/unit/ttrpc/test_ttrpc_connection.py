"""The ttrpc core by its bytes: both roles, every rule a peer can break, any way of cutting."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cradled
from cradled.api import ttrpc_pb2
from cradled.ttrpc import connection as core
from cradled.ttrpc import frames
from cradled.ttrpc.envelope import (
    Request,
    Response,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)

SERVICE, METHOD = "containerd.task.v3.Task", "State"


def pair() -> tuple[core.Connection, core.Connection]:
    return core.Connection(core.CLIENT), core.Connection(core.SERVER)


def show(event: object) -> tuple[object, ...]:
    return (type(event).__name__, *(getattr(event, name) for name in event.__slots__))  # type: ignore[attr-defined]


def raw_request(stream_id: int, flags: int = 0, body: bytes | None = None) -> bytes:
    data = encode_request(Request(SERVICE, METHOD, b"in")) if body is None else body
    return frames.frame(stream_id, frames.REQUEST, flags, data)


def answers(server: core.Connection) -> list[tuple[int, int, str]]:
    """What a server sent as (stream id, code, message)."""
    out = []
    for received in frames.FrameReader().feed(server.data_to_send()):
        assert received.kind == frames.RESPONSE
        assert received.data is not None
        response = decode_response(received.data)
        out.append((received.stream_id, response.code, response.message))
    return out


def test_a_unary_call_goes_there_and_back() -> None:
    client, server = pair()
    metadata = [("containerd-namespace-ttrpc", "x"), ("k", "a"), ("k", "b")]
    stream_id = client.send_request(
        SERVICE, METHOD, b"in", timeout_nano=5_000_000_000, metadata=metadata
    )
    assert stream_id == 1
    (event,) = server.receive_data(client.data_to_send())
    assert isinstance(event, core.RequestReceived)
    assert (event.service, event.method, event.payload) == (SERVICE, METHOD, b"in")
    assert (event.timeout_nano, event.metadata, event.flags) == (5_000_000_000, metadata, 0)
    server.send_response(event.stream_id, b"out")
    (reply,) = client.receive_data(server.data_to_send())
    assert show(reply) == ("ResponseReceived", 0, "", b"out", 1)
    assert client.open_streams == server.open_streams == 0
    assert client.send_request(SERVICE, METHOD, b"") == 3


def test_responses_come_in_any_order() -> None:
    client, server = pair()
    first = client.send_request(SERVICE, METHOD, b"1")
    second = client.send_request(SERVICE, METHOD, b"2")
    server.receive_data(client.data_to_send())
    server.send_response(second, b"two")
    server.send_response(first, code=5, message="gone")
    assert [show(e) for e in client.receive_data(server.data_to_send())] == [
        ("ResponseReceived", 0, "", b"two", second),
        ("ResponseReceived", 5, "gone", b"", first),
    ]


def test_server_streaming_ends_with_an_empty_closed_frame() -> None:
    client, server = pair()
    stream_id = client.send_request(SERVICE, METHOD, b"in", flags=frames.REMOTE_CLOSED)
    assert not client.is_open(stream_id)
    (event,) = server.receive_data(client.data_to_send())
    assert isinstance(event, core.RequestReceived)
    assert event.flags == frames.REMOTE_CLOSED
    server.send_data(stream_id, b"a")
    server.send_data(stream_id, b"")
    server.end_stream(stream_id)
    sent = server.data_to_send()
    assert sent.endswith(frames.frame(stream_id, frames.DATA, 0x05))
    assert [show(e) for e in client.receive_data(sent)] == [
        ("DataReceived", False, b"a", stream_id),
        ("DataReceived", False, b"", stream_id),
        ("DataReceived", True, None, stream_id),
    ]
    assert client.open_streams == server.open_streams == 0


def test_bidi_half_closes_either_way() -> None:
    client, server = pair()
    stream_id = client.send_request(SERVICE, METHOD, b"", flags=frames.REMOTE_OPEN)
    client.send_data(stream_id, b"x")
    client.send_data(stream_id, b"y", end=True)
    with pytest.raises(core.LocalError):
        client.send_data(stream_id, b"z")
    events = server.receive_data(client.data_to_send())
    assert [show(e) for e in events[1:]] == [
        ("DataReceived", False, b"x", stream_id),
        ("DataReceived", True, b"y", stream_id),
    ]
    server.send_data(stream_id, b"last", end=True)
    (last,) = client.receive_data(server.data_to_send())
    assert show(last) == ("DataReceived", True, b"last", stream_id)
    assert client.open_streams == server.open_streams == 0


def test_client_streaming_ends_with_a_response() -> None:
    client, server = pair()
    stream_id = client.send_request(SERVICE, METHOD, b"", flags=frames.REMOTE_OPEN)
    client.end_stream(stream_id)
    server.receive_data(client.data_to_send())
    server.send_response(stream_id, b"sum")
    (reply,) = client.receive_data(server.data_to_send())
    assert show(reply) == ("ResponseReceived", 0, "", b"sum", stream_id)


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (raw_request(2), (2, 3, "StreamID must be odd for client initiated streams")),
        (raw_request(0), (0, 3, "StreamID must be odd for client initiated streams")),
        (
            raw_request(7) + raw_request(5),
            (5, 3, "StreamID cannot be re-used and must increment"),
        ),
        (frames.frame(9, frames.DATA, 0, b"x"), (9, 3, "StreamID is no longer active")),
        (
            raw_request(1) + frames.frame(1, frames.DATA, 0, b"x"),
            (1, 3, "data handling error: ttrpc: stream closed"),
        ),
        (raw_request(1, body=b"\x0a\xff"), (1, 3, "unmarshal request error: message is cut short")),
        (
            frames.HEADER.pack(frames.MAX_DATA + 1, 1, 1, 0),
            (1, 8, "message length 4194305 exceed maximum message size of 4194304"),
        ),
    ],
)
def test_a_client_that_breaks_a_rule_is_answered(sent: bytes, answer: tuple[int, int, str]) -> None:
    server = core.Connection(core.SERVER)
    server.receive_data(sent)
    assert answers(server) == [answer]
    server.receive_data(b"" if len(sent) == frames.HEADER_SIZE else raw_request(11))
    assert server.data_to_send() == b""


def test_a_rule_broken_within_a_call_aborts_it() -> None:
    server = core.Connection(core.SERVER)
    events = server.receive_data(
        raw_request(1, frames.REMOTE_OPEN)
        + frames.frame(1, frames.DATA, frames.REMOTE_CLOSED, b"end")
        + frames.frame(1, frames.DATA, 0, b"more")
    )
    assert [type(e) for e in events] == [
        core.RequestReceived,
        core.DataReceived,
        core.StreamAborted,
    ]
    assert not server.is_open(1)
    with pytest.raises(core.LocalError):
        server.send_response(1, b"too late")


def test_a_frame_too_long_is_thrown_away_in_bounded_memory() -> None:
    server = core.Connection(core.SERVER)
    length = 3 * frames.MAX_DATA
    server.receive_data(frames.HEADER.pack(length, 1, frames.REQUEST, 0))
    chunk = bytes(64 << 10)
    for _ in range(length // len(chunk)):
        assert server.receive_data(chunk) == []
        assert len(server._reader._buffer) == 0
    assert [a[1] for a in answers(server)] == [8]
    (event,) = server.receive_data(raw_request(3))
    assert isinstance(event, core.RequestReceived)


def test_the_longest_frame_passes() -> None:
    server = core.Connection(core.SERVER)
    body = encode_request(Request(SERVICE, METHOD, bytes(frames.MAX_DATA - 50)))
    body += (
        b"\x5a" + bytes((frames.MAX_DATA - len(body) - 2,)) + bytes(frames.MAX_DATA - len(body) - 2)
    )  # an unknown field fills it up
    assert len(body) == frames.MAX_DATA
    assert len(server.receive_data(raw_request(1, body=body))) == 1


def test_long_messages_of_ours() -> None:
    client, server = pair()
    with pytest.raises(core.LocalError, match="exceed maximum message size"):
        client.send_request(SERVICE, METHOD, bytes(frames.MAX_DATA))
    assert client.data_to_send() == b""
    stream_id = client.send_request(SERVICE, METHOD, b"")
    server.receive_data(client.data_to_send())
    server.send_response(stream_id, bytes(frames.MAX_DATA))
    (reply,) = client.receive_data(server.data_to_send())
    assert isinstance(reply, core.ResponseReceived)
    assert reply.code == core.RESOURCE_EXHAUSTED


def test_a_client_drops_what_it_did_not_ask_for() -> None:
    client, _ = pair()
    stream_id = client.send_request(SERVICE, METHOD, b"")
    client.forget(stream_id)
    response = encode_response(Response(b"late"))
    assert client.receive_data(frames.frame(stream_id, frames.RESPONSE, 0, response)) == []
    assert client.receive_data(frames.frame(77, frames.DATA, 0, b"x")) == []
    other = client.send_request(SERVICE, METHOD, b"")
    (reply,) = client.receive_data(frames.HEADER.pack(frames.MAX_DATA + 1, other, 2, 0))
    assert isinstance(reply, core.ResponseReceived)
    assert reply.code == core.RESOURCE_EXHAUSTED


def test_stream_ids_run_out() -> None:
    client, server = pair()
    client._last_id = 0xFFFFFFFD
    assert client.send_request(SERVICE, METHOD, b"") == 0xFFFFFFFF
    with pytest.raises(core.LocalError):
        client.send_request(SERVICE, METHOD, b"")
    with pytest.raises(core.LocalError):
        server.send_request(SERVICE, METHOD, b"")


@given(st.data())
def test_any_cut_gives_the_same_events(data: st.DataObject) -> None:
    script = (
        raw_request(1, frames.REMOTE_OPEN)
        + frames.frame(1, frames.DATA, 0, b"x" * 300)
        + frames.frame(4, frames.DATA, 0, b"bad")
        + raw_request(3)
        + frames.HEADER.pack(frames.MAX_DATA + 1, 5, 3, 0)
        + bytes(frames.MAX_DATA + 1)
        + frames.frame(1, frames.DATA, 5)
        + raw_request(7)
    )
    whole = core.Connection(core.SERVER)
    expected = [show(e) for e in whole.receive_data(script)]
    cuts = sorted(data.draw(st.sets(st.integers(0, len(script)), max_size=40)))
    cut = core.Connection(core.SERVER)
    got = []
    for start, end in zip([0, *cuts], [*cuts, len(script)], strict=True):
        got += [show(e) for e in cut.receive_data(script[start:end])]
    assert got == expected
    assert cut.data_to_send() == whole.data_to_send()


def test_byte_by_byte() -> None:
    script = raw_request(1) + raw_request(3, frames.REMOTE_OPEN) + frames.frame(3, 3, 1, b"d")
    server = core.Connection(core.SERVER)
    events = [show(e) for byte in script for e in server.receive_data(bytes((byte,)))]
    assert events == [show(e) for e in core.Connection(core.SERVER).receive_data(script)]
    assert len(events) == 3


@given(st.binary(max_size=400), st.sampled_from([core.CLIENT, core.SERVER]))
def test_garbage_never_raises(data: bytes, role: int) -> None:
    connection = core.Connection(role)
    if role == core.CLIENT:
        connection.send_request(SERVICE, METHOD, b"")
    connection.receive_data(data)
    for number, kind in ((1, 1), (3, 1), (1, 2), (3, 3)):
        connection.receive_data(frames.frame(number, kind, 2, data))
    connection.data_to_send()


text = st.text(max_size=40)


@given(
    text,
    text,
    st.binary(max_size=300),
    st.integers(-(2**63), 2**63 - 1),
    st.lists(st.tuples(text, text), max_size=4),
)
def test_requests_are_those_of_protobuf(
    service: str, method: str, payload: bytes, timeout: int, metadata: list[tuple[str, str]]
) -> None:
    pairs = [ttrpc_pb2.KeyValue(key=key, value=value) for key, value in metadata]
    message = ttrpc_pb2.Request(
        service=service, method=method, payload=payload, timeout_nano=timeout, metadata=pairs
    )
    ours = encode_request(Request(service, method, payload, timeout, metadata))
    assert ttrpc_pb2.Request.FromString(ours) == message
    back = decode_request(message.SerializeToString())
    assert (back.service, back.method, back.payload) == (service, method, payload)
    assert (back.timeout_nano, back.metadata) == (timeout, metadata)


@given(st.integers(0, 2**31 - 1), text, st.binary(max_size=300))
def test_responses_are_those_of_protobuf(code: int, message: str, payload: bytes) -> None:
    ours = encode_response(Response(payload, code, message))
    parsed = ttrpc_pb2.Response.FromString(ours)
    assert (parsed.status.code, parsed.payload) == (code, payload)
    assert parsed.status.message == (message if code else "")
    theirs = ttrpc_pb2.Response(
        status=ttrpc_pb2.Status(code=code, message=message), payload=payload
    )
    back = decode_response(theirs.SerializeToString())
    assert (back.code, back.message, back.payload) == (code, message, payload)


@given(st.binary(max_size=60))
def test_damaged_envelopes_are_value_errors(data: bytes) -> None:
    for decode in (decode_request, decode_response):
        try:
            decode(data)
        except ValueError:
            continue


def test_the_core_imports_next_to_nothing() -> None:
    source = str(Path(cradled.__file__).parent.parent)
    script = (
        f"import sys; sys.path.insert(0, {source!r}); before = set(sys.modules)\n"
        "import cradled.ttrpc.connection\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    command = [sys.executable, "-I", "-S", "-c", script]
    modules = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert [m for m in modules if not m.startswith("cradled")] == [
        "__future__",
        "_struct",
        "struct",
    ]


@pytest.mark.parametrize(
    ("kind", "length", "derailed"),
    [
        (99, frames.MAX_DATA + 1, True),
        (frames.REQUEST, 2**32 - 1, True),
        (frames.RESPONSE, frames.MAX_DATA + 1, False),  # of a call that may have been given up
        (frames.DATA, frames.MAX_DATA + 1, False),
        (99, 0, False),  # of a protocol newer than ours
    ],
)
def test_a_client_knows_what_is_no_frame(kind: int, length: int, derailed: bool) -> None:
    client = core.Connection(core.CLIENT)
    assert client.receive_data(frames.HEADER.pack(length, 1, kind, 0)) == []
    assert client.derailed is derailed
