"""Pure. Protobuf's wire format: fields of a message, without knowing which message.

Imported by the shim: imports nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
"""How a field is written: the lower three bits of its tag."""

_MAX_FIELD = (1 << 29) - 1
_MASK64 = (1 << 64) - 1


def fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """(number, how it is written, value) of each field: a number for VARINT, else its bytes.

    Raises ValueError for what is not a message.
    """
    offset, end = 0, len(data)
    while offset < end:
        tag, offset = read_varint(data, offset)
        number, kind = tag >> 3, tag & 7
        if not 0 < number <= _MAX_FIELD:
            raise ValueError(f"bad field number {number}")
        value: int | bytes
        if kind == VARINT:
            value, offset = read_varint(data, offset)
        else:
            if kind == LENGTH:
                size, offset = read_varint(data, offset)
            elif kind in (FIXED32, FIXED64):
                size = 4 if kind == FIXED32 else 8
            else:
                raise ValueError(f"bad wire type {kind}")
            if size > end - offset:
                raise ValueError("message is cut short")
            value = data[offset : offset + size]
            offset += size
        yield number, kind, value


def read_varint(data: bytes, offset: int) -> tuple[int, int]:
    """A number below 2^64 and the offset behind it. Raises ValueError."""
    value = shift = 0
    while True:
        if offset >= len(data):
            raise ValueError("message is cut short")
        byte = data[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _MASK64, offset
        shift += 7
        if shift > 63:
            raise ValueError("number is too long")


def varint(value: int) -> bytes:
    """A number below 2^64."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
