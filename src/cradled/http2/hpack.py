"""Pure. Header compression for HTTP/2 (RFC 7541).

``Decoder`` knows all of it: static and dynamic table, Huffman code, size updates. To encode there
are two ways. ``encode`` only uses what needs no memory: indexes into the static table, and
literals. So a block it made is right at any time and on any connection, and callers keep the
blocks of frequent headers as constants. ``Encoder`` has a dynamic table, for what one end says
again and again; its blocks are for one connection, in the order they were made.

A decoder remembers what whole blocks stood for. A peer that repeats a request repeats its block
byte for byte once its table has settled, and then decoding is one look-up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from cradled.http2 import huffman

Field = tuple[bytes, bytes]
T = TypeVar("T")

TABLE_SIZE = 4096  # of a dynamic table; the protocol's default, which we never exceed
ENTRY_OVERHEAD = 32  # what an entry counts beside its name and value
_REMEMBERED = 64 << 10  # bytes that remembered blocks stand for, in all
_REMEMBERED_EACH = 4 << 10
_REMEMBERED_COUNT = 128
_INTEGER_LIMIT = 1 << 31
_UPDATES = 2  # table size updates that a block may need


class HpackError(Exception):
    """A block that cannot be decoded; the state of the connection's table is lost with it."""


class FieldsTooLarge(Exception):
    """A block that stands for more than the decoder is willing to hold. The table is right."""


class Decoder(Generic[T]):
    """Decodes the blocks of one direction of one connection.

    ``interpret`` makes of a list of fields what ``decode`` returns; results are remembered, so
    it must be free of side effects and what it returns is shared. ``limit`` is the size of a
    list of fields, counted as SETTINGS_MAX_HEADER_LIST_SIZE counts.
    """

    def __init__(self, interpret: Callable[[list[Field]], T], limit: int) -> None:
        self._interpret = interpret
        self._limit = limit
        self._table: deque[Field] = deque()
        self._size = 0
        self._max_size = TABLE_SIZE
        self._changed = False
        self._remembered: dict[bytes, T] = {}
        self._remembered_size = 0

    def decode(self, block: bytes) -> T:
        """What a complete block stands for; raises HpackError and FieldsTooLarge."""
        known = self._remembered.get(block)
        if known is not None:
            return known
        self._changed = False
        try:
            fields, size = self._fields(block)
        except IndexError:
            raise HpackError("block ends within a field") from None
        except huffman.HuffmanError as error:
            raise HpackError(str(error)) from None
        if self._changed:
            self._forget()
        if size > self._limit:
            raise FieldsTooLarge(f"header list of {size} bytes")
        result = self._interpret(fields)
        if not self._changed and size <= _REMEMBERED_EACH:
            self._remember(block, result, size)
        return result

    def _remember(self, block: bytes, result: T, size: int) -> None:
        self._remembered_size += size
        if self._remembered_size > _REMEMBERED or len(self._remembered) >= _REMEMBERED_COUNT:
            self._forget()
            self._remembered_size = size
        self._remembered[block] = result

    def _forget(self) -> None:
        self._remembered.clear()
        self._remembered_size = 0

    def _fields(self, block: bytes) -> tuple[list[Field], int]:
        """The fields of a block, none that are beyond the limit, and the size of all."""
        fields: list[Field] = []
        pos, end, size, updates = 0, len(block), 0, 0
        while pos < end:
            first = block[pos]
            if first & 0x80:
                index, pos = _integer(block, pos, 0x7F)
                field = self._field(index)
            elif first & 0x40:
                field, pos = self._literal(block, pos, 0x3F)
                self._insert(field)
            elif first & 0x20:
                updates += 1
                if size or updates > _UPDATES:
                    raise HpackError("table size update out of place")
                size_wanted, pos = _integer(block, pos, 0x1F)
                self._resize(size_wanted)
                continue
            else:
                field, pos = self._literal(block, pos, 0x0F)
            size += len(field[0]) + len(field[1]) + ENTRY_OVERHEAD
            if size <= self._limit:
                fields.append(field)
        return fields, size

    def _field(self, index: int) -> Field:
        if index <= len(_STATIC):
            if index == 0:
                raise HpackError("index 0")
            return _STATIC[index - 1]
        index -= len(_STATIC) + 1
        if index >= len(self._table):
            raise HpackError("index beyond the table")
        return self._table[index]

    def _literal(self, block: bytes, pos: int, mask: int) -> tuple[Field, int]:
        index, pos = _integer(block, pos, mask)
        if index:
            name = self._field(index)[0]
        else:
            name, pos = _string(block, pos)
        value, pos = _string(block, pos)
        return (name, value), pos

    def _insert(self, field: Field) -> None:
        self._changed = True
        self._table.appendleft(field)
        self._size += len(field[0]) + len(field[1]) + ENTRY_OVERHEAD
        self._evict()

    def _resize(self, size: int) -> None:
        if size > TABLE_SIZE:
            raise HpackError("table size update over the limit")
        self._changed = True
        self._max_size = size
        self._evict()

    def _evict(self) -> None:
        while self._size > self._max_size:
            name, value = self._table.pop()
            self._size -= len(name) + len(value) + ENTRY_OVERHEAD


class Encoder:
    """Encodes the blocks of one direction of one connection, with a dynamic table.

    A block must be sent before the next one that is made.
    """

    def __init__(self) -> None:
        self._entries: deque[Field] = deque()  # latest first
        self._numbers: dict[Field, int] = {}  # when an entry was inserted
        self._inserted = 0
        self._size = 0
        self._max_size = TABLE_SIZE
        self._known: dict[tuple[Field, ...], bytes] = {}  # blocks that need no insertion

    def encode(self, fields: tuple[Field, ...]) -> bytes:
        """A block; its fields are expected to recur (others are for ``encode``)."""
        known = self._known.get(fields)
        if known is not None:
            return known
        before = self._inserted
        block = b"".join([self._field(field) for field in fields])
        if self._inserted != before or len(self._known) >= _REMEMBERED_COUNT:
            self._known.clear()
        if self._inserted == before:
            self._known[fields] = block
        return block

    def resize(self, size: int) -> bytes:
        """Keep to the table size that the peer allows; returns what must come before the next
        block. The table never grows again."""
        if size >= self._max_size:
            return b""
        self._max_size = size
        self._known.clear()
        self._evict()
        return _encode_integer(size, 0x1F, 0x20)

    def _field(self, field: Field) -> bytes:
        number = self._numbers.get(field)
        if number is not None:
            return _encode_integer(len(_STATIC) + self._inserted - number, 0x7F, 0x80)
        name, value = field
        size = len(name) + len(value) + ENTRY_OVERHEAD
        if field in _STATIC_INDEX or size > self._max_size // 4:
            return _encode_field(name, value)
        coded = _encode_literal(name, value, 0x3F, 0x40)
        self._entries.appendleft(field)
        self._numbers[field] = self._inserted
        self._inserted += 1
        self._size += size
        self._evict()
        return coded

    def _evict(self) -> None:
        while self._size > self._max_size:
            field = self._entries.pop()
            del self._numbers[field]
            self._size -= len(field[0]) + len(field[1]) + ENTRY_OVERHEAD


def encode(fields: Iterable[Field]) -> bytes:
    """A block that stands for the fields, whatever was sent before it."""
    return b"".join([_encode_field(name, value) for name, value in fields])


def _encode_field(name: bytes, value: bytes) -> bytes:
    index = _STATIC_INDEX.get((name, value))
    if index is not None:
        return _encode_integer(index, 0x7F, 0x80)
    return _encode_literal(name, value, 0x0F, 0x00)


def _encode_literal(name: bytes, value: bytes, mask: int, flags: int) -> bytes:
    index = _STATIC_NAMES.get(name)
    if index is not None:
        return _encode_integer(index, mask, flags) + _encode_string(value)
    return bytes((flags,)) + _encode_string(name) + _encode_string(value)


def _encode_string(text: bytes) -> bytes:
    size = huffman.encoded_size(text)
    if size < len(text):
        return _encode_integer(size, 0x7F, 0x80) + huffman.encode(text)
    return _encode_integer(len(text), 0x7F, 0x00) + text


def _encode_integer(value: int, mask: int, flags: int) -> bytes:
    if value < mask:
        return bytes((flags | value,))
    out = bytearray((flags | mask,))
    value -= mask
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _integer(block: bytes, pos: int, mask: int) -> tuple[int, int]:
    """An integer and the position behind it; IndexError where the block is too short."""
    value = block[pos] & mask
    pos += 1
    if value != mask:
        return value, pos
    shift = 0
    while True:
        byte = block[pos]
        pos += 1
        value += (byte & 0x7F) << shift
        if value > _INTEGER_LIMIT or shift > 28:
            raise HpackError("integer too large")
        if byte < 0x80:
            return value, pos
        shift += 7


def _string(block: bytes, pos: int) -> tuple[bytes, int]:
    coded = block[pos] & 0x80
    length, pos = _integer(block, pos, 0x7F)
    end = pos + length
    if end > len(block):
        raise HpackError("block ends within a string")
    text = block[pos:end]
    return (huffman.decode(text) if coded else text), end


_STATIC: list[Field] = [
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    *((b":status", status) for status in b"200 204 206 304 400 404 500".split()),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    *(
        (name, b"")
        for name in (
            b"accept-language accept-ranges accept access-control-allow-origin age allow "
            b"authorization cache-control content-disposition content-encoding content-language "
            b"content-length content-location content-range content-type cookie date etag expect "
            b"expires from host if-match if-modified-since if-none-match if-range "
            b"if-unmodified-since last-modified link location max-forwards proxy-authenticate "
            b"proxy-authorization range referer refresh retry-after server set-cookie "
            b"strict-transport-security transfer-encoding user-agent vary via www-authenticate"
        ).split()
    ),
]
_STATIC_INDEX = {field: index for index, field in enumerate(_STATIC, 1) if field[1]}
_STATIC_NAMES = {name: index for index, (name, _) in reversed(list(enumerate(_STATIC, 1)))}
