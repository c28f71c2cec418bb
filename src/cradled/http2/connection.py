"""Pure. One HTTP/2 connection, of either role, without I/O (RFC 9113).

``receive`` takes bytes as they come, in pieces of any size, and returns what happened as events;
the sending methods and the answers that the protocol asks for collect what ``take`` hands out
for the socket. A shell reads, feeds, acts on the events, and writes what it takes, until
``closed``: then it writes what is left and hangs up. Of a read that holds very many frames only
some are handled at a time (``more``), so that no peer keeps a shell from its other work.

Nothing that a peer sends raises. A peer that breaks the rules of a stream has the stream reset;
one that breaks those of the connection, or tries its patience (``http2.limits``), gets GOAWAY,
and the connection is closed. Sending on a stream that was reset, or on a closed connection, does
nothing: the caller could not know yet. Sending on a stream that the caller itself has ended
raises LocalProtocolError.

This is what gRPC needs of HTTP/2, no more: no push, no priorities, no check of header fields.
Data is a view of what was received, good until ``receive`` is called again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar

from cradled.http2 import frames, hpack
from cradled.http2.frames import (
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
from cradled.http2.limits import FRAME_SIZE, HEADERS_LIMIT
from cradled.http2.receiver import CONNECTION_WINDOW, STREAM_WINDOW, Handler, Receiver
from cradled.http2.streams import Buffer, Event, GoneAway, Stream, StreamReset

_DRAINING = b"draining"


class Connection(Receiver):
    """One end of a connection.

    ``interpret`` makes of the fields of a header block what ``HeadersReceived.head`` is to be; it
    must not raise, and what it returns may be shared by several streams. ``clock`` is in seconds.
    """

    def __init__(
        self,
        server: bool,
        interpret: Callable[[list[Field]], Any] = list,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(server, interpret, clock)
        self.gone_away = False  # the peer takes no new streams
        self.max_streams = MAX_STREAM_ID  # that the peer allows at a time
        self.peer_headers_limit = MAX_WINDOW  # bytes of a list of fields that the peer takes
        self._encoder = hpack.Encoder()
        self._draining = False
        self._greet()

    def encode(self, fields: tuple[Field, ...]) -> bytes:
        """A header block of fields that recur; it must be sent at once, see ``hpack.Encoder``."""
        return self._encoder.encode(fields)

    def open(self, block: bytes, end: bool = False) -> Stream:
        """Begin a stream with a header block (clients); see ``can_open``."""
        if not self.can_open:
            raise LocalProtocolError("no stream can be opened now")
        stream = Stream(self._next_id, self.outbox.stream_window, STREAM_WINDOW)
        self._next_id += 2
        self._opened += 1
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
            self.outbox.headers(stream, block, end)

    def send_data(self, stream: Stream, data: Buffer, end: bool = False) -> None:
        """Send data; it is kept, not copied, and waits in ``stream.queued`` if it must."""
        if self._sendable(stream):
            stream.ending = end
            self.outbox.data(stream, data, end)

    def send_reply(
        self, stream: Stream, headers: bytes, prefix: bytes, body: bytes, trailers: bytes
    ) -> None:
        """Send a whole response: headers, data (prefix and body), trailers."""
        if (stream.reset or stream.ending or self.closed) and not self._sendable(stream):
            return
        if not self.outbox.reply(stream, headers, prefix, body, trailers):
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

    def reject(self, stream: Stream, code: ErrorCode) -> None:
        """Break a stream off because of what it carried: that tries our patience."""
        self.reset(stream, code)
        try:
            self._blame("streams with errors")
        except RemoteProtocolError as error:
            self.close(error.code, str(error))

    def drain(self) -> None:
        """Take no more streams, without losing those under way (servers).

        The peer first hears that the end is near; streams it opened before it heard are still
        served. When it has heard, or on ``refuse``, it is told which was the last.
        """
        if not self._draining and not self.closed:
            self._draining = True
            self.outbox.control(frames.goaway(MAX_STREAM_ID, ErrorCode.NO_ERROR))
            self.outbox.control(frames.frame(frames.PING, 0, 0, _DRAINING))

    def refuse(self) -> None:
        """Turn new streams away from now on (servers)."""
        if not self.refusing and not self.closed:
            self.refusing = True
            self.outbox.control(frames.goaway(self._served_id, ErrorCode.NO_ERROR))

    def close(self, code: ErrorCode = ErrorCode.NO_ERROR, text: str = "") -> None:
        """End the connection; streams that have not ended are lost."""
        if not self.closed:
            self._fail(code, text)

    def take(self, limit: int) -> list[Buffer]:
        """What is to be written now, data up to about ``limit`` bytes."""
        return self.outbox.take(limit)

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

    def _sendable(self, stream: Stream) -> bool:
        """False if nobody would see what is sent."""
        if stream.reset or self.closed:
            return False
        if stream.ending:
            raise LocalProtocolError(f"stream {stream.id} has ended")
        return True

    # The frames that steer

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
        answered = not self.server and stream.received_end  # it wants no more of our request
        self._forget(stream)
        events.append(StreamReset(stream, frames.NUMBER.unpack(payload)[0]))
        if not answered:
            self._blame("streams broken off")

    def _settings(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if stream_id:
            raise RemoteProtocolError(ErrorCode.PROTOCOL_ERROR, "SETTINGS of a stream")
        if flags & frames.ACK:
            _check_size(payload, 0)
            return
        if len(payload) % frames.SETTING.size:
            raise RemoteProtocolError(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS cut short")
        self.settled = True
        window = self.outbox.stream_window
        self._patience.spend(len(payload) // frames.SETTING.size, "settings")
        for setting, value in frames.SETTING.iter_unpack(payload):
            self._apply(setting, value)
        self._grow_streams(self.outbox.stream_window - window)
        self.outbox.control(frames.frame(SETTINGS, frames.ACK, 0))

    def _apply(self, setting: int, value: int) -> None:
        outbox = self.outbox
        if setting == Setting.INITIAL_WINDOW_SIZE:
            _check_window(value)
            outbox.stream_window = value
        elif setting == Setting.MAX_FRAME_SIZE:
            if not frames.DEFAULT_FRAME_SIZE <= value <= frames.LARGEST_FRAME_SIZE:
                raise RemoteProtocolError(ErrorCode.PROTOCOL_ERROR, f"frame size {value}")
            outbox.frame_size = value
        elif setting == Setting.MAX_CONCURRENT_STREAMS:
            self.max_streams = value
        elif setting == Setting.MAX_HEADER_LIST_SIZE:
            self.peer_headers_limit = value
        elif setting == Setting.HEADER_TABLE_SIZE:
            outbox.table_update = self._encoder.resize(value) or outbox.table_update
        elif setting == Setting.ENABLE_PUSH and value > 1:
            raise RemoteProtocolError(ErrorCode.PROTOCOL_ERROR, f"ENABLE_PUSH {value}")

    def _grow_streams(self, growth: int) -> None:
        """The initial window has changed: once for all that one frame says of it."""
        if growth:
            self._patience.spend(len(self.streams) // 16, "settings")
            for stream in self.streams.values():
                _check_window(stream.send_window + growth)
                self.outbox.grow_stream(stream, growth)

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
            self.refuse()

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
            _check_window(self.outbox.window + increment)
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

    handlers: ClassVar[dict[int, Handler]] = {
        frames.PRIORITY: _priority,
        frames.RST_STREAM: _rst_stream,
        SETTINGS: _settings,
        frames.PUSH_PROMISE: _push_promise,
        frames.PING: _ping,
        frames.GOAWAY: _goaway,
        frames.WINDOW_UPDATE: _window_update,
        frames.CONTINUATION: Receiver._continuation,
    }


def _check_size(payload: bytes, size: int) -> None:
    if len(payload) != size:
        raise RemoteProtocolError(ErrorCode.FRAME_SIZE_ERROR, f"frame of {len(payload)} bytes")


def _check_window(window: int) -> None:
    if window > MAX_WINDOW:
        raise RemoteProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "window over 2^31-1")
