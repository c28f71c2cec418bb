"""Pure. Header compression for HTTP/2 (RFC 7541).

The two directions are not alike. ``Decoder`` knows all of it: static and dynamic table, Huffman
code, size updates. The encoder is a function, ``encode``, that only uses what needs no memory:
indexes into the static table and plain literals. So a block we once made is right at any time
and on any connection, and callers keep the blocks of frequent headers as constants.

A decoder remembers what whole blocks stood for. A peer that repeats a request repeats its block
byte for byte once its table has settled, and then decoding is one look-up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Generic, TypeVar

Field = tuple[bytes, bytes]
T = TypeVar("T")

TABLE_SIZE = 4096  # of the dynamic table; the protocol's default, which we never change
ENTRY_OVERHEAD = 32  # what an entry counts beside its name and value
_REMEMBERED = 128  # blocks
_REMEMBERED_SIZE = 1024  # bytes of each
_INTEGER_LIMIT = 1 << 31


class HpackError(Exception):
    """A block that cannot be decoded; the state of the connection's table is lost with it."""


class FieldsTooLarge(HpackError):
    """A block that stands for more than the decoder is willing to hold."""


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

    def decode(self, block: bytes) -> T:
        """What a complete block stands for; raises HpackError."""
        known = self._remembered.get(block)
        if known is not None:
            return known
        self._changed = False
        try:
            fields = self._fields(block)
        except IndexError:
            raise HpackError("block ends within a field") from None
        result = self._interpret(fields)
        if self._changed or len(self._remembered) >= _REMEMBERED:
            self._remembered.clear()
        if not self._changed and len(block) <= _REMEMBERED_SIZE:
            self._remembered[block] = result
        return result

    def _fields(self, block: bytes) -> list[Field]:
        fields: list[Field] = []
        pos, end, size = 0, len(block), 0
        while pos < end:
            first = block[pos]
            if first & 0x80:
                index, pos = _integer(block, pos, 0x7F)
                field = self._field(index)
            elif first & 0x40:
                field, pos = self._literal(block, pos, 0x3F)
                self._insert(field)
            elif first & 0x20:
                if fields:
                    raise HpackError("table size update after a field")
                size_wanted, pos = _integer(block, pos, 0x1F)
                self._resize(size_wanted)
                continue
            else:
                field, pos = self._literal(block, pos, 0x0F)
            size += len(field[0]) + len(field[1]) + ENTRY_OVERHEAD
            if size > self._limit:
                raise FieldsTooLarge(f"header list over {self._limit} bytes")
            fields.append(field)
        return fields

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


def encode(fields: Iterable[Field]) -> bytes:
    """A block that stands for the fields, whatever was sent before it."""
    return b"".join([_encode_field(name, value) for name, value in fields])


def _encode_field(name: bytes, value: bytes) -> bytes:
    index = _STATIC_INDEX.get((name, value))
    if index is not None:
        return _encode_integer(index, 0x7F, 0x80)
    index = _STATIC_NAMES.get(name)
    if index is not None:
        head = _encode_integer(index, 0x0F, 0x00)
    else:
        head = b"\x00" + _encode_integer(len(name), 0x7F, 0x00) + name
    return head + _encode_integer(len(value), 0x7F, 0x00) + value


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
    return (_huffman_decode(text) if coded else text), end


# The code of RFC 7541 appendix B is canonical (codes of one length count up with the symbols),
# so the lengths say it all: one letter for each symbol, "a" for 5 bits, up to "z" for 30. The
# last symbol is the end of string.
_LENGTHS = [
    ord(letter) - ord("a") + 5
    for letter in (
        "isxxxxxxxtzxxzxxxxxxxxzxxxxxxxxxbffhibdgffdgdbbbaaabbbbbbbcdkbhf"
        "ibccccccccccccccccccccccdcdioijbkabababbbaccbbbabcbaabccccckgjix"
        "prpprrrsrssssststtrstssssqrsrsstrqprrssqsrrtqrssqqrqsrssprrrsrrs"
        "vvporsruvvvwwvtuoqvwwvwtqqvvxwwwptpqrqqsrruuttvsvwvvwwwwwxwwwwwv"
        "z"
    )
]
_END_OF_STRING = 256
_SHORT = 8  # bits; nearly all text is in codes of at most this length
_LONGEST = 30


def _huffman_tables() -> tuple[list[tuple[int, int] | None], dict[tuple[int, int], int]]:
    """(short codes by their next 8 bits, longer codes by (length, code))."""
    short: list[tuple[int, int] | None] = [None] * (1 << _SHORT)
    longer: dict[tuple[int, int], int] = {}
    code = 0
    previous = 5
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(_LENGTHS)):
        code <<= length - previous
        previous = length
        if length <= _SHORT:
            first = code << (_SHORT - length)
            for bits in range(first, first + (1 << (_SHORT - length))):
                short[bits] = (symbol, length)
        else:
            longer[length, code] = symbol
        code += 1
    return short, longer


_HUFFMAN_SHORT, _HUFFMAN_LONG = _huffman_tables()


@lru_cache(256)
def _huffman_decode(text: bytes) -> bytes:
    out = bytearray()
    left = len(text) * 8
    window = held = 0
    # The last byte is filled up with ones; with enough ones behind it that reads as the symbol
    # "end of string", so one test ends the loop.
    for byte in text + b"\xff\xff\xff\xff":
        window = window << 8 | byte
        held += 8
        while held >= _SHORT:
            found = _HUFFMAN_SHORT[window >> (held - _SHORT)]
            if found is None:
                if held < _LONGEST:
                    break
                found = _huffman_long(window >> (held - _LONGEST))
            symbol, length = found
            if symbol == _END_OF_STRING and left < 8:
                return bytes(out)
            if symbol == _END_OF_STRING or length > left:
                raise HpackError("Huffman code ends in bad padding")
            out.append(symbol)
            left -= length
            held -= length
            window &= (1 << held) - 1
    raise AssertionError("every code is found within 30 bits")


def _huffman_long(window: int) -> tuple[int, int]:
    """Symbol and length of the code of more than 8 bits at the top of a 30-bit window."""
    length = _SHORT + 1
    while (length, window >> (_LONGEST - length)) not in _HUFFMAN_LONG:
        length += 1
    return _HUFFMAN_LONG[length, window >> (_LONGEST - length)], length


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
