"""Where a long message is received: in its place, which grows as the message comes."""

from __future__ import annotations

from cradled.rpc.grpc_wire import PREFIX, MessageReader


def test_there_is_room_until_the_message_has_to_grow() -> None:
    size = 9 << 20
    reader = MessageReader(bytes, "")
    assert reader.room(1 << 20) is None
    assert reader.feed(memoryview(PREFIX.pack(0, size) + b"a")) == []
    messages, left, grown = [], size - 1, 0
    while left:
        place = reader.room(min(left, 1 << 20))
        if place is None:
            grown += 1
            place = memoryview(b"b" * min(left, 1000))
        else:
            assert 0 < len(place) <= left
            place[:] = b"b" * len(place)
        left -= len(place)
        messages += reader.feed(place)
    assert grown
    assert messages == [b"a" + b"b" * (size - 1)]
