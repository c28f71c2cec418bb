"""What gRPC adds to HTTP/2: heads of requests and responses, timeouts, messages in data."""

from __future__ import annotations

import gzip
import zlib
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from harness.corpus import fuzz, replay
from hypothesis import given
from hypothesis import strategies as st

from cradled import errors
from cradled.api.version_pb2 import VersionResponse
from cradled.rpc import grpc_wire
from cradled.rpc.grpc_request import decode_timeout, request_head
from cradled.rpc.grpc_wire import MAX_MESSAGE, PREFIX, MessageReader, ResponseHead

NAMES = st.one_of(
    st.sampled_from([
        b":method", b":path", b":scheme", b":authority", b":status", b"content-type", b"te",
        b"grpc-timeout", b"grpc-encoding", b"grpc-status", b"grpc-message", b"traceparent",
        b"grpc-status-details-bin", b"grpc-accept-encoding", b"key", b"key-bin", b"connection",
        b"host", b"", b"UPPER", b":unknown",
    ]),
    st.binary(max_size=5),
)  # fmt: skip
WORDS = st.one_of(
    st.sampled_from([
        b"POST", b"GET", b"/a.B/C", b"http", b"application/grpc", b"application/grpc+proto",
        b"trailers", b"5S", b"100m", b"99999999H", b"gzip", b"deflate", b"identity", b"0", b"5",
        b"200", b"404", b"AP8", b"AP8=", b"AP8,AP8", b"%41%", b"%zz%e6%bc%a2", b"", b"\xff",
    ]),
    st.binary(max_size=8),
)  # fmt: skip
FIELDS = st.lists(st.tuples(NAMES, WORDS), max_size=8)
USUAL = st.builds(
    lambda more: [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a.B/C"),
        (b"content-type", b"application/grpc"), (b"te", b"trailers"), *more,
    ],
    FIELDS,
)  # fmt: skip


@fuzz(200)
@given(st.one_of(FIELDS, USUAL))
def test_heads_of_requests(fields: list[tuple[bytes, bytes]]) -> None:
    """Each is served or refused; the second time, when much is remembered, as the first."""
    head = request_head(fields)
    assert head.served or isinstance(head.refusal, bytes)
    assert head.timeout is None or head.timeout >= 0
    if head.served:
        assert head.path.startswith("/")
        assert all(isinstance(value, bytes) for value in head.binary.values())
    again = request_head(fields)
    for name in head.__slots__:
        assert getattr(again, name) == getattr(head, name)


@fuzz(200)
@given(FIELDS)
def test_heads_of_responses(fields: list[tuple[bytes, bytes]]) -> None:
    head = ResponseHead(fields)
    assert head.code is None or 0 <= head.code < 1000
    assert isinstance(head.text, str)
    assert all(isinstance(value, bytes) for value in head.binary.values())


@fuzz(120)
@given(st.one_of(st.text(max_size=11), st.from_regex(r"[0-9]{1,9}[HMSmunx]", fullmatch=True)))
def test_timeouts(text: str) -> None:
    try:
        seconds = decode_timeout(text)
    except ValueError:
        return
    assert 0 <= seconds < 10**8 * 3600
    again = decode_timeout(grpc_wire.encode_timeout(seconds).decode())
    assert abs(again - seconds) <= seconds * 1e-4 + 1e-9


# Messages

BODIES = st.text(max_size=40).map(lambda text: VersionResponse(version=text).SerializeToString())
ENCODINGS = st.sampled_from(["identity", "gzip", "deflate", "snappy", ""])
PIECES = st.one_of(
    st.builds(lambda body: PREFIX.pack(0, len(body)) + body, BODIES),
    st.builds(
        lambda body, level: (
            PREFIX.pack(1, len(packed := gzip.compress(body, level, mtime=0))) + packed
        ),
        BODIES,
        st.integers(0, 9),
    ),
    st.builds(lambda body: PREFIX.pack(1, len(packed := zlib.compress(body))) + packed, BODIES),
    st.builds(PREFIX.pack, st.integers(0, 255), st.integers(0, 0xFFFFFFFF)),
    st.binary(max_size=20),
)


def outcome(pieces: list[bytes], encoding: str) -> tuple[list[Any], str]:
    """The messages that pieces make, and the error that ends them."""
    reader = MessageReader(VersionResponse.FromString, encoding)
    messages: list[Any] = []
    for piece in pieces:
        try:
            messages += reader.feed(memoryview(piece))
        except (errors.ResourceExhausted, errors.Internal, errors.Unimplemented) as error:
            return messages, str(error)
        assert reader._body is None or len(reader._body) <= max(4 << 20, 2 * sum(map(len, pieces)))
    return messages, ""


def check_messages(data: bytes, encoding: str, cuts: list[int]) -> None:
    """The error is the same however they are cut; with an error, messages before it may be lost."""
    places = sorted({0, *(cut % (len(data) + 1) for cut in cuts), len(data)})
    whole = outcome([data], encoding)
    cut = outcome([data[a:b] for a, b in pairwise(places)], encoding)
    assert cut[1] == whole[1]
    assert cut[1] or cut[0] == whole[0]


@replay("grpc")
@pytest.mark.parametrize("encoding", ["identity", "gzip", "deflate"])
def test_kept_messages(data: bytes, encoding: str) -> None:
    check_messages(data, encoding, [1, 4, 5, 6, 20])


@fuzz(150)
@given(st.lists(PIECES, max_size=5).map(b"".join), ENCODINGS, st.lists(st.integers(0, 500)))
def test_messages(data: bytes, encoding: str, cuts: list[int]) -> None:
    check_messages(data, encoding, cuts)


def test_what_is_small_only_while_it_is_compressed() -> None:
    """A thousandth of the limit unpacks to twice the limit: it is not unpacked further."""
    packed = gzip.compress(bytes(2 * MAX_MESSAGE), 9)
    reader = MessageReader(VersionResponse.FromString, "gzip")
    with pytest.raises(errors.ResourceExhausted, match="after decompression larger than max"):
        reader.feed(memoryview(PREFIX.pack(1, len(packed)) + packed))
    with suppress(errors.Error):
        reader.feed(memoryview(packed))
