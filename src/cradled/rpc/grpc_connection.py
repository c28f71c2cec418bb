"""Async. What both ends of a gRPC connection do with their socket.

Reads go into a buffer that all connections share, and what is in it is used up before the next
one. While a long frame of a long message comes in, reads go to where the message is put together.

Frames that are made while one read is handled, or in one turn of the loop, go out in one write.
Data is handed to the socket in chunks while it takes them; the rest waits in the queues of
``http2.windows``, where streams take turns, and whoever sends on such a stream waits with it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from cradled import errors
from cradled.http2.connection import Connection
from cradled.http2.hpack import Field
from cradled.http2.streams import Buffer, Event, Stream
from cradled.http2.windows import LOW
from cradled.rpc.grpc_wire import MAX_MESSAGE, PREFIX, Account, MessageReader
from cradled.rpc.service import Batch

_CHUNK = 256 << 10  # bytes handed to the socket at a time
_JOINED = 16 << 10  # messages up to this size are copied behind their prefix
_CONTROL_LIMIT = 1 << 20  # bytes a peer may leave unread before we stop reading from it
LAST_WORDS = 1.0  # seconds for a peer to read what we said before we hung up
_READ = 256 << 10  # bytes read at a time
_SMALL = 16 << 10  # reads up to this size are copied: for small frames that is less trouble
_LONG = 64 << 10  # with so much of a frame to come, it is read to where it belongs


# Why we do not read for a while.
MORE = 1  # what was read last is not used up
UNREAD = 2  # the peer does not read what we answer
BUSY = 4  # what was begun for the peer in vain has not ended yet


class _Shared(threading.local):
    """What the connections of a loop's thread read into."""

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(_READ))


_shared = _Shared()


class GrpcConnection(asyncio.BufferedProtocol):
    """One socket and the HTTP/2 connection on it; the roles add what they do with events."""

    def __init__(self, server: bool, interpret: Callable[[list[Field]], Any]) -> None:
        self.http2 = Connection(server, interpret)
        self.loop = asyncio.get_running_loop()
        self._buffer = _shared.buffer
        self._place: memoryview | None = None  # where the next bytes belong
        self.account = Account()
        self.max_send = MAX_MESSAGE
        self._held = 0  # reasons not to read
        self._hanging_up: asyncio.TimerHandle | None = None
        self._paused = False
        self._flushing = False
        self._unwritten = 0  # bytes of small messages since the last write

    def handle(self, event: Event) -> None:
        """Act on what the peer did."""
        raise NotImplementedError

    def handled(self) -> None:
        """All events of a read have been acted on, and what that made has been written."""

    def reader(self, stream: Stream) -> MessageReader | None:
        """What puts the messages of a stream together, if somebody wants them."""
        raise NotImplementedError

    # The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast("asyncio.Transport", transport)  # uvloop's is none
        transport.set_write_buffer_limits(high=2 * _CHUNK)
        self.flush()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer if self._place is None else self._place

    def buffer_updated(self, nbytes: int) -> None:
        place, self._place = self._place, None
        if place is not None:
            self.data_received(place[:nbytes])
        elif nbytes <= _SMALL:
            self.data_received(bytes(self._buffer[:nbytes]))
        else:
            self.data_received(self._buffer[:nbytes])
        left = self.http2.data_left
        if left >= _LONG and (stream := self.http2.data_stream) is not None:
            reader = self.reader(stream)
            self._place = None if reader is None else reader.room(left)

    def data_received(self, data: bytes | memoryview) -> None:
        """Act on what the peer sent."""
        self._flushing = True  # all that is made now goes out below
        for event in self.http2.receive(data):
            self.handle(event)
        self.flush()
        if self.http2.closed:
            self.hang_up(linger=self.http2.server)
        elif self.http2.more:
            self.hold(MORE)
            self.loop.call_soon(self._continue)
        self.handled()

    def _continue(self) -> None:
        if self._held == MORE:  # else it goes on when the other reasons have gone
            self.unhold(MORE)
            self.data_received(b"")

    def hold(self, reason: int) -> None:
        """Stop reading."""
        if not self._held and not self.transport.is_closing():
            self.transport.pause_reading()
        self._held |= reason

    def unhold(self, reason: int) -> None:
        """Go on reading, unless there are other reasons not to."""
        if not self._held & reason:
            return
        self._held &= ~reason
        if self._held == MORE:
            self.loop.call_soon(self._continue)
        elif not self._held and not self.transport.is_closing():
            self.transport.resume_reading()

    def hang_up(self, linger: bool = False) -> None:
        """Close the connection, with a little time for the peer to read what we have said.

        One that may still be sending would not get to read it, if we did not go on reading:
        ``linger``.
        """
        if self._hanging_up is not None:
            return
        self._hanging_up = self.loop.call_later(LAST_WORDS, self.transport.abort)
        if linger and self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._hanging_up is not None:
            self._hanging_up.cancel()
        self.http2.close()

    def pause_writing(self) -> None:
        self._paused = self.http2.outbox.hold = True

    def resume_writing(self) -> None:
        self._paused = self.http2.outbox.hold = False
        self.unhold(UNREAD)
        self.flush()
        self.handled()

    # What calls do

    def send_message(self, stream: Stream, *parts: Buffer, end: bool = False) -> None:
        """Send a message; raises ResourceExhausted for one over the limit."""
        size = sum(map(len, parts))
        if size > self.max_send:
            raise too_large(size, self.max_send)
        prefix = PREFIX.pack(0, size)
        if size <= _JOINED:
            self.http2.send_data(stream, b"".join((prefix, *parts)), end)
            self._flush_after(size)
            return
        self.http2.send_data(stream, prefix)
        for part in parts[:-1]:
            self.http2.send_data(stream, part)
        self.http2.send_data(stream, parts[-1], end)
        self.flush()

    def send_batch(self, stream: Stream, batch: Batch) -> None:
        """Send several messages; raises ResourceExhausted for one over the limit."""
        batch.framed = framed = batch.framed or _framed(batch.messages)
        if len(framed) > self.max_send and (size := max(map(len, batch.messages))) > self.max_send:
            raise too_large(size, self.max_send)
        self.http2.send_data(stream, framed)
        self._flush_after(len(framed))

    async def drained(self, stream: Stream) -> None:
        """Wait until a stream is worth more data, or is over."""
        if stream.queued > LOW:
            future = self.loop.create_future()
            stream.drained = partial(wake, future)
            await future

    def release(self, stream: Stream, size: int) -> None:
        """Data of a stream has been consumed: the peer may send more."""
        self.http2.release(stream, size)
        if self.http2.outbox:
            self.flush_soon()

    def flush(self) -> None:
        """Write what is there to be written."""
        self._flushing = False
        self._unwritten = 0
        outbox, transport = self.http2.outbox, self.transport
        while outbox and self._hanging_up is None and not transport.is_closing():
            pieces = outbox.take(0 if self._paused else _CHUNK)
            if pieces:
                transport.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))
            if self._paused:
                if transport.get_write_buffer_size() > _CONTROL_LIMIT:
                    self.hold(UNREAD)
                break

    def _flush_after(self, size: int) -> None:
        """Write soon, or at once where many small messages have gathered."""
        self._unwritten += size
        if self._unwritten < _CHUNK:
            self.flush_soon()
        else:  # a sender that never waits must notice when the socket is full
            self.flush()

    def flush_soon(self) -> None:
        """Write before the loop waits again."""
        if not self._flushing:
            self._flushing = True
            self.loop.call_soon(self.flush)


def _framed(messages: Sequence[bytes]) -> bytes:
    return b"".join([PREFIX.pack(0, len(message)) + message for message in messages])


def wake(future: asyncio.Future[None] | None) -> None:
    """Resolve a future that somebody may wait for."""
    if future is not None and not future.done():
        future.set_result(None)


def too_large(size: int, limit: int) -> errors.Error:
    """What the sender of a message of that size is told."""
    text = f"grpc: trying to send message larger than max ({size} vs. {limit})"
    return errors.ResourceExhausted(text, verbatim=True)
