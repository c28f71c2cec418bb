"""What gRPC adds to HTTP/2, as bytes."""

import gzip
import math
import random
from zlib import compress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cradled import errors
from cradled.http2.hpack import Decoder
from cradled.rpc import grpc_wire
from cradled.rpc.grpc_request import decode_timeout, request_head
from cradled.rpc.grpc_wire import MAX_MESSAGE, PREFIX, Account, MessageReader, ResponseHead


def fields(block):
    return Decoder(list, 1 << 24).decode(block)


@pytest.mark.parametrize(
    ("seconds", "value"),
    [
        (0, b"0n"),
        (-5, b"0n"),
        (1e-9, b"1n"),
        (0.05, b"50000000n"),
        (1, b"1000000u"),
        (100, b"100000m"),
        (1e5, b"100000S"),
        (1e9, b"16666667M"),
        (1e12, b"99999999H"),
    ],
)
def test_timeouts(seconds, value):
    assert grpc_wire.encode_timeout(seconds) == value


@given(st.floats(0, 1e8))
def test_timeouts_come_back(seconds):
    again = decode_timeout(grpc_wire.encode_timeout(seconds).decode())
    assert math.isclose(again, seconds, rel_tol=1e-5, abs_tol=1e-8)


@given(st.text())
def test_texts_come_back(text):
    block = grpc_wire.trailers_block(5, text, (), headers_sent=True)
    head = ResponseHead(fields(block))
    assert head.code == 5
    assert head.text == text.encode(errors="surrogatepass").decode(errors="replace")
    assert all(0x20 <= byte < 0x7F for _, value in fields(block) for byte in value)


def test_request_block_comes_back():
    block = grpc_wire.request_block("/a.B/C", "localhost", [("Key", "v"), ("k-bin", "AP8")], 2)
    head = request_head(fields(block))
    assert (head.path, head.served, head.timeout) == ("/a.B/C", True, 2)
    assert head.metadata["key"] == "v"
    assert head.binary == {"k-bin": b"\x00\xff"}


def test_response_without_trailers_but_with_an_http_status():
    head = ResponseHead([(b":status", b"503")])
    assert head.code == 14
    assert head.text == "unexpected HTTP status 503"
    assert ResponseHead([(b":status", b"418")]).code == 2
    assert ResponseHead([(b":status", b"200")]).code is None
    assert ResponseHead([(b"grpc-status", b"x")]).code == 2


def test_metadata_of_a_response():
    block = grpc_wire.response_block([("a", "b"), ("c-bin", b"\x00\xff")])
    assert (b"c-bin", b"AP8") in fields(block)
    head = ResponseHead(fields(block))
    assert head.metadata["a"] == "b"
    assert head.binary == {"c-bin": b"\x00\xff"}


def framed(body, compressed=0):
    return PREFIX.pack(compressed, len(body)) + body


@given(st.lists(st.binary(max_size=30)), st.integers(1, 20))
def test_messages_in_pieces(bodies, size):
    data = b"".join(map(framed, bodies))
    reader = MessageReader(bytes, "identity")
    seen = []
    for at in range(0, len(data), size):
        seen += reader.feed(memoryview(data)[at : at + size])
    assert seen == bodies
    assert not reader.partial


@pytest.mark.parametrize("size", [(2 << 20) - 1, 2 << 20, (2 << 20) + 1, 5 << 20, 16 << 20])
def test_a_large_message_in_pieces(size):
    body = random.Random(size).randbytes(size)
    data = framed(body) + framed(b"next")
    reader = MessageReader(bytes, "identity")
    seen = []
    for at in range(0, len(data), 300_001):
        seen += reader.feed(memoryview(data)[at : at + 300_001])
    assert seen == [body, b"next"]


@pytest.mark.parametrize("size", [100, 5 << 20])
def test_a_message_is_received_in_its_place(size):
    body = random.Random(size).randbytes(size)
    reader = MessageReader(bytes, "identity")
    assert reader.room(1 << 30) is None
    head = framed(body)[:50]
    assert reader.feed(memoryview(head)) == []
    seen, at = [], 45
    while at < size:
        room = reader.room(size - at)
        take = min(len(room), 300_001)
        room[:take] = body[at : at + take]
        seen += reader.feed(room[:take])
        at += take
        if at < size:  # some come the other way
            seen += reader.feed(memoryview(body)[at : at + 10])
            at += 10
    assert seen == [body]
    assert reader.room(1 << 30) is None


def test_a_part_of_a_message_is_known_as_such():
    reader = MessageReader(bytes, "identity")
    for piece in (b"\0", b"\0\0\0\2", b"a"):
        assert reader.feed(memoryview(piece)) == []
        assert reader.partial


@pytest.mark.parametrize(("name", "compress"), [("gzip", gzip.compress), ("deflate", compress)])
def test_compressed_messages(name, compress):
    reader = MessageReader(bytes, name)
    data = framed(compress(b"abc"), 1) + framed(b"plain") + framed(compress(b""), 1)
    assert reader.feed(memoryview(data)) == [b"abc", b"plain", b""]


def test_a_prefix_alone_takes_little_when_there_are_very_many():
    """Five bytes that announce 16 MiB are believed, but not a thousand times."""
    account = Account()
    readers = [MessageReader(bytes, "identity", account) for _ in range(5000)]
    for reader in readers:
        assert reader.feed(memoryview(PREFIX.pack(0, MAX_MESSAGE))) == []
        assert reader.feed(memoryview(b"x")) == []
    assert account.used < 200 << 20
    body = random.Random(1).randbytes(MAX_MESSAGE - 1)
    assert [len(m) for m in readers[-1].feed(memoryview(body))] == [MAX_MESSAGE]
    for reader in readers:
        reader.close()
    assert account.used == 0


def test_too_many_messages_at_once():
    account = Account()
    piece = memoryview(bytes(MAX_MESSAGE - 1))

    def feed_many():
        readers = [MessageReader(bytes, "identity", account) for _ in range(100)]
        for reader in readers:
            reader.feed(memoryview(PREFIX.pack(0, MAX_MESSAGE)))
            reader.feed(piece)

    with pytest.raises(errors.ResourceExhausted, match="too many messages at once"):
        feed_many()
    assert account.used <= 512 << 20


@pytest.mark.parametrize(
    ("encoding", "data", "error"),
    [
        ("identity", framed(b"x", 1), errors.Internal),
        ("snappy", framed(b"x", 1), errors.Unimplemented),
        ("gzip", framed(b"no gzip", 1), errors.Internal),
        ("gzip", framed(gzip.compress(b"cut short")[:-4], 1), errors.Internal),
        ("deflate", framed(compress(b"cut short")[:-1], 1), errors.Internal),
        ("deflate", framed(gzip.compress(b"x"), 1), errors.Internal),
        ("gzip", framed(gzip.compress(bytes(MAX_MESSAGE + 1)), 1), errors.ResourceExhausted),
        ("identity", PREFIX.pack(0, MAX_MESSAGE + 1), errors.ResourceExhausted),
    ],
)
def test_messages_that_cannot_be_read(encoding, data, error):
    with pytest.raises(error):
        MessageReader(bytes, encoding).feed(memoryview(data))


def test_messages_that_do_not_parse():
    def parse(body):
        raise ZeroDivisionError

    with pytest.raises(errors.Internal, match="failed to unmarshal"):
        MessageReader(parse, "identity").feed(memoryview(framed(b"x")))


def test_what_of_a_status_has_room():
    assert grpc_wire.fitted("text", b"details", 1 << 31) == ("text", b"details")
    assert grpc_wire.fitted("text", bytes(3000), 4000) == ("text", b"")
    assert grpc_wire.fitted("text", bytes(2000), 4000) == ("text", bytes(2000))
    assert grpc_wire.fitted("x" * 3000, b"", 4000) == ("x" * 3000, b"")
    text, details = grpc_wire.fitted("\u6f22" * 3000, b"d", 4000)
    assert 300 < len(text) < 400
    assert details == b""
    assert grpc_wire.fitted("text", b"d", 0) == ("", b"")
