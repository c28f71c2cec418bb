from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cradled.api import containers_pb2, content_pb2
from cradled.convert.encoded import embed, varint


@given(st.lists(st.text(max_size=300), max_size=4))
def test_embedded_records_are_a_response(ids: list[str]) -> None:
    messages = [containers_pb2.Container(id=id.replace("\ud800", "")) for id in ids]
    data = b"".join(embed(message.SerializeToString()) for message in messages)
    parsed = containers_pb2.ListContainersResponse.FromString(data)
    assert list(parsed.containers) == messages


@given(st.integers(0, 2**63 - 1))
def test_varint_is_protobufs(value: int) -> None:
    wanted = content_pb2.ReadContentResponse(offset=value).SerializeToString()
    assert (b"\x08" + varint(value) if value else b"") == wanted


@pytest.mark.parametrize("field", [1, 15, 16, 2000])
def test_large_field_numbers(field: int) -> None:
    assert embed(b"x", field) == varint(field << 3 | 2) + b"\x01x"
