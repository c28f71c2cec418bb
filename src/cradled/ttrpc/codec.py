"""Pure. Protobuf's wire format for the generated classes of ``messages``, without protobuf.

A message class carries ``FIELDS``: field number -> (attribute, kind, message class or None). What
a peer may do and we do not: unknown fields are skipped; scalars may come packed or not; a message
field that comes twice is merged. Damaged bytes raise ``ValueError``, nothing else.
"""

from __future__ import annotations

from struct import pack, unpack

from cradled.ttrpc.wire import FIXED64, LENGTH, VARINT, fields, read_varint, varint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, ClassVar, TypeVar

    M = TypeVar("M", bound="Message")

UINT, INT, BOOL, DOUBLE, STRING, BYTES, MESSAGE, STRING_MAP = range(8)
REPEATED = 8
"""Added to the kind of a repeated field."""

_WIRE = (VARINT, VARINT, VARINT, FIXED64, LENGTH, LENGTH, LENGTH, LENGTH)
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


def encode(message: Message) -> bytes:
    """The serialised message; fields in the order of their numbers."""
    out: list[bytes] = []
    for number, (name, kind, _) in message.FIELDS.items():
        value = getattr(message, name)
        if not value and (kind != MESSAGE or value is None):
            continue
        if kind == STRING_MAP:
            for key, text in value.items():
                out.append(_field(number, LENGTH, _entry(key, text)))
        elif not kind & REPEATED:
            out.append(_field(number, _WIRE[kind], _value(kind, value)))
        elif kind & ~REPEATED in (STRING, BYTES, MESSAGE):
            out += [_field(number, LENGTH, _value(kind & ~REPEATED, item)) for item in value]
        else:
            packed = b"".join(_value(kind & ~REPEATED, item) for item in value)
            out.append(_field(number, LENGTH, packed))
    return b"".join(out)


def decode(kind: type[M], data: bytes) -> M:
    """The message in ``data``. Raises ValueError."""
    message = kind()
    _merge(message, data)
    return message


def _merge(message: Message, data: bytes) -> None:
    known = message.FIELDS
    for number, wire, raw in fields(data):
        field = known.get(number)
        if field is not None:
            _store(message, field, wire, raw)


def _store(message: Message, field: tuple[str, int, Any], wire: int, raw: int | bytes) -> None:
    name, kind, inner = field
    single = kind & ~REPEATED
    if wire != _WIRE[single]:
        if kind & REPEATED and wire == LENGTH and isinstance(raw, bytes):
            _own(message, name, []).extend(_scalar(single, item) for item in _unpacked(raw))
        return  # of another type than we know: an unknown field
    if single == STRING_MAP:
        _own(message, name, {}).update([_read_entry(raw)])
    elif kind & REPEATED:
        item = _scalar(single, raw) if single != MESSAGE else decode(inner, raw)  # type: ignore[arg-type]
        _own(message, name, []).append(item)
    elif single == MESSAGE:
        _merge(_own(message, name, inner()), raw)  # type: ignore[arg-type]
    else:
        setattr(message, name, _scalar(single, raw))


def _own(message: Message, name: str, new: Any) -> Any:
    """What a field holds so far, to be added to."""
    value = getattr(message, name) or new
    setattr(message, name, value)
    return value


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
    if wire == LENGTH:
        return varint(number << 3 | wire) + varint(len(body)) + body
    return varint(number << 3 | wire) + body


def _entry(key: str, value: str) -> bytes:
    return _field(1, LENGTH, key.encode()) + _field(2, LENGTH, value.encode())


def _read_entry(raw: Any) -> tuple[str, str]:
    pair: dict[int, Any] = {1: b"", 2: b""}
    pair.update((number, value) for number, wire, value in fields(raw) if wire == LENGTH)
    return pair[1].decode(), pair[2].decode()


def _unpacked(raw: bytes) -> Iterator[int]:
    offset = 0
    while offset < len(raw):
        item, offset = read_varint(raw, offset)
        yield item
