"""Pure. A ttrpc connection without I/O, for both roles.

Bytes from the peer go into ``receive_data``, which returns events; ``send_*`` queue frames, and
``data_to_send`` hands over what is queued. What a peer does wrong never raises: it becomes a reply
or ends a stream. ``LocalError`` is raised for wrong use by our own side.

What a client can make a server hold is bounded: by ``MAX_OPEN`` calls that have not ended, and
``MAX_OPEN_BYTES`` of their requests. Calls beyond are refused. (How much is queued to be sent, and
how much streamed data waits, is for the shell to bound: it stops reading.)

A stream is open from its request to its response or, where results are streamed, to the last data
frame. A call's kind is told by the request's flags: 0 is unary; ``REMOTE_CLOSED`` and
``REMOTE_OPEN`` are streaming, with and without the client's side finished. A unary or
client-streaming call ends with ``send_response``, server-streaming ends with ``send_data`` or
``end_stream``, or with a ``send_response`` that carries an error.

Imported by the shim: nothing but this package and ``struct`` at run time.
"""

from __future__ import annotations

from cradled.ttrpc.envelope import (
    Request,
    Response,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)
from cradled.ttrpc.frames import (
    DATA,
    MAX_DATA,
    NO_DATA,
    REMOTE_CLOSED,
    REMOTE_OPEN,
    REQUEST,
    RESPONSE,
    Frame,
    FrameReader,
    frame,
    too_long,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

CLIENT, SERVER = 1, 2

OK = 0
INVALID_ARGUMENT = 3
RESOURCE_EXHAUSTED = 8
INTERNAL = 13

MAX_OPEN = 1 << 14
MAX_OPEN_BYTES = 64 << 20

_LAST_STREAM_ID = 0xFFFFFFFF

# All smaller requests together are small.
_WORTH_COUNTING = 4096

# Which sides of an open stream may still send.
_LOCAL, _REMOTE = 1, 2


class LocalError(Exception):
    """Our own side used the connection wrongly."""


class RequestReceived:
    """A peer's call. ``flags`` tells its kind; ``timeout_nano`` is relative, 0 for none."""

    __slots__ = ("flags", "metadata", "method", "payload", "service", "stream_id", "timeout_nano")

    def __init__(self, stream_id: int, flags: int, request: Request) -> None:
        self.stream_id = stream_id
        self.flags = flags
        self.service = request.service
        self.method = request.method
        self.payload = request.payload
        self.timeout_nano = request.timeout_nano
        self.metadata = request.metadata


class ResponseReceived:
    """The end of a call of ours; ``code`` 0 is success."""

    __slots__ = ("code", "message", "payload", "stream_id")

    def __init__(self, stream_id: int, code: int, message: str, payload: bytes) -> None:
        self.stream_id = stream_id
        self.code = code
        self.message = message
        self.payload = payload


class DataReceived:
    """One streamed message (``payload`` None: none), and whether the peer sends no more."""

    __slots__ = ("end", "payload", "stream_id")

    def __init__(self, stream_id: int, payload: bytes | None, end: bool) -> None:
        self.stream_id = stream_id
        self.payload = payload
        self.end = end


class StreamAborted:
    """The client broke the rules within a call: it is answered already, the handler may stop."""

    __slots__ = ("code", "message", "stream_id")

    def __init__(self, stream_id: int, code: int, message: str) -> None:
        self.stream_id = stream_id
        self.code = code
        self.message = message


if TYPE_CHECKING:
    Event = RequestReceived | ResponseReceived | DataReceived | StreamAborted


class Connection:
    """One side of a connection; ``role`` is ``CLIENT`` or ``SERVER``.

    ``derailed``: a server has sent what is no frame, after which nothing else it sends is one.
    """

    __slots__ = ("_held", "_last_id", "_out", "_reader", "_role", "_sizes", "_streams", "derailed")

    def __init__(self, role: int) -> None:
        self._role = role
        self._reader = FrameReader()
        self._out: list[bytes] = []
        self._streams: dict[int, int] = {}
        self._sizes: dict[int, int] = {}  # of requests, where they are worth counting
        self._held = 0
        self._last_id = -1 if role == CLIENT else 0
        self.derailed = False

    @property
    def open_streams(self) -> int:
        """Calls that have not ended yet."""
        return len(self._streams)

    def is_open(self, stream_id: int) -> bool:
        """Whether this side may still send on the stream."""
        return bool(self._streams.get(stream_id, 0) & _LOCAL)

    def receive_data(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """Take bytes from the peer, return what they amount to."""
        events: list[Event] = []
        receive = self._client_frame if self._role == CLIENT else self._server_frame
        for received in self._reader.feed(data):
            event = receive(received)
            if event is not None:
                events.append(event)
        return events

    def data_to_send(self) -> bytes:
        """All queued frames; they count as sent."""
        out = self._out
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        return data

    # Client

    def send_request(
        self,
        service: str,
        method: str,
        payload: bytes,
        *,
        timeout_nano: int = 0,
        metadata: Sequence[tuple[str, str]] = (),
        flags: int = 0,
    ) -> int:
        """Begin a call and return its stream id.

        Raises LocalError for a request over the limit or when stream ids are used up.
        """
        if self._role != CLIENT:
            raise LocalError("only a client sends requests")
        stream_id = self._last_id + 2
        if stream_id > _LAST_STREAM_ID:
            raise LocalError("stream ids are used up")
        body = encode_request(Request(service, method, payload, timeout_nano, metadata))
        if len(body) > MAX_DATA:
            raise LocalError(too_long(len(body)))
        self._last_id = stream_id
        self._streams[stream_id] = _LOCAL | _REMOTE if flags & REMOTE_OPEN else _REMOTE
        self._out.append(frame(stream_id, REQUEST, flags, body))
        return stream_id

    def forget(self, stream_id: int) -> None:
        """Give up a call: whatever still comes for it is dropped (ttrpc cannot tell the peer)."""
        self._streams.pop(stream_id, None)

    # Server

    def send_response(
        self, stream_id: int, payload: bytes = b"", *, code: int = OK, message: str = ""
    ) -> None:
        """End a call. A payload over the limit is answered RESOURCE_EXHAUSTED instead."""
        if not self._end(stream_id) or self._role != SERVER:
            raise LocalError(f"no open call {stream_id}")
        self._respond(stream_id, Response(payload, code, message))

    # Both

    def send_data(self, stream_id: int, payload: bytes, *, end: bool = False) -> None:
        """Send one message of a stream; ``end`` says it is our last."""
        if not self.is_open(stream_id):
            raise LocalError(f"stream {stream_id} is not open for sending")
        if len(payload) > MAX_DATA:
            raise LocalError(too_long(len(payload)))
        self._out.append(frame(stream_id, DATA, REMOTE_CLOSED if end else 0, payload))
        if end:
            self._finish_local(stream_id)

    def end_stream(self, stream_id: int) -> None:
        """Say that we send no more on a stream."""
        if not self.is_open(stream_id):
            raise LocalError(f"stream {stream_id} is not open for sending")
        self._out.append(frame(stream_id, DATA, REMOTE_CLOSED | NO_DATA))
        self._finish_local(stream_id)

    # Inside

    def _end(self, stream_id: int) -> bool:
        """Forget a stream; whether there was one."""
        if self._sizes:
            self._held -= self._sizes.pop(stream_id, 0)
        return self._streams.pop(stream_id, None) is not None

    def _finish_local(self, stream_id: int) -> None:
        # A server's last word ends the call even if the client has more to say.
        if self._role == SERVER:
            self._end(stream_id)
        else:
            self._streams[stream_id] &= ~_LOCAL

    def _respond(self, stream_id: int, response: Response) -> None:
        body = encode_response(response)
        if len(body) > MAX_DATA:
            body = encode_response(Response(b"", RESOURCE_EXHAUSTED, too_long(len(body))))
        self._out.append(frame(stream_id, RESPONSE, 0, body))

    def _refuse(self, stream_id: int, code: int, message: str) -> Event | None:
        """Answer a violation; the handler of a call it belongs to is told."""
        self._respond(stream_id, Response(b"", code, message))
        if not self._end(stream_id):
            return None
        return StreamAborted(stream_id, code, message)

    def _server_frame(self, received: Frame) -> Event | None:
        stream_id, data = received.stream_id, received.data
        if data is None:
            return self._refuse(stream_id, RESOURCE_EXHAUSTED, too_long(received.length))
        if stream_id % 2 != 1:
            text = "StreamID must be odd for client initiated streams"
            return self._refuse(stream_id, INVALID_ARGUMENT, text)
        if received.kind == REQUEST:
            return self._request(stream_id, received.flags, data)
        if received.kind == DATA:
            return self._client_data(stream_id, received.flags, data)
        return None

    def _request(self, stream_id: int, flags: int, data: bytes) -> Event | None:
        if stream_id <= self._last_id:
            text = "StreamID cannot be re-used and must increment"
            return self._refuse(stream_id, INVALID_ARGUMENT, text)
        self._last_id = stream_id
        try:
            request = decode_request(data)
        except ValueError as error:
            text = f"unmarshal request error: {error}"
            return self._refuse(stream_id, INVALID_ARGUMENT, text)
        if len(self._streams) >= MAX_OPEN or self._held + len(data) > MAX_OPEN_BYTES:
            return self._refuse(stream_id, RESOURCE_EXHAUSTED, "too many calls at once")
        if len(data) >= _WORTH_COUNTING:
            self._sizes[stream_id] = len(data)
            self._held += len(data)
        self._streams[stream_id] = _LOCAL | _REMOTE if flags & REMOTE_OPEN else _LOCAL
        return RequestReceived(stream_id, flags, request)

    def _client_data(self, stream_id: int, flags: int, data: bytes) -> Event | None:
        state = self._streams.get(stream_id)
        if state is None:
            return self._refuse(stream_id, INVALID_ARGUMENT, "StreamID is no longer active")
        if not state & _REMOTE:
            text = "data handling error: ttrpc: stream closed"
            return self._refuse(stream_id, INVALID_ARGUMENT, text)
        end = bool(flags & REMOTE_CLOSED)
        if end:
            self._streams[stream_id] = state & ~_REMOTE
        return DataReceived(stream_id, None if flags & NO_DATA else data, end)

    def _client_frame(self, received: Frame) -> Event | None:
        stream_id, data = received.stream_id, received.data
        if data is None and received.kind not in (RESPONSE, DATA):
            self.derailed = True
        if stream_id not in self._streams:
            return None  # an answer to a call that was given up
        if data is None:
            del self._streams[stream_id]
            text = too_long(received.length)
            return ResponseReceived(stream_id, RESOURCE_EXHAUSTED, text, b"")
        if received.kind == RESPONSE:
            del self._streams[stream_id]
            try:
                response = decode_response(data)
            except ValueError as error:
                return ResponseReceived(stream_id, INTERNAL, f"bad response: {error}", b"")
            return ResponseReceived(stream_id, response.code, response.message, response.payload)
        if received.kind == DATA:
            end = bool(received.flags & REMOTE_CLOSED)
            if end:
                del self._streams[stream_id]
            return DataReceived(stream_id, None if received.flags & NO_DATA else data, end)
        return None
