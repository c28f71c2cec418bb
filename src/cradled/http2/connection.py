"""Pure. One HTTP/2 connection, of either role, without I/O (RFC 9113).

``receive`` takes bytes as they come, in pieces of any size, and returns what happened as events;
the sending methods and the answers that the protocol asks for collect what ``take`` hands out
for the socket. A shell reads, feeds, acts on the events, and writes what it takes, until
``closed``: then it writes what is left and hangs up. Of a read that holds very many frames only
some are handled at a time (``more``), so that no peer keeps a shell from its other work.

Nothing that a peer sends raises. A peer that breaks the rules of a stream has the stream reset;
one that breaks those of the connection gets GOAWAY, and the connection is closed. Sending on a
stream that was reset, or on a closed connection, does nothing: the caller could not know yet.
Sending on a stream that the caller itself has ended raises LocalProtocolError.

This is what gRPC needs of HTTP/2, no more: no push, no priorities, no check of header fields.
DATA is passed on as it arrives, so a frame of any size needs no buffer; it is a view of what was
received, good until ``receive`` is called again. The connection's receive
window is given back at once, a stream's when its data has been consumed (``release``): a stream
that nobody reads stops itself and no other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cradled.http2 import frames, hpack
from cradled.http2.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEAD,
    HEAD_SIZE,
    HEADERS,
    MAX_STREAM_ID,
    MAX_WINDOW,
    PREFACE,
    SETTINGS,
    ErrorCode,
    LocalProtocolError,
    RemoteProtocolError,
    Setting,
)
from cradled.http2.hpack import Field
from cradled.http2.streams import (
    Buffer,
    DataReceived,
    Event,
    GoneAway,
    HeadersReceived,
    Stream,
    StreamReset,
)
from cradled.http2.windows import Outbox

STREAM_WINDOW = 4 << 20
CONNECTION_WINDOW = 16 << 20
FRAME_SIZE = 1 << 20  # the largest we take
HEADERS_LIMIT = 64 << 10  # of a list of fields, and of a block
_MAX_CONTINUATIONS = 256
_FRAMES_AT_A_TIME = 256
_EMPTY = memoryview(b"")
_DRAINING = b"draining"


class Connection:
    """One end of a connection.

    ``interpret`` makes of the fields of a header block what ``HeadersReceived.head`` is to be; it
    must not raise, and what it returns may be shared by several streams.
    """

    def __init__(self, server: bool, interpret: Callable[[list[Field]], Any] = list) -> None:
        self.server = server
        self.closed = False
        self.more = False  # call ``receive(b"")`` soon: there are more frames at hand
        self.gone_away = False  # the peer takes no new streams
        self.streams: dict[int, Stream] = {}
        self.outbox = Outbox(self._sent_end)
        self.max_streams = MAX_STREAM_ID  # that the peer allows at a time
        self._decoder = hpack.Decoder(interpret, HEADERS_LIMIT)
        self._rest = b""  # received and not parsed: a part of a frame
        self._data_left = 0  # of the DATA frame that is being received
        self._data_stream: Stream | None = None
        self._data_ended = False
        self._block: _Block | None = None  # a header block that is being continued
        self._owed = 0  # bytes received and not given back to the connection's window yet
        self._last_id = 0  # highest stream id of the peer
        self._served_id = 0  # highest that was not refused
        self._next_id = 1
        self._draining = False
        self._refusing = False
        self._table_update = b""  # due at the head of our next header block
        self._awaited = PREFACE if server else b""
        self._settled = False  # the peer's first SETTINGS came
        self._greet()

    # Receiving

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
        except hpack.FieldsTooLarge as error:
            self._fail(ErrorCode.ENHANCE_YOUR_CALM, str(error))
        except hpack.HpackError as error:
            self._fail(ErrorCode.COMPRESSION_ERROR, str(error))
        return events

    @property
    def under_way(self) -> tuple[Stream | None, int]:
        """Of the DATA frame that is being received: its stream, if there is one, and what is left.

        So many bytes more are data of that stream and nothing else.
        """
        return self._data_stream, self._data_left

    def release(self, stream: Stream, size: int) -> None:
        """Bytes of a stream have been consumed: the peer may send as many more."""
        stream.owed += size
        if stream.owed >= STREAM_WINDOW // 4 and not stream.received_end:
            stream.receive_window += stream.owed
            self.outbox.control(frames.window_update(stream.id, stream.owed))
            stream.owed = 0

    # Sending

    def open(self, block: bytes, end: bool = False) -> Stream:
        """Begin a stream with a header block (clients); see ``can_open``."""
        if not self.can_open:
            raise LocalProtocolError("no stream can be opened now")
        stream = Stream(self._next_id, self.outbox.stream_window, STREAM_WINDOW)
        self._next_id += 2
        self.streams[stream.id] = stream
        self.send_headers(stream, block, end)
        return stream

    @property
    def usable(self) -> bool:
        """New streams can be opened, now or when others have ended."""
        return not (self.closed or self.gone_away or self._next_id > MAX_STREAM_ID)

    @property
    def can_open(self) -> bool:
        """A stream can be opened now."""
        return self.usable and not self.server and len(self.streams) < self.max_streams

    def send_headers(self, stream: Stream, block: bytes, end: bool = False) -> None:
        """Send a header block: a request, a response or (``end``) trailers."""
        if self._sendable(stream):
            stream.ending = end
            self.outbox.headers(stream, self._table_update + block, end)
            self._table_update = b""

    def send_data(self, stream: Stream, data: Buffer, end: bool = False) -> None:
        """Send data; it is kept, not copied, and waits in ``stream.queued`` if it must."""
        if self._sendable(stream):
            stream.ending = end
            self.outbox.data(stream, data, end)

    def send_reply(
        self, stream: Stream, headers: bytes, prefix: bytes, body: bytes, trailers: bytes
    ) -> None:
        """Send a whole response: headers, data (prefix and body), trailers."""
        if not self._sendable(stream):
            return
        if self._table_update or not self.outbox.reply(stream, headers, prefix, body, trailers):
            self.send_headers(stream, headers)
            self.send_data(stream, prefix)
            self.send_data(stream, body)
            self.send_headers(stream, trailers, end=True)
        else:
            stream.ending = True
            self._sent_end(stream)

    def reset(self, stream: Stream, code: ErrorCode) -> None:
        """Break a stream off; no effect on one that is over."""
        if stream.id in self.streams:
            self.outbox.control(frames.rst_stream(stream.id, code))
            self._forget(stream)

    def drain(self) -> None:
        """Take no more streams, without losing those under way (servers).

        The peer first hears that the end is near; streams it opened before it heard are still
        served. Then it hears which was the last.
        """
        if not self._draining and not self.closed:
            self._draining = True
            self.outbox.control(frames.goaway(MAX_STREAM_ID, ErrorCode.NO_ERROR))
            self.outbox.control(frames.frame(frames.PING, 0, 0, _DRAINING))

    def close(self, code: ErrorCode = ErrorCode.NO_ERROR, text: str = "") -> None:
        """End the connection; streams that have not ended are lost."""
        if not self.closed:
            self._fail(code, text)

    def take(self, limit: int) -> list[Buffer]:
        """What is to be written now, data up to about ``limit`` bytes."""
        return self.outbox.take(limit)

    # The parts of receiving

    def _greet(self) -> None:
        """What each side says first, without waiting for the other."""
        if not self.server:
            self.outbox.control(PREFACE)
        values = [
            (Setting.INITIAL_WINDOW_SIZE, STREAM_WINDOW),
            (Setting.MAX_FRAME_SIZE, FRAME_SIZE),
            (Setting.MAX_HEADER_LIST_SIZE, HEADERS_LIMIT),
        ]
        if not self.server:
            values.insert(0, (Setting.ENABLE_PUSH, 0))
        self.outbox.control(frames.settings(values))
        more = CONNECTION_WINDOW - frames.DEFAULT_WINDOW
        self.outbox.control(frames.window_update(0, more))

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
            if self._data_left:
                pos = self._continue_data(view, pos, events)
                continue
            if end - pos < HEAD_SIZE:
                break
            word, flags, stream_id = unpack(data, pos)
            kind, size, stream_id = word & 0xFF, word >> 8, stream_id & MAX_STREAM_ID
            if size > FRAME_SIZE:
                raise RemoteProtocolError(ErrorCode.FRAME_SIZE_ERROR, f"frame of {size} bytes")
            if self._block is not None or not self._settled:
                self._check_order(kind, stream_id)
            start = pos + HEAD_SIZE
            if kind == DATA and not flags & frames.PADDED:
                pos = start
                self._begin_data(flags, stream_id, size, size, events)
                continue
            pos = start + size
            if pos > end:
                pos -= size + HEAD_SIZE
                break
            handle = _HANDLERS.get(kind)
            if handle is not None:
                handle(self, flags, stream_id, bytes(data[start:pos]), events)
        else:
            self.more = pos < end
        if pos < end:
            self._rest = bytes(data[pos:])

    def _check_order(self, kind: int, stream_id: int) -> None:
        block = self._block
        if not self._settled and kind != SETTINGS:
            raise RemoteProtocolError(ErrorCode.PROTOCOL_ERROR, "SETTINGS must come first")
        if block and (kind != frames.CONTINUATION or stream_id != block.stream_id):
            raise RemoteProtocolError(ErrorCode.PROTOCOL_ERROR, "a header block was not continued")

    # DATA

    def _begin_data(
        self, flags: int, stream_id: int, counted: int, size: int, events: list[Event]
    ) -> None:
        """A DATA frame begins: ``counted`` bytes for the windows, ``size`` bytes of data."""
        self._owed += counted
        if self._owed >= CONNECTION_WINDOW // 4:
            self.outbox.control(frames.window_update(0, self._owed))
            self._owed = 0
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_not_idle(stream_id)
        else:
            stream.receive_window -= counted
            if stream.received_end:
                self._break(stream, ErrorCode.STREAM_CLOSED, events)
            elif stream.receive_window < 0:
                self._break(stream, ErrorCode.FLOW_CONTROL_ERROR, events)
        ended = bool(flags & END_STREAM)
        if size:
            self._data_stream, self._data_left, self._data_ended = stream, size, ended
        elif ended and stream is not None and not stream.received_end:
            self._received_end(stream)
            events.append(DataReceived(stream, _EMPTY, True))

    def _continue_data(self, view: memoryview, pos: int, events: list[Event]) -> int:
        left = self._data_left
        stop = min(pos + left, len(view))
        self._data_left = left = left - (stop - pos)
        stream = self._data_stream
        if stream is not None and not stream.received_end:
            ended = self._data_ended and not left
            if ended:
                self._received_end(stream)
            events.append(DataReceived(stream, view[pos:stop], ended))
        return stop

    def _padded_data(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        data = frames.without_padding(flags, payload)
        self._begin_data(flags, stream_id, len(payload), len(data), events)
        if data:
            self._continue_data(memoryview(data), 0, events)

    # Header blocks

    def _headers(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        fragment = frames.without_padding(flags, payload)
        if flags & frames.WITH_PRIORITY:
            if len(fragment) < 5:
                raise RemoteProtocolError(ErrorCode.FRAME_SIZE_ERROR, "HEADERS too short")
            fragment = fragment[5:]
        if flags & END_HEADERS:
            self._received_block(stream_id, fragment, bool(flags & END_STREAM), events)
        else:
            self._block = _Block(stream_id, bool(flags & END_STREAM), fragment)

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
        head = self._decoder.decode(block)  # first of all: it keeps the table right
        stream = self.streams.get(stream_id)
        if stream is None:
            stream = self._accept(stream_id)
            if stream is None:
                return
        if stream.received_end:
            self._break(stream, ErrorCode.STREAM_CLOSED, events)
            return
        if self.server and stream.received_headers and not ended:
            self._break(stream, ErrorCode.PROTOCOL_ERROR, events)
            return
        stream.received_headers = True
        if ended:
            self._received_end(stream)
        events.append(HeadersReceived(stream, head, ended))

    def _accept(self, stream_id: int) -> Stream | None:
        """The new stream of an id; None for one that is over, or that we refuse."""
        if not (self.server and stream_id & 1 and stream_id > self._last_id):
            self._check_not_idle(stream_id)
            return None
        self._last_id = stream_id
        if self._refusing:
            self.outbox.control(frames.rst_stream(stream_id, ErrorCode.REFUSED_STREAM))
            return None
        self._served_id = stream_id
        stream = Stream(stream_id, self.outbox.stream_window, STREAM_WINDOW)
        self.streams[stream_id] = stream
        return stream

    # The other frames

    def _priority(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if stream_id == 0:
            raise RemoteProtocolError(ErrorCode.PROTOCOL_ERROR, "PRIORITY without a stream")
        _check_size(payload, 5)

    def _rst_stream(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        _check_size(payload, 4)
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_not_idle(stream_id)
            return
        self._forget(stream)
        events.append(StreamReset(stream, frames.NUMBER.unpack(payload)[0]))

    def _settings(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if stream_id:
            raise RemoteProtocolError(ErrorCode.PROTOCOL_ERROR, "SETTINGS of a stream")
        if flags & frames.ACK:
            _check_size(payload, 0)
            return
        if len(payload) % frames.SETTING.size:
            raise RemoteProtocolError(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS cut short")
        self._settled = True
        for setting, value in frames.SETTING.iter_unpack(payload):
            self._apply(setting, value)
        self.outbox.control(frames.frame(SETTINGS, frames.ACK, 0))

    def _apply(self, setting: int, value: int) -> None:
        outbox = self.outbox
        if setting == Setting.INITIAL_WINDOW_SIZE:
            self._check_window(value)
            growth = value - outbox.stream_window
            outbox.stream_window = value
            for stream in self.streams.values():
                self._check_window(stream.send_window + growth)
                outbox.grow_stream(stream, growth)
        elif setting == Setting.MAX_FRAME_SIZE:
            if not frames.DEFAULT_FRAME_SIZE <= value <= frames.LARGEST_FRAME_SIZE:
                raise RemoteProtocolError(ErrorCode.PROTOCOL_ERROR, f"frame size {value}")
            outbox.frame_size = value
        elif setting == Setting.MAX_CONCURRENT_STREAMS:
            self.max_streams = value
        elif setting == Setting.HEADER_TABLE_SIZE and value < hpack.TABLE_SIZE:
            self._table_update = b"\x20"  # to 0, for good: we never insert anything
        elif setting == Setting.ENABLE_PUSH and value > 1:
            raise RemoteProtocolError(ErrorCode.PROTOCOL_ERROR, f"ENABLE_PUSH {value}")

    def _push_promise(
        self, flags: int, stream_id: int, payload: bytes, events: list[Event]
    ) -> None:
        raise RemoteProtocolError(ErrorCode.PROTOCOL_ERROR, "push is off")

    def _ping(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        _check_size(payload, 8)
        if stream_id:
            raise RemoteProtocolError(ErrorCode.PROTOCOL_ERROR, "PING of a stream")
        if not flags & frames.ACK:
            self.outbox.control(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif self._draining and payload == _DRAINING:
            self._refusing = True
            self.outbox.control(frames.goaway(self._served_id, ErrorCode.NO_ERROR))

    def _goaway(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if stream_id or len(payload) < 8:
            raise RemoteProtocolError(ErrorCode.PROTOCOL_ERROR, "malformed GOAWAY")
        self.gone_away = True
        last = frames.NUMBER.unpack_from(payload)[0] & MAX_STREAM_ID
        for stream in list(self.streams.values()) if not self.server else ():
            if stream.id > last:
                self._forget(stream)
                events.append(StreamReset(stream, ErrorCode.REFUSED_STREAM))
        code = frames.NUMBER.unpack_from(payload, 4)[0]
        events.append(GoneAway(code, payload[8:].decode(errors="replace")))

    def _window_update(
        self, flags: int, stream_id: int, payload: bytes, events: list[Event]
    ) -> None:
        _check_size(payload, 4)
        increment = frames.NUMBER.unpack(payload)[0] & MAX_STREAM_ID
        if stream_id == 0:
            if increment == 0:
                raise RemoteProtocolError(ErrorCode.PROTOCOL_ERROR, "window update of 0")
            self._check_window(self.outbox.window + increment)
            self.outbox.grow(increment)
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_not_idle(stream_id)
        elif increment == 0:
            self._break(stream, ErrorCode.PROTOCOL_ERROR, events)
        elif stream.send_window + increment > MAX_WINDOW:
            self._break(stream, ErrorCode.FLOW_CONTROL_ERROR, events)
        else:
            self.outbox.grow_stream(stream, increment)

    # Ends

    def _received_end(self, stream: Stream) -> None:
        stream.received_end = True
        if stream.sent_end:
            self.streams.pop(stream.id, None)

    def _sent_end(self, stream: Stream) -> None:
        """Our END_STREAM has left the queue."""
        stream.sent_end = True
        if self.server and not stream.received_end:
            # The answer is complete, whatever the client still wants to say.
            stream.received_end = True
            self.outbox.control(frames.rst_stream(stream.id, ErrorCode.NO_ERROR))
        if stream.received_end:
            self.streams.pop(stream.id, None)

    def _forget(self, stream: Stream) -> None:
        stream.reset = stream.ending = stream.sent_end = stream.received_end = True
        self.outbox.drop(stream)
        self.streams.pop(stream.id, None)

    def _break(self, stream: Stream, code: ErrorCode, events: list[Event]) -> None:
        """The peer broke the rules of a stream."""
        self.outbox.control(frames.rst_stream(stream.id, code))
        self._forget(stream)
        events.append(StreamReset(stream, code))

    def _fail(self, code: ErrorCode, text: str) -> None:
        self.closed = True
        self.outbox.control(frames.goaway(self._served_id, code, text))

    # Checks

    def _sendable(self, stream: Stream) -> bool:
        """False if nobody would see what is sent."""
        if stream.reset or self.closed:
            return False
        if stream.ending:
            raise LocalProtocolError(f"stream {stream.id} has ended")
        return True

    def _check_not_idle(self, stream_id: int) -> None:
        """A frame of an unknown stream is late, if the stream has ever been."""
        own = bool(stream_id & 1) != self.server
        if stream_id >= self._next_id if own else stream_id > self._last_id:
            raise RemoteProtocolError(ErrorCode.PROTOCOL_ERROR, "frame of an idle stream")
        if stream_id == 0:
            raise RemoteProtocolError(ErrorCode.PROTOCOL_ERROR, "frame without a stream")

    def _check_window(self, window: int) -> None:
        if window > MAX_WINDOW:
            raise RemoteProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "window over 2^31-1")


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
        if self.size > HEADERS_LIMIT or len(self.fragments) > _MAX_CONTINUATIONS:
            raise RemoteProtocolError(ErrorCode.ENHANCE_YOUR_CALM, "header block too large")


def _check_size(payload: bytes, size: int) -> None:
    if len(payload) != size:
        raise RemoteProtocolError(ErrorCode.FRAME_SIZE_ERROR, f"frame of {len(payload)} bytes")


_HANDLERS: dict[int, Callable[[Connection, int, int, bytes, list[Event]], None]] = {
    DATA: Connection._padded_data,
    HEADERS: Connection._headers,
    frames.PRIORITY: Connection._priority,
    frames.RST_STREAM: Connection._rst_stream,
    SETTINGS: Connection._settings,
    frames.PUSH_PROMISE: Connection._push_promise,
    frames.PING: Connection._ping,
    frames.GOAWAY: Connection._goaway,
    frames.WINDOW_UPDATE: Connection._window_update,
    frames.CONTINUATION: Connection._continuation,
}
