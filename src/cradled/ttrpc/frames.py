"""Pure. ttrpc frames: a ten-byte header, then data (reference, tasks-and-shims.md section 3).

Layout, big endian: u32 data length, u32 stream id, u8 type, u8 flags. ``FrameReader`` cuts a byte
stream into frames. A frame longer than ``MAX_DATA`` is thrown away while it comes in and is
reported without its data, so a reader never holds more than one largest frame and one read.

Imported by the shim: nothing but ``struct`` at run time.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_DATA = 4 << 20
HEADER = struct.Struct(">IIBB")
HEADER_SIZE = HEADER.size

REQUEST, RESPONSE, DATA = 1, 2, 3

REMOTE_CLOSED = 0x01
REMOTE_OPEN = 0x02
NO_DATA = 0x04


def frame(stream_id: int, kind: int, flags: int, data: bytes = b"") -> bytes:
    """One frame as it goes over the wire."""
    return HEADER.pack(len(data), stream_id, kind, flags) + data


def too_long(length: int) -> str:
    """The text peers know for a message over the limit."""
    return f"message length {length} exceed maximum message size of {MAX_DATA}"


class Frame:
    """A received frame; ``data`` is None where it was too long to keep."""

    __slots__ = ("data", "flags", "kind", "length", "stream_id")

    def __init__(
        self, stream_id: int, kind: int, flags: int, length: int, data: bytes | None
    ) -> None:
        self.stream_id = stream_id
        self.kind = kind
        self.flags = flags
        self.length = length
        self.data = data


class FrameReader:
    """Cuts bytes into frames, however they are split up."""

    __slots__ = ("_buffer", "_skip")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skip = 0

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[Frame]:
        """The frames that are complete (or known to be too long) now; take them all.

        A frame that is too long is reported as soon as its header is there.
        """
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        buffer = self._buffer
        buffer += data
        offset, end = 0, len(buffer)
        while end - offset >= HEADER_SIZE:
            length, stream_id, kind, flags = HEADER.unpack_from(buffer, offset)
            start = offset + HEADER_SIZE
            if length > MAX_DATA:
                offset = min(start + length, end)
                self._skip = start + length - offset
                yield Frame(stream_id, kind, flags, length, None)
            elif start + length > end:
                break
            else:
                offset = start + length
                yield Frame(stream_id, kind, flags, length, bytes(buffer[start:offset]))
        del buffer[:offset]
