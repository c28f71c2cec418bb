"""Pure. What may be sent when: flow control, and fair turns between streams.

Frames that are not DATA go out in the order they were made. DATA goes out at once where it is
small and both windows (stream, connection) have room; else it waits in its stream's queue, and
the streams that may send take turns of at most ``TURN`` bytes whenever ``take`` is called. When the
connection's window is small, turns are shorter. Headers of a stream never overtake its queued data.

A queue begins with data, which is not empty. The stream is ``scheduled``, and in ``_ready``, if its
own window allows to send some of it; the connection's window holds up all of them alike.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from cradled.http2 import frames
from cradled.http2.frames import DATA, END_STREAM, HEAD, HEADERS
from cradled.http2.streams import Buffer, Stream

TURN = 1 << 16
_LEAST_TURN = 1 << 14
LOW = 1 << 16  # a stream with fewer bytes queued is worth more data
_WORTH = 1 << 10  # bytes; for less, of what waits, a peer that opened its window gets no thanks
_HEADERS_FLAGS = frames.END_HEADERS
_TRAILERS_FLAGS = frames.END_HEADERS | frames.END_STREAM


class Outbox:
    """The sending half of a connection; ``on_end`` is told of each END_STREAM that goes out."""

    def __init__(self, on_end: Callable[[Stream], None]) -> None:
        self._on_end = on_end
        self.window = frames.DEFAULT_WINDOW  # of the connection
        self.stream_window = frames.DEFAULT_WINDOW  # of streams to come
        self.frame_size = frames.DEFAULT_FRAME_SIZE
        self.hold = False  # the socket is full: no data past the queues
        self.queued = 0  # bytes of data that wait in streams' queues
        self.data_frames = 0  # that have gone out and were worth it, but for those of ``reply``
        self.table_update = b""  # due at the head of the next header block
        self._frames: list[Buffer] = []
        self._ready: deque[Stream] = deque()

    def __bool__(self) -> bool:
        """There is something to take."""
        return bool(self._frames or (self._ready and self.window > 0))

    def control(self, frame: bytes) -> None:
        """Send a frame that no window holds back."""
        self._frames.append(frame)

    def headers(self, stream: Stream, block: bytes, end: bool) -> None:
        """Send a header block, behind what the stream has queued."""
        if stream.queue:
            stream.queue.append((HEADERS, block, end))
        else:
            self._frames.append(self._header_frames(stream, block, end))
            if end:
                self._on_end(stream)

    def data(self, stream: Stream, data: Buffer, end: bool) -> None:
        """Send data, now or when there is room."""
        size = len(data)
        if not stream.queue and (not size or self._fits(stream, size)):
            self._frames.append(HEAD.pack(size << 8, END_STREAM if end else 0, stream.id))
            self._frames.append(data)
            self.window -= size
            self.data_frames += 1
            stream.send_window -= size
            if end:
                self._on_end(stream)
            return
        if stream.queue is None:
            stream.queue = deque()
        stream.queue.append((DATA, memoryview(data), end))
        stream.queued += size
        self.queued += size
        self._schedule(stream)

    def reply(
        self, stream: Stream, headers: bytes, prefix: bytes, body: bytes, trailers: bytes
    ) -> bool:
        """Send headers, data and trailers as one piece; False if they must go one by one.

        It does not tell ``on_end``.
        """
        size = len(prefix) + len(body)
        if (
            size > self.window
            or size > stream.send_window
            or size > self.frame_size
            or self.hold
            or stream.queue
            or self.table_update
        ):
            return False
        stream_id = stream.id
        self._frames.append(
            b"".join(
                (
                    HEAD.pack(len(headers) << 8 | HEADERS, _HEADERS_FLAGS, stream_id),
                    headers,
                    HEAD.pack(size << 8, 0, stream_id),
                    prefix,
                    body,
                    HEAD.pack(len(trailers) << 8 | HEADERS, _TRAILERS_FLAGS, stream_id),
                    trailers,
                )
            )
        )
        self.window -= size
        stream.send_window -= size
        return True

    def drop(self, stream: Stream) -> None:
        """Forget what a stream has queued."""
        if stream.queue:
            stream.queue.clear()
        self.queued -= stream.queued
        stream.queued = 0
        _tell_drained(stream)

    def grow(self, increment: int) -> None:
        """The connection's window has grown."""
        self.window += increment

    def grow_stream(self, stream: Stream, increment: int) -> None:
        """A stream's window has grown, or shrunk."""
        stream.send_window += increment
        if stream.queue and stream.send_window > 0:
            self._schedule(stream)

    def take(self, limit: int) -> list[Buffer]:
        """What is to be written now: all control frames, and data up to about ``limit`` bytes."""
        out, self._frames = self._frames, []
        ready = self._ready
        while ready and limit > 0 and self.window > 0:
            share = max(_LEAST_TURN, self.window // len(ready))
            limit -= self._turn(ready.popleft(), min(limit, TURN, share), out)
        return out

    def _header_frames(self, stream: Stream, block: bytes, end: bool) -> bytes:
        block, self.table_update = self.table_update + block, b""
        return frames.header_frames(stream.id, block, end, self.frame_size)

    def _fits(self, stream: Stream, size: int) -> bool:
        return (
            size <= self.frame_size
            and size <= self.window
            and size <= stream.send_window
            and not self.hold
        )

    def _schedule(self, stream: Stream) -> None:
        if not stream.scheduled:
            stream.scheduled = True
            self._ready.append(stream)

    def _turn(self, stream: Stream, budget: int, out: list[Buffer]) -> int:
        """Send what one turn allows, put the stream where it belongs, return the bytes sent."""
        queue = stream.queue
        left = budget
        while queue:
            kind, payload, end = queue[0]
            if kind == HEADERS:
                out.append(self._header_frames(stream, bytes(payload), end))
                queue.popleft()
                if end:
                    self._on_end(stream)
                continue
            size = max(0, min(len(payload), left, self.window, stream.send_window))
            if not size and len(payload):
                if stream.send_window > 0:
                    self._ready.append(stream)
                else:
                    stream.scheduled = False
                break
            whole = size == len(payload)
            self._append_data(stream, payload[:size], end and whole, out)
            left -= size
            if whole:
                queue.popleft()
            else:
                queue[0] = (kind, payload[size:], end)
        else:
            stream.scheduled = False
        if stream.queued <= LOW:
            _tell_drained(stream)
        return budget - left

    def _append_data(self, stream: Stream, data: Buffer, end: bool, out: list[Buffer]) -> None:
        size, step, stream_id = len(data), self.frame_size, stream.id
        self.window -= size
        stream.send_window -= size
        stream.queued -= size
        self.queued -= size
        if size >= _WORTH:
            self.data_frames += -(-size // step)
        at = 0
        while size - at > step:
            out.append(HEAD.pack(step << 8, 0, stream_id))
            out.append(data[at : at + step])
            at += step
        out.append(HEAD.pack((size - at) << 8, END_STREAM if end else 0, stream_id))
        out.append(data[at:])
        if end:
            self._on_end(stream)


def _tell_drained(stream: Stream) -> None:
    drained, stream.drained = stream.drained, None
    if drained is not None:
        drained()
