"""Pure. Reading tar: from blocks of bytes to entries, whichever of tar's dialects they are in.

Known are V7, ustar, PAX, star and GNU headers: long names (``L``, ``K``), PAX records (``x``;
global ones are passed over), numbers in base 256, and sparse files (GNU's type ``S`` and the PAX
forms 0.0, 0.1 and 1.0). Nothing is believed: checksums are compared, metadata is bounded by
``METADATA_LIMIT``, and whatever is wrong raises an ArchiveError.

A stream ends with two zero blocks, or at the end of the input between two entries. What follows
the zero blocks is not looked at; whoever needs a digest of everything drains the rest.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from zlib import adler32

from cradled.archive.errors import ArchiveError, TarError, Truncated

BLOCK = 512
METADATA_LIMIT = 1 << 20
"""Bytes of one entry's PAX records, long name or sparse map."""

REGULAR = ord("0")
LINK = ord("1")
SYMLINK = ord("2")
CHARACTER = ord("3")
BLOCK_DEVICE = ord("4")
DIRECTORY = ord("5")
FIFO = ord("6")

_OLD_REGULAR = 0
_GNU_SPARSE = ord("S")
_GNU_NAME = ord("L")
_GNU_LINK = ord("K")
_PAX = ord("x")
_PAX_GLOBAL = ord("g")
_WITHOUT_DATA = frozenset((LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO))

_XATTR = b"SCHILY.xattr."
_ZERO = bytes(BLOCK)
_BILLION = 1_000_000_000
_MAX_SIZE = (1 << 63) - 1

Xattrs = Mapping[bytes, bytes]
_NO_XATTRS: Xattrs = {}

# name mode uid gid size mtime checksum type link magic+version (users) major minor prefix
_FIELDS = struct.Struct("100s8s8s8s12s12s8sB100s8s64x8s8s155s12x").unpack
_GNU_ENTRY = struct.Struct("12s12s").unpack_from


class Entry:
    """One file of an archive. Names are bytes as the kernel takes them; times are nanoseconds.

    ``size`` is that of the file, ``stored`` the number of bytes that the archive holds of it: they
    differ when ``sparse`` lists the (offset, length) pieces that are there.
    """

    __slots__ = (
        "atime", "gid", "kind", "link", "major", "minor", "mode", "mtime", "name", "size",
        "sparse", "stored", "uid", "xattrs",
    )  # fmt: skip

    def __init__(
        self, name: bytes, kind: int, mode: int, uid: int, gid: int, size: int, mtime: int
    ) -> None:
        self.name = name
        self.kind = kind
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.size = size
        self.stored = size
        self.mtime = mtime
        self.atime = 0
        self.link = b""
        self.major = 0
        self.minor = 0
        self.xattrs = _NO_XATTRS
        self.sparse: list[tuple[int, int]] | None = None


class TarReader:
    """Entries of a tar stream that comes as blocks of any size.

    ``next`` gives the next entry and skips what was not read of the last one; ``piece`` gives the
    stored data of the current one, in pieces as they lie in the blocks.
    """

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._block = b""
        self._view = memoryview(b"")
        self._at = 0
        self._left = 0  # data of the current entry not read yet
        self._padding = 0

    def next(self) -> Entry | None:
        """The next entry, or None at the end of the archive."""
        records: dict[bytes, bytes] = {}
        name = link = b""
        while True:
            header = self._header()
            if header is None:
                return None
            entry = _parse(header)
            kind = entry.kind
            self._begin(0 if kind in _WITHOUT_DATA else entry.size)
            if kind == _PAX:
                records = parse_records(self._metadata("PAX records"))
            elif kind == _GNU_NAME:
                name = _text(self._metadata("long name"))
            elif kind == _GNU_LINK:
                link = _text(self._metadata("long link"))
            elif kind != _PAX_GLOBAL:
                break
        if records:
            self._merge(entry, records)
        if name:
            entry.name = name
        if link:
            entry.link = link
        if kind == _OLD_REGULAR:
            entry.kind = DIRECTORY if entry.name.endswith(b"/") else REGULAR
            if entry.kind == DIRECTORY:
                self._begin(0)
        elif kind == _GNU_SPARSE:
            self._gnu_sparse(entry, header)
        entry.stored = self._left
        if entry.sparse is not None:
            _check_sparse(entry)
        return entry

    def piece(self, limit: int = _MAX_SIZE) -> memoryview:
        """Up to ``limit`` bytes of the entry's stored data; empty when all of it was read.

        The memory stays valid as long as the caller holds it. Raises Truncated.
        """
        length = min(self._left, limit)
        if not length:
            return self._view[:0]
        at = self._at
        available = len(self._block) - at
        if not available:
            if not self._refill():
                raise Truncated("file data")
            at = 0
            available = len(self._block)
        length = min(length, available)
        self._at = at + length
        self._left -= length
        return self._view[at : at + length]

    def read(self) -> bytes:
        """All stored data of the current entry that was not read yet."""
        pieces = []
        while self._left:
            pieces.append(bytes(self.piece()))
        return b"".join(pieces)

    def _begin(self, size: int) -> None:
        self._left = size
        self._padding = -size % BLOCK

    def _refill(self) -> bool:
        """Go to the next block; false at the end of the stream."""
        for block in self._blocks:
            if block:
                self._block = block
                self._view = memoryview(block)
                self._at = 0
                return True
        return False

    def _take(self, length: int, where: str) -> bytes:
        """Exactly ``length`` bytes of the stream, small enough to be joined."""
        data = self._up_to(length)
        if len(data) < length:
            raise Truncated(where)
        return data

    def _up_to(self, length: int) -> bytes:
        """``length`` bytes, or what is left of the stream."""
        at = self._at
        end = at + length
        block = self._block
        if end <= len(block):
            self._at = end
            return block[at:end]
        pieces = [block[at:]]
        self._at = len(block)
        length -= len(pieces[0])
        while length and self._refill():
            pieces.append(self._block[:length])
            self._at = len(pieces[-1])
            length -= self._at
        return b"".join(pieces)

    def _skip(self) -> None:
        """Go to the end of the current entry; a stream may end within the last padding."""
        while self._left:
            self.piece()
        self._up_to(self._padding)
        self._padding = 0

    def _header(self) -> bytes | None:
        """The next header block, None at the end."""
        if self._left or self._padding:
            self._skip()
        block = self._up_to(BLOCK)
        if len(block) == BLOCK and block != _ZERO:
            return block
        if not block:
            return None
        if len(block) < BLOCK:
            raise Truncated("header")
        second = self._up_to(BLOCK)
        if second and second != _ZERO:
            raise TarError("a lone zero block")
        return None

    def _metadata(self, what: str) -> bytes:
        if self._left > METADATA_LIMIT:
            raise TarError(f"{what} of {self._left} bytes")
        return self.read()

    def _merge(self, entry: Entry, records: dict[bytes, bytes]) -> None:
        """Let PAX records override the header."""
        xattrs = {}
        for key, value in records.items():
            if key.startswith(_XATTR):
                xattrs[key[len(_XATTR) :]] = value
            elif value and key in _SETTERS:
                attribute, convert = _SETTERS[key]
                setattr(entry, attribute, convert(value))
        if xattrs:
            entry.xattrs = xattrs
        if records.get(b"size") and entry.kind not in _WITHOUT_DATA:
            self._begin(entry.size)
        if any(key.startswith(b"GNU.sparse.") for key in records):
            self._pax_sparse(entry, records)

    def _pax_sparse(self, entry: Entry, records: dict[bytes, bytes]) -> None:
        version = records.get(b"GNU.sparse.major", b""), records.get(b"GNU.sparse.minor", b"")
        old = b"GNU.sparse.map" in records
        if version not in ((b"1", b"0"), (b"0", b"1"), (b"0", b"0")) and not (
            version == (b"", b"") and old
        ):
            return  # unknown form: an ordinary file
        entry.name = records.get(b"GNU.sparse.name") or entry.name
        size = records.get(b"GNU.sparse.realsize") or records.get(b"GNU.sparse.size")
        if size:
            entry.size = _decimal(size)
        numbers: list[int]
        if version == (b"1", b"0"):
            numbers = self._sparse_map()
        elif records.get(b"GNU.sparse.map"):
            numbers = [_decimal(text) for text in records[b"GNU.sparse.map"].split(b",")]
        else:
            numbers = []
        if len(numbers) % 2:
            raise TarError("sparse map of odd length")
        entry.sparse = list(zip(numbers[::2], numbers[1::2], strict=True))

    def _sparse_map(self) -> list[int]:
        """The map that comes first in the data of form 1.0: lines of decimal numbers."""
        blocks: list[bytes] = []
        lines, wanted = 0, 1
        while lines < wanted:
            if len(blocks) * BLOCK >= METADATA_LIMIT or self._left < BLOCK:
                raise TarError("sparse map without end")
            self._left -= BLOCK
            blocks.append(self._take(BLOCK, "sparse map"))
            lines += blocks[-1].count(b"\n")
            if len(blocks) == 1 and lines:
                wanted = 1 + 2 * _decimal(blocks[0].partition(b"\n")[0])
        return [_decimal(line) for line in b"".join(blocks).split(b"\n", wanted)[1:wanted]]

    def _gnu_sparse(self, entry: Entry, header: bytes) -> None:
        if header[257:265] != b"ustar  \0":
            raise TarError("sparse file in a header that is not GNU's")
        entry.kind = REGULAR
        entry.size = _size(header[483:495])
        pieces: list[tuple[int, int]] = []
        block, first, count, more = header, 386, 4, header[482]
        while True:
            for at in range(first, first + 24 * count, 24):
                offset, length = _GNU_ENTRY(block, at)
                if not offset[0]:
                    break
                pieces.append((_size(offset), _size(length)))
            if not more:
                break
            if len(pieces) * 24 > METADATA_LIMIT:
                raise TarError("sparse map without end")
            # These blocks lie between header and data and are not counted in the entry's size.
            block, first, count = self._take(BLOCK, "sparse map"), 0, 21
            more = block[504]
        entry.sparse = pieces


def parse_records(data: bytes) -> dict[bytes, bytes]:
    """PAX records. The pairs of sparse form 0.0 are joined to the map of form 0.1."""
    records: dict[bytes, bytes] = {}
    pieces: list[bytes] = []
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 20)
        digits = data[at:space]
        if space < 0 or not digits.isdigit():
            raise TarError("PAX record without length")
        end = at + int(digits)
        record = data[space + 1 : end]
        key, equals, value = record.partition(b"=")
        if end > len(data) or not record.endswith(b"\n") or not equals or not key:
            raise TarError("malformed PAX record")
        value = value[:-1]
        if b"\0" in (value if key in _STRINGS else key):
            raise TarError("NUL in PAX record")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            if (key == b"GNU.sparse.numbytes") != bool(len(pieces) % 2) or b"," in value:
                raise TarError("sparse map out of order")
            pieces.append(value)
        else:
            records[key] = value
        at = end
    if pieces:
        records[b"GNU.sparse.map"] = b",".join(pieces)
    return records


def _parse(block: bytes) -> Entry:
    """A header block by itself."""
    (
        name, mode, uid, gid, size, mtime, checksum, kind, link, magic, major, minor, prefix,
    ) = _FIELDS(block)  # fmt: skip
    # Adler-32's lower half is the plain sum, exact for up to 256 bytes: much faster than sum().
    total = (adler32(block[:256]) & 0xFFFF) + (adler32(block[256:]) & 0xFFFF) - 2
    stated = _number(checksum)
    if total - sum(checksum) + 256 != stated and not _signed_sum_is(block, stated):
        raise TarError("checksum differs")
    entry = Entry(
        _text(name),
        kind,
        _small(mode) & 0xFFFF_FFFF,
        _small(uid),
        _small(gid),
        _size(size),
        _number(mtime) * _BILLION,
    )
    if link[0]:
        entry.link = _text(link)
    if magic[:5] == b"ustar":
        _parse_extension(entry, block, magic, prefix)
        if kind in (CHARACTER, BLOCK_DEVICE):
            entry.major = _number(major)
            entry.minor = _number(minor)
    return entry


def _parse_extension(entry: Entry, block: bytes, magic: bytes, prefix: bytes) -> None:
    """What follows the magic: more of the name, or times."""
    if magic == b"ustar  \0":
        if prefix[0]:
            try:
                entry.atime = _number(prefix[:12]) * _BILLION
            except TarError:  # old writers put a name's first part there in spite of the magic
                entry.name = _text(prefix) + b"/" + entry.name
    elif block[508:512] == b"tar\0":  # star: a shorter prefix, then two times
        if prefix[0]:
            entry.name = _text(prefix[:131]) + b"/" + entry.name
        entry.atime = _number(block[476:488]) * _BILLION
    elif prefix[0]:
        entry.name = _text(prefix) + b"/" + entry.name


def _signed_sum_is(block: bytes, stated: int) -> bool:
    """Some old writers summed up signed bytes."""
    summed = block[:148] + b" " * 8 + block[156:]
    return sum(summed) - 256 * sum(byte > 127 for byte in summed) == stated


def _text(field: bytes) -> bytes:
    end = field.find(b"\0")
    return field if end < 0 else field[:end]


_numbers: dict[bytes, int] = {}


def _small(field: bytes) -> int:
    """A number of which an archive holds few different ones: remembered."""
    value = _numbers.get(field)
    if value is None:
        if len(_numbers) > 4096:
            _numbers.clear()
        value = _numbers[field] = _number(field)
    return value


def _number(field: bytes) -> int:
    """A numeric field: octal text between blanks and NULs, or base 256."""
    digits = field[:-1]
    if field[-1] > 32 or not digits.isdigit():
        if field[0] & 0x80:
            return _base256(field)
        digits = _text(field.strip(b" \0"))
        if not digits:
            return 0
        if not digits.isdigit():
            raise TarError(f"bad number {field!r}")
    try:
        return int(digits, 8)
    except ValueError:
        raise TarError(f"bad number {field!r}") from None


def _base256(field: bytes) -> int:
    """Two's complement, big endian; the first bit only says that it is this form."""
    bits = 8 * len(field) - 1
    value = int.from_bytes(field, "big") & ((1 << bits) - 1)
    if value >> (bits - 1):
        value -= 1 << bits
    if not -_MAX_SIZE - 1 <= value <= _MAX_SIZE:
        raise TarError("number out of range")
    return value


def _size(field: bytes) -> int:
    size = _number(field)
    if size < 0:
        raise TarError("negative size")
    return size


def _decimal(text: bytes) -> int:
    """A size in a PAX record or sparse map."""
    if not text.isdigit() or len(text) > 19 or (value := int(text)) > _MAX_SIZE:
        raise TarError(f"bad number {text[:32]!r}")
    return value


def _owner(text: bytes) -> int:
    sign = text[:1] == b"-"
    return -_decimal(text[1:]) if sign else _decimal(text)


def _time(text: bytes) -> int:
    """Seconds with a fraction, in nanoseconds; what lies beyond those is cut off."""
    sign = -1 if text[:1] == b"-" else 1
    seconds, _, fraction = text.removeprefix(b"-").partition(b".")
    if fraction and not fraction.isdigit():
        raise TarError(f"bad time {text[:32]!r}")
    return sign * (_decimal(seconds) * _BILLION + int(fraction[:9].ljust(9, b"0")))


_STRINGS = frozenset((b"path", b"linkpath", b"uname", b"gname"))
_SETTERS: dict[bytes, tuple[str, Callable[[bytes], int | bytes]]] = {
    b"path": ("name", bytes),
    b"linkpath": ("link", bytes),
    b"size": ("size", _decimal),
    b"uid": ("uid", _owner),
    b"gid": ("gid", _owner),
    b"mtime": ("mtime", _time),
    b"atime": ("atime", _time),
}


def _check_sparse(entry: Entry) -> None:
    """The pieces must be in order, inside the file, and all that is stored."""
    end = total = 0
    for offset, length in entry.sparse or ():
        if offset < end:
            raise TarError("sparse map out of order")
        end = offset + length
        total += length
    if end > entry.size:
        raise TarError("sparse map beyond the file")
    if total != entry.stored:
        raise ArchiveError("archive/tar: sparse map does not fit the data")
