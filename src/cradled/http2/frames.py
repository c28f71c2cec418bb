"""Pure. The frames of HTTP/2 as bytes (RFC 9113 sections 4, 6, 7), and the errors of the package.

A frame is nine bytes of head (24 bits length, 8 bits type, 8 bits flags, 31 bits stream id) and
its payload. ``HEAD`` takes and gives length and type as one integer: ``length << 8 | type``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

HEAD = struct.Struct(">IBI")
HEAD_SIZE = 9
SETTING = struct.Struct(">HI")
NUMBER = struct.Struct(">I")

DATA = 0x0
HEADERS = 0x1
PRIORITY = 0x2
RST_STREAM = 0x3
SETTINGS = 0x4
PUSH_PROMISE = 0x5
PING = 0x6
GOAWAY = 0x7
WINDOW_UPDATE = 0x8
CONTINUATION = 0x9

END_STREAM = 0x01
ACK = 0x01
END_HEADERS = 0x04
PADDED = 0x08
WITH_PRIORITY = 0x20

MAX_STREAM_ID = MAX_WINDOW = (1 << 31) - 1
DEFAULT_WINDOW = 65535
DEFAULT_FRAME_SIZE = 1 << 14
LARGEST_FRAME_SIZE = (1 << 24) - 1


class ErrorCode(IntEnum):
    """Why a stream was reset or a connection ended."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class Setting(IntEnum):
    """What SETTINGS can say; unknown ones are ignored."""

    HEADER_TABLE_SIZE = 0x1
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6


class LocalProtocolError(Exception):
    """We were about to break the protocol: a bug of the caller."""


class RemoteProtocolError(Exception):
    """The peer broke the protocol; the whole connection ends with ``code``."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code = code


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return HEAD.pack(len(payload) << 8 | kind, flags, stream_id) + payload


def settings(values: Iterable[tuple[int, int]]) -> bytes:
    """SETTINGS with some values."""
    return frame(SETTINGS, 0, 0, b"".join([SETTING.pack(*pair) for pair in values]))


def window_update(stream_id: int, increment: int) -> bytes:
    """WINDOW_UPDATE of a stream, or of the connection (0)."""
    return frame(WINDOW_UPDATE, 0, stream_id, NUMBER.pack(increment))


def rst_stream(stream_id: int, code: int) -> bytes:
    """RST_STREAM."""
    return frame(RST_STREAM, 0, stream_id, NUMBER.pack(code))


def goaway(last_stream_id: int, code: int, text: str = "") -> bytes:
    """GOAWAY, with a text for whoever reads the peer's log."""
    return frame(GOAWAY, 0, 0, NUMBER.pack(last_stream_id) + NUMBER.pack(code) + text.encode())


def without_padding(payload: bytes) -> bytes:
    """What a padded HEADERS frame carries beside its padding; raises RemoteProtocolError."""
    if not payload or payload[0] >= len(payload):
        raise RemoteProtocolError(ErrorCode.PROTOCOL_ERROR, "padding longer than the frame")
    return payload[1 : len(payload) - payload[0]]


def header_frames(stream_id: int, block: bytes, end_stream: bool, frame_size: int) -> bytes:
    """HEADERS, followed by as many CONTINUATIONs as a frame size makes necessary."""
    flags = END_STREAM if end_stream else 0
    if len(block) <= frame_size:
        return frame(HEADERS, flags | END_HEADERS, stream_id, block)
    parts = [block[at : at + frame_size] for at in range(0, len(block), frame_size)]
    return b"".join(
        [
            frame(HEADERS, flags, stream_id, parts[0]),
            *(frame(CONTINUATION, 0, stream_id, part) for part in parts[1:-1]),
            frame(CONTINUATION, END_HEADERS, stream_id, parts[-1]),
        ]
    )
