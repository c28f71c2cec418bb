"""Pure. The receiving half of an HTTP/2 connection: from bytes to frames, headers and data.

The frames that steer a connection (SETTINGS, PING, ...) are handled in ``http2.connection``,
which also says what the whole is for. DATA is passed on as it comes, in pieces; frames of kinds
that are not known are skipped the same way; all others are short, and handled when all of them
is there.

Two windows: the connection's is given back when data has come, whoever it is for, a stream's when
it has been consumed. So a stream that nobody reads stops itself and no other. Only when very much
is unread on all streams of a client does the connection's window wait too: memory is limited.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar

from cradled.http2 import frames, hpack, limits
from cradled.http2.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEAD,
    HEAD_SIZE,
    HEADERS,
    MAX_STREAM_ID,
    PREFACE,
    SETTINGS,
    ErrorCode,
    RemoteProtocolError,
)
from cradled.http2.hpack import Field
from cradled.http2.limits import FRAME_SIZE, UNREAD, Patience
from cradled.http2.streams import DataReceived, Event, HeadersReceived, Stream, StreamReset
from cradled.http2.windows import Outbox

STREAM_WINDOW = 4 << 20
CONNECTION_WINDOW = 16 << 20
_FRAMES_AT_A_TIME = 256
_EMPTY = memoryview(b"")

Handler = Callable[[Any, int, int, bytes, list[Event]], None]
"""Takes connection, flags, stream id, payload, and a list for the events."""


class Receiver:
    """What has come, and what it left behind; for the rest see ``Connection``.

    While ``data_left`` is not 0, so many bytes more are data of ``data_stream`` and nothing else;
    if that is None, of nobody.
    """

    handlers: ClassVar[dict[int, Handler]] = {}

    def __init__(
        self,
        server: bool,
        interpret: Callable[[list[Field]], Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.server = server
        self.closed = False
        self.settled = False  # the peer's first SETTINGS came
        self.refusing = False  # new streams of the peer are turned away
        self.more = False  # call ``receive(b"")`` soon: there are more frames at hand
        self.streams: dict[int, Stream] = {}
        self.outbox = Outbox(self._sent_end)
        self._decoder = hpack.Decoder(interpret, limits.HEADERS_LIMIT)
        self._rest = b""  # received and not parsed: a part of a frame
        self.data_left = 0  # of the DATA frame that is being received
        self.data_stream: Stream | None = None
        self._data_ended = False
        self._padding = 0  # behind that data
        self._block: _Block | None = None  # a header block that is being continued
        self._owed = 0  # bytes received and not given back to the connection's window yet
        self._unread = 0  # bytes that streams were given and have not consumed
        self._opened = 0  # streams there have been
        self._broken = 0  # of them, those that were reset for what the peer did
        self._last_id = 0  # highest stream id of the peer
        self._served_id = 0  # highest that was not refused
        self._next_id = 1
        self._awaited = PREFACE if server else b""
        self._patience = Patience(self._work, clock)

    def receive(self, data: bytes | memoryview) -> list[Event]:
        """Take bytes from the peer and say what they mean; nothing after ``closed``."""
        events: list[Event] = []
        if self.closed:
            return events
        if self._rest:
            data = b"".join((self._rest, data))
            self._rest = b""
        try:
            if self._awaited:
                data = self._skip_preface(bytes(data))
            self._parse(data, events)
        except RemoteProtocolError as error:
            self._fail(error.code, str(error))
        except hpack.HpackError as error:
            self._fail(ErrorCode.COMPRESSION_ERROR, str(error))
        return events

    def release(self, stream: Stream, size: int) -> None:
        """Bytes of a stream have been consumed: the peer may send as many more."""
        if stream.over:
            return
        stream.owed += size
        self._unread -= size
        if stream.owed >= STREAM_WINDOW // 4 and not stream.received_end:
            stream.receive_window += stream.owed
            self.outbox.control(frames.window_update(stream.id, stream.owed))
            stream.owed = 0
        if self._owed >= CONNECTION_WINDOW // 4:
            self._give_back()

    # Frames

    def _skip_preface(self, data: bytes) -> bytes:
        size = min(len(data), len(self._awaited))
        if data[:size] != self._awaited[:size]:
            raise RemoteProtocolError(ErrorCode.PROTOCOL_ERROR, "not HTTP/2")
        self._awaited = self._awaited[size:]
        return data[size:]

    def _parse(self, data: bytes | memoryview, events: list[Event]) -> None:
        view = memoryview(data)
        pos, end = 0, len(data)
        unpack = HEAD.unpack_from
        self.more = False
        for _ in range(_FRAMES_AT_A_TIME):
            if pos == end:
                break
            if self.data_left:
                pos = self._continue_data(view, pos, events)
                continue
            if end - pos < HEAD_SIZE:
                break
            word, flags, stream_id = unpack(data, pos)
            kind, size, stream_id = word & 0xFF, word >> 8, stream_id & MAX_STREAM_ID
            if size > FRAME_SIZE:
                raise RemoteProtocolError(ErrorCode.FRAME_SIZE_ERROR, f"frame of {size} bytes")
            if self._block is not None or not self.settled:
                self._check_order(kind, stream_id)
            start = pos + HEAD_SIZE
            if kind == DATA and not flags & frames.PADDED:
                pos = start + size
                if not size or pos > end:
                    pos = start
                    self._begin_data(flags, stream_id, size, size, events)
                    continue
                stream = self._count_data(stream_id, size, size, events)
                if stream is not None:
                    ended = flags & END_STREAM == END_STREAM
                    if ended:
                        self._received_end(stream)
                    events.append(DataReceived(stream, view[start:pos], ended))
                continue
            if kind == DATA or size > limits.CONTROL_SIZE:
                if kind == DATA and size and start == end:
                    break  # it begins with the size of its padding
                pos = start + self._begin_long(kind, flags, stream_id, size, view[start:], events)
                continue
            pos = start + size
            if pos > end:
                pos -= size + HEAD_SIZE
                break
            if kind == HEADERS:
                self._headers(flags, stream_id, bytes(data[start:pos]), events)
                continue
            self._patience.spend(1, _NAMES.get(kind, "unknown frames"))
            handle = self.handlers.get(kind)
            if handle is not None:
                handle(self, flags, stream_id, bytes(data[start:pos]), events)
        else:
            self.more = pos < end
        if pos < end:
            self._rest = bytes(data[pos:])

    def _check_order(self, kind: int, stream_id: int) -> None:
        block = self._block
        if not self.settled and kind != SETTINGS:
            raise RemoteProtocolError(ErrorCode.PROTOCOL_ERROR, "SETTINGS must come first")
        if block and (kind != frames.CONTINUATION or stream_id != block.stream_id):
            raise RemoteProtocolError(ErrorCode.PROTOCOL_ERROR, "a header block was not continued")

    def _begin_long(
        self,
        kind: int,
        flags: int,
        stream_id: int,
        size: int,
        rest: memoryview,
        events: list[Event],
    ) -> int:
        """A frame that is not just data, and not handled whole: returns the bytes it has used."""
        if kind == DATA:
            padding = rest[0] if rest else 0
            if padding >= size:
                raise RemoteProtocolError(ErrorCode.PROTOCOL_ERROR, "padding longer than the frame")
            self._begin_data(flags, stream_id, size, size - 1 - padding, events, padding)
            return 1
        if kind in _NAMES:
            fixed = kind not in _ANY_SIZE
            code = ErrorCode.FRAME_SIZE_ERROR if fixed else ErrorCode.ENHANCE_YOUR_CALM
            raise RemoteProtocolError(code, f"frame of {size} bytes")
        self._patience.spend(1, "unknown frames")
        self.data_stream, self.data_left, self._data_ended = None, size, False
        return 0

    # DATA

    def _begin_data(
        self,
        flags: int,
        stream_id: int,
        counted: int,
        size: int,
        events: list[Event],
        padding: int = 0,
    ) -> None:
        """A DATA frame begins that is not whole, not plain, or empty."""
        stream = self._count_data(stream_id, counted, size, events)
        ended = bool(flags & END_STREAM)
        if size:
            self.data_stream, self.data_left, self._data_ended = stream, size, ended
            self._padding = padding
            return
        self.data_stream, self.data_left = None, padding
        if ended and stream is not None:
            self._received_end(stream)
            events.append(DataReceived(stream, _EMPTY, True))
        elif not ended:
            self._patience.spend(1, "empty DATA frames")

    def _count_data(
        self, stream_id: int, counted: int, size: int, events: list[Event]
    ) -> Stream | None:
        """``counted`` bytes have come for the windows, with ``size`` bytes of data; returns the
        stream, if there is one that may have it."""
        self._owed += counted
        if self._owed >= CONNECTION_WINDOW // 4:
            self._give_back()
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_not_idle(stream_id)
            if limits.is_small(size):
                self._patience.spend(1, "data of streams that are over")
            return None
        stream.receive_window -= counted
        self._unread += counted
        if stream.received_end:
            self._break(stream, ErrorCode.STREAM_CLOSED, events)
            return None
        if stream.receive_window < 0:
            self._break(stream, ErrorCode.FLOW_CONTROL_ERROR, events)
            return None
        if counted > size:
            self.release(stream, counted - size)
        return stream

    def _continue_data(self, view: memoryview, pos: int, events: list[Event]) -> int:
        left = self.data_left
        stop = min(pos + left, len(view))
        self.data_left = left = left - (stop - pos)
        stream = self.data_stream
        if stream is not None and not stream.received_end:
            ended = self._data_ended and not left
            if ended:
                self._received_end(stream)
            events.append(DataReceived(stream, view[pos:stop], ended))
        if not left and self._padding:  # skipped as data of no stream
            self.data_stream, self.data_left, self._padding = None, self._padding, 0
        return stop

    def _give_back(self) -> None:
        """Open the connection's window again, unless too much is unread already."""
        if not self.server or self._unread <= UNREAD:
            self.outbox.control(frames.window_update(0, self._owed))
            self._owed = 0

    # Header blocks

    def _headers(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        fragment = payload
        if flags & frames.PADDED:
            fragment = frames.without_padding(payload)
        if flags & frames.WITH_PRIORITY:
            if len(fragment) < 5:
                raise RemoteProtocolError(ErrorCode.FRAME_SIZE_ERROR, "HEADERS too short")
            fragment = fragment[5:]
        ended = flags & END_STREAM == END_STREAM
        if flags & END_HEADERS:
            self._received_block(stream_id, fragment, ended, events)
        else:
            self._block = _Block(stream_id, ended, fragment)

    def _continuation(
        self, flags: int, stream_id: int, payload: bytes, events: list[Event]
    ) -> None:
        block = self._block
        if block is None:
            raise RemoteProtocolError(ErrorCode.PROTOCOL_ERROR, "nothing to continue")
        block.add(payload)
        if flags & END_HEADERS:
            self._block = None
            self._received_block(stream_id, b"".join(block.fragments), block.ended, events)

    def _received_block(
        self, stream_id: int, block: bytes, ended: bool, events: list[Event]
    ) -> None:
        try:
            head = self._decoder.decode(block)  # first of all: it keeps the table right
        except hpack.FieldsTooLarge:
            self._patience.spend(limits.OVERSIZED_HEADERS, "header lists over the limit")
            head = None
        stream = self.streams.get(stream_id)
        if stream is None:
            stream = self._accept(stream_id)
            if stream is None:
                return
            if head is None:  # nobody has heard of it yet
                self.outbox.control(frames.rst_stream(stream_id, ErrorCode.FRAME_SIZE_ERROR))
                self._forget(stream)
                return
        if head is None:
            self._break(stream, ErrorCode.FRAME_SIZE_ERROR, events)
            return
        if stream.received_end:
            self._break(stream, ErrorCode.STREAM_CLOSED, events)
            return
        trailers = self.server and stream.received_headers
        if trailers and not ended:
            self._break(stream, ErrorCode.PROTOCOL_ERROR, events)
            return
        stream.received_headers = True
        if ended:
            self._received_end(stream)
        if trailers:  # of a request: nobody wants to know more than that it ends
            events.append(DataReceived(stream, _EMPTY, True))
        else:
            events.append(HeadersReceived(stream, head, ended))

    def _accept(self, stream_id: int) -> Stream | None:
        """The new stream of an id; None for one that is over, or that we refuse."""
        if not (self.server and stream_id & 1 and stream_id > self._last_id):
            self._check_not_idle(stream_id)
            self._patience.spend(1, "headers of streams that are over")
            return None
        self._last_id = stream_id
        if self.refusing or len(self.streams) >= limits.MAX_STREAMS:
            self._patience.spend(limits.RESET, "streams")
            self.outbox.control(frames.rst_stream(stream_id, ErrorCode.REFUSED_STREAM))
            return None
        self._served_id = stream_id
        self._opened += 1
        stream = Stream(stream_id, self.outbox.stream_window, STREAM_WINDOW)
        self.streams[stream_id] = stream
        return stream

    # Ends

    def _received_end(self, stream: Stream) -> None:
        stream.received_end = True
        if stream.sent_end:
            self._over(stream)

    def _sent_end(self, stream: Stream) -> None:
        """Our END_STREAM has left the queue."""
        stream.sent_end = True
        if self.server and not stream.received_end:
            # The answer is complete, whatever the client still wants to say.
            stream.received_end = True
            self.outbox.control(frames.rst_stream(stream.id, ErrorCode.NO_ERROR))
        if stream.received_end:
            self._over(stream)

    def _forget(self, stream: Stream) -> None:
        stream.reset = stream.ending = stream.sent_end = stream.received_end = True
        self.outbox.drop(stream)
        self._over(stream)

    def _over(self, stream: Stream) -> None:
        if not stream.over:
            stream.over = True
            del self.streams[stream.id]
            self._unread -= STREAM_WINDOW - stream.receive_window - stream.owed

    def _break(self, stream: Stream, code: ErrorCode, events: list[Event]) -> None:
        """The peer broke the rules of a stream."""
        self.outbox.control(frames.rst_stream(stream.id, code))
        self._forget(stream)
        events.append(StreamReset(stream, code))
        self._blame("streams with errors")

    def _blame(self, what: str) -> None:
        """A stream did not end well, and the peer wanted it so."""
        self._broken += 1
        self._patience.spend(limits.RESET - 1, what)

    def _fail(self, code: ErrorCode, text: str) -> None:
        self.closed = True
        self.outbox.control(frames.goaway(self._served_id, code, text))

    # Checks

    def _work(self) -> int:
        """What has earned us patience: calls that ended well, data that went out."""
        ended = self._opened - self._broken - len(self.streams)
        return ended * limits.PER_CALL + self.outbox.data_frames * limits.PER_FRAME

    def _check_not_idle(self, stream_id: int) -> None:
        """A frame of an unknown stream is late, if the stream has ever been."""
        own = bool(stream_id & 1) != self.server
        if stream_id >= self._next_id if own else stream_id > self._last_id:
            raise RemoteProtocolError(ErrorCode.PROTOCOL_ERROR, "frame of an idle stream")
        if stream_id == 0:
            raise RemoteProtocolError(ErrorCode.PROTOCOL_ERROR, "frame without a stream")


class _Block:
    """A header block of which a part has come."""

    def __init__(self, stream_id: int, ended: bool, fragment: bytes) -> None:
        self.stream_id = stream_id
        self.ended = ended
        self.fragments = [fragment]
        self.size = len(fragment)

    def add(self, fragment: bytes) -> None:
        self.fragments.append(fragment)
        self.size += len(fragment)
        if self.size > limits.BLOCK_SIZE or len(self.fragments) > limits.MAX_CONTINUATIONS:
            raise RemoteProtocolError(ErrorCode.ENHANCE_YOUR_CALM, "header block too large")


_ANY_SIZE = (HEADERS, SETTINGS, frames.PUSH_PROMISE, frames.GOAWAY, frames.CONTINUATION)
_NAMES = {
    HEADERS: "HEADERS frames",
    frames.PRIORITY: "PRIORITY frames",
    frames.RST_STREAM: "streams broken off",
    SETTINGS: "SETTINGS frames",
    frames.PUSH_PROMISE: "PUSH_PROMISE frames",
    frames.PING: "pings",
    frames.GOAWAY: "GOAWAY frames",
    frames.WINDOW_UPDATE: "window updates",
    frames.CONTINUATION: "CONTINUATION frames",
}
