"""Pure. Serialised messages put together without decoding them.

A stored record is the message it is served as; a response that only wraps it is its bytes behind
a tag and a length.
"""

from __future__ import annotations


def varint(value: int) -> bytes:
    """A non-negative integer as a protobuf varint."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def embed(message: bytes, field: int = 1) -> bytes:
    """The bytes of a message that has ``message`` as its only field, number ``field``."""
    return varint(field << 3 | 2) + varint(len(message)) + message
