"""The shim's codec, against protobuf's own reading and writing of every message it knows."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from google.protobuf import message_factory
from hypothesis import given, settings
from hypothesis import strategies as st

from cradled.api import (  # noqa: F401  # noqa: F401
    bootstrap_pb2,
    cgroups_v1_pb2,
    cgroups_v2_pb2,
    events_pb2,
    events_ttrpc_pb2,
    runc_options_pb2,
    task_v3_pb2,
    types_pb2,
    wellknown_pb2,
)
from cradled.api.pool import POOL
from cradled.shim import messages
from cradled.ttrpc import codec
from cradled.ttrpc.codec import Message

CLASSES = [
    kind
    for kind in vars(messages).values()
    if isinstance(kind, type) and issubclass(kind, Message) and kind is not Message
]
UINT64 = st.integers(0, 2**64 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SCALARS = {
    codec.BOOL: st.booleans(),
    codec.DOUBLE: st.floats(min_value=0.0, allow_nan=False),
    codec.STRING: TEXT,
    codec.BYTES: st.binary(max_size=200),
    codec.STRING_MAP: st.dictionaries(TEXT, TEXT, max_size=3),
}


def proto_class(kind: type[Message]) -> Any:
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(kind.NAME))


@cache
def values_of(kind: type[Message], depth: int = 3) -> st.SearchStrategy[Message]:
    """Any message of a class."""
    descriptor = POOL.FindMessageTypeByName(kind.NAME)
    fields = {}
    for number, (name, code, inner) in kind.FIELDS.items():
        single = code & ~codec.REPEATED
        if single == codec.MESSAGE:
            one = values_of(inner, depth - 1) if depth else st.nothing()
        elif single in (codec.UINT, codec.INT):
            one = _integers(descriptor.fields_by_number[number].cpp_type)
        else:
            one = SCALARS[single]
        if code & codec.REPEATED:
            fields[name] = st.lists(one, max_size=3)
        elif single == codec.MESSAGE:
            fields[name] = st.none() | one
        else:
            fields[name] = one
    return st.builds(kind, **fields)


def _integers(cpp_type: int) -> st.SearchStrategy[int]:
    bits = {1: (-(2**31), 2**31), 2: (-(2**63), 2**63), 3: (0, 2**32), 4: (0, 2**64),
            8: (-(2**31), 2**31)}  # fmt: skip
    low, high = bits[cpp_type]
    return st.integers(low, high - 1)


def as_proto(message: Message) -> Any:
    """The same message in protobuf's class, made field by field."""
    proto = proto_class(type(message))()
    for name, code, _ in message.FIELDS.values():
        value = getattr(message, name)
        if code == codec.MESSAGE:
            if value is not None:
                getattr(proto, name).CopyFrom(as_proto(value))
        elif code == codec.MESSAGE | codec.REPEATED:
            getattr(proto, name).extend(as_proto(item) for item in value)
        elif code & codec.REPEATED:
            getattr(proto, name).extend(value)
        elif code == codec.STRING_MAP:
            getattr(proto, name).update(value)
        elif value:  # explicit presence of an empty value is nothing the shim can say
            setattr(proto, name, value)
    return proto


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_the_tables_are_those_of_the_descriptors(kind: type[Message]) -> None:
    descriptor = POOL.FindMessageTypeByName(kind.NAME)
    assert {field.number: field.name for field in descriptor.fields} == {
        number: name for number, (name, _, _) in kind.FIELDS.items()
    }
    for number, (_, code, inner) in kind.FIELDS.items():
        field = descriptor.fields_by_number[number]
        if code & ~codec.REPEATED == codec.MESSAGE:
            assert field.message_type.full_name == inner.NAME


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
@settings(max_examples=6)
@given(data=st.data())
def test_protobuf_reads_and_writes_the_same(kind: type[Message], data: st.DataObject) -> None:
    message = data.draw(values_of(kind))
    proto = as_proto(message)
    assert type(proto).FromString(codec.encode(message)) == proto
    assert as_proto(codec.decode(kind, proto.SerializeToString())) == proto


@settings(max_examples=50)
@given(st.binary(max_size=60))
def test_garbage_is_a_message_or_a_value_error(data: bytes) -> None:
    for kind in (messages.CreateTaskRequest, messages.BootstrapParams, messages.V1Metrics,
                 messages.V2Metrics, messages.UpdateTaskRequest):  # fmt: skip
        try:
            codec.decode(kind, data)
        except ValueError:
            continue


@settings(max_examples=50)
@given(values_of(messages.CreateTaskRequest), st.data())
def test_every_prefix_is_handled(message: Message, data: st.DataObject) -> None:
    whole = codec.encode(message)
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    try:
        codec.decode(messages.CreateTaskRequest, cut)
    except ValueError:
        assert len(cut) < len(whole)


def test_unknown_fields_are_skipped() -> None:
    unknown = b"\xf8\x01\x05" + b"\xf9\x01" + bytes(8) + b"\xfd\x01" + bytes(4) + b"\xfa\x01\x02ab"
    data = codec.encode(messages.StartRequest(id="a"))
    for mixed in (unknown + data, data + unknown):
        assert codec.decode(messages.StartRequest, mixed) == messages.StartRequest(id="a")


def test_a_field_of_another_wire_type_is_unknown() -> None:
    assert codec.decode(messages.StartRequest, b"\x08\x05").id == ""


def test_a_message_that_comes_in_two_parts_is_merged() -> None:
    first = codec.encode(messages.WaitResponse(exited_at=messages.Timestamp(seconds=5)))
    second = codec.encode(messages.WaitResponse(exited_at=messages.Timestamp(nanos=7)))
    found = codec.decode(messages.WaitResponse, first + second)
    assert found.exited_at == messages.Timestamp(seconds=5, nanos=7)


def test_numbers_come_packed_or_one_by_one() -> None:
    for data in (b"\x22\x03\x01\x96\x01", b"\x20\x01\x20\x96\x01"):
        assert codec.decode(messages.V1CPUUsage, data).per_cpu == [1, 150]


@pytest.mark.parametrize(
    "data",
    [b"\x0a", b"\x0a\x05ab", b"\x80" * 10 + b"\x01", b"\x0b", b"\x00\x01", b"\x0a\x01\xff"],
    ids=["no length", "short", "varint", "group", "number 0", "utf-8"],
)
def test_damage(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        codec.decode(messages.StartRequest, data)


def test_messages_are_told_apart() -> None:
    one = messages.StartRequest(id="a")
    assert one == messages.StartRequest(id="a") != messages.StartRequest(id="b")
    assert one != messages.WaitRequest(id="a")


@pytest.mark.parametrize(
    ("kind", "name", "one"),
    [
        (messages.PidsResponse, "processes", b"\x0a\x00"),
        (messages.UpdateTaskRequest, "annotations", b"\x1a\x05\x0a\x01k\x12\x00"),
        (messages.UpdateTaskRequest, "resources", b"\x12\x00"),
    ],
)
def test_items_are_added_without_copying_those_before(
    kind: type[Message], name: str, one: bytes
) -> None:
    """A message of a million would take hours."""
    message = codec.decode(kind, one)
    before = getattr(message, name)
    codec._merge(message, one)
    assert getattr(message, name) is before
    assert getattr(kind(), name) in ((), {}, None)
