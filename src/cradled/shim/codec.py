"""Pure. Protobuf's wire format for the generated classes of ``messages``, without protobuf.

A message class carries ``FIELDS``: field number -> (attribute, kind, message class or None). What
a peer may do and we do not: unknown fields are skipped; scalars may come packed or not; a message
field that comes twice is merged. Damaged bytes raise ``ValueError``, nothing else.
"""

from __future__ import annotations

from struct import pack, unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar, TypeVar

    M = TypeVar("M", bound="Message")

UINT, INT, BOOL, DOUBLE, STRING, BYTES, MESSAGE, STRING_MAP = range(8)
REPEATED = 8
"""Added to the kind of a repeated field."""

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_WIRE = (_VARINT, _VARINT, _VARINT, _FIXED64, _LENGTH, _LENGTH, _LENGTH, _LENGTH)
_MAX_FIELD = (1 << 29) - 1
_MASK64 = (1 << 64) - 1


class Message:
    """Base of the generated classes."""

    __slots__ = ()
    NAME: ClassVar[str]
    FIELDS: ClassVar[dict[int, tuple[str, int, Any]]]

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and all(
            getattr(self, name) == getattr(other, name) for name, _, _ in self.FIELDS.values()
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        fields = (f"{name}={getattr(self, name)!r}" for name, _, _ in self.FIELDS.values())
        return f"{type(self).__name__}({', '.join(fields)})"


def encode(message: Message) -> bytes:
    """The serialised message; fields in the order of their numbers."""
    out: list[bytes] = []
    for number, (name, kind, _) in message.FIELDS.items():
        value = getattr(message, name)
        if not value and (kind != MESSAGE or value is None):
            continue
        if kind == STRING_MAP:
            for key, text in value.items():
                out.append(_field(number, _LENGTH, _entry(key, text)))
        elif not kind & REPEATED:
            out.append(_field(number, _WIRE[kind], _value(kind, value)))
        elif kind & ~REPEATED in (STRING, BYTES, MESSAGE):
            out += [_field(number, _LENGTH, _value(kind & ~REPEATED, item)) for item in value]
        else:
            packed = b"".join(_value(kind & ~REPEATED, item) for item in value)
            out.append(_field(number, _LENGTH, packed))
    return b"".join(out)


def decode(kind: type[M], data: bytes) -> M:
    """The message in ``data``. Raises ValueError."""
    message = kind()
    _merge(message, data)
    return message


def _merge(message: Message, data: bytes) -> None:
    fields = message.FIELDS
    offset, end = 0, len(data)
    while offset < end:
        tag, offset = _read_varint(data, offset)
        number, wire = tag >> 3, tag & 7
        if not 0 < number <= _MAX_FIELD:
            raise ValueError(f"bad field number {number}")
        raw: int | bytes
        if wire == _VARINT:
            raw, offset = _read_varint(data, offset)
        else:
            size = 8 if wire == _FIXED64 else 4
            if wire == _LENGTH:
                size, offset = _read_varint(data, offset)
            elif wire not in (_FIXED64, _FIXED32):
                raise ValueError(f"bad wire type {wire}")
            if size > end - offset:
                raise ValueError("unexpected end of message")
            raw = data[offset : offset + size]
            offset += size
        field = fields.get(number)
        if field is not None:
            _store(message, field, wire, raw)


def _store(message: Message, field: tuple[str, int, Any], wire: int, raw: int | bytes) -> None:
    name, kind, inner = field
    single = kind & ~REPEATED
    if wire != _WIRE[single]:
        if kind & REPEATED and wire == _LENGTH and isinstance(raw, bytes):
            values = [_scalar(single, item) for item in _unpacked(single, raw)]
            setattr(message, name, [*getattr(message, name), *values])
        return  # of another type than we know: an unknown field
    if single == STRING_MAP:
        key, value = _read_entry(raw)
        setattr(message, name, {**getattr(message, name), key: value})
    elif kind & REPEATED:
        item = _scalar(single, raw) if single != MESSAGE else decode(inner, raw)  # type: ignore[arg-type]
        setattr(message, name, [*getattr(message, name), item])
    elif single == MESSAGE:
        present = getattr(message, name) or inner()
        _merge(present, raw)  # type: ignore[arg-type]
        setattr(message, name, present)
    else:
        setattr(message, name, _scalar(single, raw))


def _scalar(kind: int, raw: Any) -> Any:
    if kind == INT:
        return raw - (1 << 64) if raw >> 63 else raw
    if kind == BOOL:
        return bool(raw)
    if kind == DOUBLE:
        return unpack("<d", raw)[0]
    if kind == STRING:
        return raw.decode()
    return raw


def _value(kind: int, value: Any) -> bytes:
    if kind in (UINT, INT, BOOL):
        return varint(value & _MASK64)
    if kind == DOUBLE:
        return pack("<d", value)
    if kind == STRING:
        return value.encode()  # type: ignore[no-any-return]
    return encode(value) if kind == MESSAGE else value


def _field(number: int, wire: int, body: bytes) -> bytes:
    if wire == _LENGTH:
        return varint(number << 3 | wire) + varint(len(body)) + body
    return varint(number << 3 | wire) + body


def _entry(key: str, value: str) -> bytes:
    return _field(1, _LENGTH, key.encode()) + _field(2, _LENGTH, value.encode())


def _read_entry(raw: Any) -> tuple[str, str]:
    entry = decode(_Entry, raw)
    return entry.key, entry.value


def _unpacked(kind: int, raw: bytes) -> list[int | bytes]:
    items: list[int | bytes] = []
    offset = 0
    if kind == DOUBLE:
        if len(raw) % 8:
            raise ValueError("unexpected end of message")
        return [raw[i : i + 8] for i in range(0, len(raw), 8)]
    while offset < len(raw):
        item, offset = _read_varint(raw, offset)
        items.append(item)
    return items


def varint(number: int) -> bytes:
    """A number below 2^64 as protobuf writes it."""
    if number < 0x80:
        return bytes((number,))
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(data: bytes, offset: int) -> tuple[int, int]:
    value = shift = 0
    for byte in data[offset : offset + 10]:
        offset += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _MASK64, offset
        shift += 7
    raise ValueError("bad varint")


class _Entry(Message):
    __slots__ = ("key", "value")

    def __init__(self) -> None:
        self.key = ""
        self.value = ""


_Entry.FIELDS = {1: ("key", STRING, None), 2: ("value", STRING, None)}
