"""Pure. A stream of an HTTP/2 connection, and what is told of it.

Life: a stream is open until an END_STREAM went each way (``sent_end``, ``received_end``), or
either side reset it (``reset``; both are set then). The connection forgets it in that moment;
the object stays good for asking. ``ending`` says that no more may be sent: END_STREAM waits
behind queued data, or went out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

Buffer = bytes | bytearray | memoryview


class Stream:
    """One stream.

    ``context`` is the shell's to use. ``queued`` is how many bytes of data wait for the peer or
    the socket; when they have become few, ``drained`` is called (once, then forgotten).
    """

    __slots__ = (
        "context",
        "drained",
        "ending",
        "id",
        "over",
        "owed",
        "queue",
        "queued",
        "receive_window",
        "received_end",
        "received_headers",
        "reset",
        "scheduled",
        "send_window",
        "sent_end",
    )

    def __init__(self, stream_id: int, send_window: int, receive_window: int) -> None:
        self.id = stream_id
        self.context: Any = None
        self.send_window = send_window
        self.receive_window = receive_window
        self.over = False  # the connection has forgotten it
        self.owed = 0  # bytes consumed and not given back to the peer yet
        self.reset = False
        self.received_headers = False
        self.received_end = False
        self.ending = False
        self.sent_end = False
        self.queue: deque[tuple[int, Buffer, bool]] | None = None  # (frame type, payload, end)
        self.queued = 0
        self.scheduled = False
        self.drained: Callable[[], object] | None = None


class HeadersReceived:
    """A header block came: the request, a response, or trailers. ``head`` is it, interpreted."""

    __slots__ = ("ended", "head", "stream")

    def __init__(self, stream: Stream, head: Any, ended: bool) -> None:
        self.stream = stream
        self.head = head
        self.ended = ended


class DataReceived:
    """Data came. ``data`` may be a part of a frame; ``ended`` says that it is the last."""

    __slots__ = ("data", "ended", "stream")

    def __init__(self, stream: Stream, data: memoryview, ended: bool) -> None:
        self.stream = stream
        self.data = data
        self.ended = ended


class StreamReset:
    """The stream is over: the peer reset it, broke its rules, or will not look at it."""

    __slots__ = ("code", "stream")

    def __init__(self, stream: Stream, code: int) -> None:
        self.stream = stream
        self.code = code


class GoneAway:
    """The peer takes no new streams. Streams it will not answer have been reset before this."""

    __slots__ = ("code", "text")

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        self.text = text


Event = HeadersReceived | DataReceived | StreamReset | GoneAway
