"""Messages whose data is cut out are what protobuf makes of them."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from cradled.api import content_pb2 as pb
from cradled.convert import blobs
from cradled.convert.blobs import Carrier, data_of

LARGE = bytes(range(256)) * 200
read = blobs.reader(pb.WriteContentRequest, 6)

requests = st.builds(
    pb.WriteContentRequest,
    action=st.sampled_from([pb.STAT, pb.WRITE, pb.COMMIT]),
    ref=st.text(max_size=200),
    total=st.integers(-(2**63), 2**63 - 1),
    expected=st.text(max_size=80),
    offset=st.integers(-(2**63), 2**63 - 1),
    data=st.sampled_from([b"", b"small", LARGE]),
    labels=st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=3),
)


@given(requests)
def test_nothing_of_a_message_is_lost(request: pb.WriteContentRequest) -> None:
    message, data = data_of(read(request.SerializeToString()))
    assert data == request.data
    request.ClearField("data")
    message.ClearField("data")
    assert message == request


def test_large_data_is_shared() -> None:
    body = bytearray(pb.WriteContentRequest(ref="r", data=LARGE).SerializeToString())
    received = read(body)
    assert type(received) is Carrier
    assert isinstance(received.data, memoryview)
    assert received.data.obj is body
    assert received.data.readonly


def test_a_buffer_that_is_used_again_is_not_kept() -> None:
    body = pb.WriteContentRequest(data=LARGE).SerializeToString()
    lent = memoryview(bytearray(body))
    received = read(lent)
    lent[:] = bytes(len(body))
    assert received.data == LARGE


def test_data_in_two_fields_is_for_protobuf_to_say() -> None:
    one = pb.WriteContentRequest(data=LARGE).SerializeToString()
    two = pb.WriteContentRequest(data=b"last", ref="r").SerializeToString()
    assert data_of(read(one + two)) == (pb.WriteContentRequest.FromString(one + two), b"last")


def test_fields_we_do_not_know_are_passed_over() -> None:
    body = pb.WriteContentRequest(ref="r", data=LARGE).SerializeToString()
    for unknown in (
        b"\x98\x06\x05",
        b"\x99\x06" + bytes(8),
        b"\x9d\x06" + bytes(4),
        b"\x9a\x06\x01u",
    ):
        for whole in (unknown + body, body + unknown):
            message, data = data_of(read(whole))
            assert (message.ref, data) == ("r", LARGE)


WHOLE = pb.WriteContentRequest(ref="ref", total=1 << 40, data=LARGE, offset=300).SerializeToString()


@example(0, 0, 1, b"")  # nothing but data, and that cut short
@example(7, 1, 0, b"\x80" * 11)
@given(st.integers(0, 24), st.integers(0, 4), st.integers(0, 9), st.binary(max_size=12))
def test_what_protobuf_refuses_is_refused(at: int, cut: int, short: int, put: bytes) -> None:
    body = WHOLE[:at] + put + WHOLE[at + cut : len(WHOLE) - short]
    try:
        wanted = pb.WriteContentRequest.FromString(body)
    except DecodeError:
        with pytest.raises(DecodeError):
            read(body)
        return
    message, data = data_of(read(body))
    assert data == wanted.data
    assert (message.ref, message.total, message.offset) == (wanted.ref, wanted.total, wanted.offset)


def test_only_the_data_carrying_methods_differ() -> None:
    for service, name in ((blobs.SERVED, "Write"), (blobs.CALLED, "Read")):
        assert service.name == pb.Content.name
        for method in pb.Content.methods.values():
            assert (service.methods[method.name] == method) == (method.name != name)
