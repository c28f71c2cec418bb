"""Pure. The files that the journal of events is made of.

    <directory>/<20 digits>      a segment; its name is the number of the first record it may have

    segment   magic "cradled\\x01", epoch (4 bytes), then records
    record    length: u32 · crc32: u32 · number: u64 · time: u64 · payload (``length`` bytes)

Integers are little endian, the checksum is of all that is behind it. Numbers rise from record to
record, mostly by one; ``time`` is when the record was written, in nanoseconds since the epoch.
A payload is a serialised ``containerd.types.Envelope``. The record with number 0, which only begins
a segment, is what the segments before are not needed for any more: the exits told so far of tasks
that are still there, as lines of namespace, container id, process id and pid between NULs.

The ``epoch`` is drawn when a journal is begun, and is in all its segments: a position in one
journal is never taken for one in another. Whatever is behind the last whole record is not read: a
crash may have cut it short, or a disk damaged it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

HEAD_SIZE = 12

_MAGIC = b"cradled\x01"
_RECORD = struct.Struct("<IIQQ")
_FRONT = struct.Struct("<II")
_SEALED = struct.Struct("<QQ")

HIGHEST = 1 << 62
"""No journal gets to a number beyond."""

OVERHEAD = _RECORD.size
"""Bytes of a record beside its payload: no file has more records than its size through this."""

Told = tuple[str, str, str, int]
"""An exit that was published: namespace, container id, process id, pid."""


class Record(NamedTuple):
    """``number`` is 0 for the list of exits; ``end`` is where the next record begins."""

    number: int
    time: int
    payload: bytes
    end: int


def head(epoch: str) -> bytes:
    """What a segment begins with."""
    return _MAGIC + bytes.fromhex(epoch)


def epoch_of(data: bytes) -> str:
    """The epoch in a segment's head; empty for a file that is no segment."""
    if len(data) < HEAD_SIZE or not data.startswith(_MAGIC):
        return ""
    return data[len(_MAGIC) : HEAD_SIZE].hex()


def began(data: bytes) -> int:
    """When a segment was begun, from its first bytes; 0 if they do not tell."""
    if len(data) < HEAD_SIZE + OVERHEAD:
        return 0
    time: int = _RECORD.unpack_from(data, HEAD_SIZE)[3]
    return time


def size(data: bytes) -> int:
    """What a record says to be its size, from its first bytes."""
    length: int = _FRONT.unpack_from(data)[0]
    return OVERHEAD + length


def record(number: int, time: int, payload: bytes) -> bytes:
    sealed = _SEALED.pack(number, time)
    checksum = zlib.crc32(payload, zlib.crc32(sealed))
    return b"".join((_FRONT.pack(len(payload), checksum), sealed, payload))


def records(data: bytes, position: int = 0, above: int = 0) -> Iterator[Record]:
    """The whole records from ``position`` on, up to the first that is damaged or cut short, or
    whose number is not ``above`` those before."""
    view = memoryview(data)
    while position + OVERHEAD <= len(data):
        length, checksum, number, time = _RECORD.unpack_from(data, position)
        end = position + OVERHEAD + length
        if end > len(data) or zlib.crc32(view[position + _FRONT.size : end]) != checksum:
            return
        if number and not above < number <= HIGHEST:
            return
        yield Record(number, time, data[position + OVERHEAD : end], end)
        above = max(above, number)
        position = end


def name_of(first: int) -> str:
    return f"{first:020}"


def firsts(names: Iterable[str]) -> list[int]:
    """The segments among the names of files, oldest first."""
    found = (int(name) for name in names if len(name) == 20 and name.isdecimal())
    return sorted(first for first in found if first <= HIGHEST)


def pack_told(exits: Iterable[Told]) -> bytes:
    return "\n".join("\0".join((*names, str(pid))) for *names, pid in exits).encode()


def unpack_told(payload: bytes) -> list[Told]:
    """Lines that are not as they should be are left out."""
    found = []
    for line in payload.decode(errors="replace").split("\n"):
        fields = line.split("\0")
        if len(fields) == 4 and fields[3].isdecimal():
            found.append((fields[0], fields[1], fields[2], int(fields[3])))
    return found
