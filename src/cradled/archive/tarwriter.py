"""Pure. Writing tar: from an entry to the blocks before its data.

The bytes are those that the original writes for the same entry, so that a layer made here has the
digest that it would have there: ustar headers, and a PAX header before one for what does not fit,
its records in order of their keys. Times are whole seconds; there are no names of users or groups.
"""

from __future__ import annotations

import struct

from cradled.archive.tar import BLOCK, Entry

END = bytes(2 * BLOCK)
"""What a stream ends with."""

_PAX = ord("x")
_NAME = 100
_PREFIX = 155
_BILLION = 1_000_000_000
_ID_LIMIT = 8**7
_SIZE_LIMIT = 8**11

# name mode uid gid size mtime checksum type link magic+version users major minor prefix
_pack = struct.Struct("100s8s8s8s12s12s8sB100s8s64x8s8s155s12x").pack


def header(entry: Entry) -> bytes:
    """All blocks before an entry's data.

    A long name is cut in two where ustar allows it, and nothing else asks for a PAX header.
    """
    name, prefix = entry.name, b""
    records = _records(entry)
    if records.keys() == {b"path"} and (parts := _parts(name)) is not None:
        prefix, name = parts
        records = {}
    main = _block(entry, name, prefix)
    if not records:
        return main
    data = b"".join(_record(key, records[key]) for key in sorted(records))
    extra = Entry(_pax_name(entry.name), _PAX, 0, 0, 0, len(data), 0)
    return _block(extra, extra.name) + data + padding(len(data)) + main


def padding(size: int) -> bytes:
    """What follows ``size`` bytes of data."""
    return bytes(-size % BLOCK)


def _records(entry: Entry) -> dict[bytes, bytes]:
    """What an ustar header has no room for."""
    records = {b"SCHILY.xattr." + key: value for key, value in entry.xattrs.items()}
    for key, text in ((b"path", entry.name), (b"linkpath", entry.link)):
        if len(text) > _NAME or not text.isascii():
            records[key] = text
    seconds = entry.mtime // _BILLION
    numbers = (
        (b"uid", entry.uid, _ID_LIMIT),
        (b"gid", entry.gid, _ID_LIMIT),
        (b"size", entry.size, _SIZE_LIMIT),
        (b"mtime", seconds, _SIZE_LIMIT),
    )
    for key, number, limit in numbers:
        if not 0 <= number < limit:
            records[key] = b"%d" % number
    return records


def _record(key: bytes, value: bytes) -> bytes:
    """A PAX record; its length counts itself."""
    rest = b" %b=%b\n" % (key, value)
    length = len(rest) + len(str(len(rest)))
    length = len(rest) + len(str(length))
    return b"%d%b" % (length, rest)


def _pax_name(name: bytes) -> bytes:
    """The name of the PAX header itself, for readers that know no such thing."""
    above, slash, last = name.rpartition(b"/")
    parts = [part for part in (above, b"PaxHeaders.0", last) if part]
    return _ascii(b"/".join(parts) if slash else b"/".join(parts[-2:]))[:_NAME].rstrip(b"/")


def _parts(name: bytes) -> tuple[bytes, bytes] | None:
    """Prefix and rest of a name that ustar can hold in two fields."""
    if not name.isascii():
        return None
    cut = name.rfind(b"/", 0, _PREFIX + 1 if len(name) > _PREFIX + 1 else len(name) - 1)
    if cut <= 0 or not 0 < len(name) - cut - 1 <= _NAME:
        return None
    return name[:cut], name[cut + 1 :]


def _block(entry: Entry, name: bytes, prefix: bytes = b"") -> bytes:
    device = (b"", b"") if entry.kind == _PAX else (_octal(entry.major, 8), _octal(entry.minor, 8))
    fields = [
        _field(name), _octal(entry.mode, 8), _octal(entry.uid, 8), _octal(entry.gid, 8),
        _octal(entry.size, 12), _octal(entry.mtime // _BILLION, 12), b" " * 8, entry.kind,
        _field(entry.link), b"ustar\x0000", *device, prefix,
    ]  # fmt: skip
    fields[6] = b"%06o\0 " % sum(_pack(*fields))
    return _pack(*fields)


def _octal(number: int, width: int) -> bytes:
    """As text; 0 for what does not fit, which a PAX record then says."""
    digits = width - 1
    return b"%0*o" % (digits, number if 0 <= number < 8**digits else 0)


def _ascii(text: bytes) -> bytes:
    return text if text.isascii() else bytes(byte for byte in text if byte < 128)


def _field(text: bytes) -> bytes:
    """As much of a name as fits, never with a slash at the cut: that would say a directory."""
    text = _ascii(text)
    return text if len(text) <= _NAME else text[:_NAME].rstrip(b"/")
