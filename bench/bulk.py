"""A content client that costs next to nothing: one blocking socket, frames over the caller's bytes.

What a client does with a blob takes as long as what the daemon does; a bench of the daemon wants
the first to be small. The protocol is followed to the letter (windows, frame sizes, a reply for
each message), but a message is a few bytes before a view of the data, and what comes in is
counted, not kept.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

from cradled.api import content_pb2 as pb
from cradled.convert.encoded import varint
from cradled.http2.connection import Connection
from cradled.http2.streams import Buffer, DataReceived, HeadersReceived, Stream, StreamReset
from cradled.rpc.grpc_wire import PREFIX, MessageReader, ResponseHead, request_block
from cradled.rpc.status import from_status

_SERVICE = "/containerd.services.content.v1.Content/"
_DATA_TAG = b"\x32"  # of WriteContentRequest
_READ = 256 << 10
_WRITE = 1 << 20
_PIECES = 512  # in one sendmsg


class BulkClient:
    """One connection to a daemon; raises cradled.errors for what it refuses."""

    def __init__(self, path: str, namespace: str, lease: str = "") -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._http2 = Connection(server=False, interpret=ResponseHead)
        self._metadata = [("containerd-namespace", namespace)]
        if lease:
            self._metadata.append(("containerd-lease", lease))
        self._ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()

    def write(self, ref: str, pieces: list[memoryview], ahead: int) -> None:
        """Write and commit a blob, with at most ``ahead`` messages on their way."""
        size = sum(map(len, pieces))
        stream = self._begin("Write")
        replies: list[Any] = []
        reader = MessageReader(pb.WriteContentResponse.FromString, "identity")

        def note(data: memoryview) -> None:
            replies.extend(reader.feed(data))

        offset = 0
        for number, piece in enumerate(pieces):
            request = pb.WriteContentRequest(action=pb.WRITE, ref=ref, total=size, offset=offset)
            head = request.SerializeToString() + _DATA_TAG + varint(len(piece))
            self._http2.send_data(stream, PREFIX.pack(0, len(head) + len(piece)) + head)
            self._http2.send_data(stream, piece)
            offset += len(piece)
            self._send()
            while stream.queued or len(replies) < number + 2 - ahead:
                self._receive(note)
        last = pb.WriteContentRequest(action=pb.COMMIT, ref=ref, total=size, offset=size)
        self._last(stream, last.SerializeToString(), note)

    def read(self, digest: str) -> int:
        """Read a blob; returns the bytes of the messages it came in."""
        sizes: list[int] = []
        request = pb.ReadContentRequest(digest=digest).SerializeToString()
        self._last(self._begin("Read"), request, lambda data: sizes.append(len(data)))
        return sum(sizes)

    def _begin(self, method: str) -> Stream:
        self._ended = False
        return self._http2.open(request_block(_SERVICE + method, "localhost", self._metadata, None))

    def _last(self, stream: Stream, body: bytes, note: Callable[[memoryview], object]) -> None:
        """Send the last message of a call and wait for the call's end."""
        self._http2.send_data(stream, PREFIX.pack(0, len(body)) + body, end=True)
        self._send()
        while not self._ended:
            self._receive(note)

    def _receive(self, note: Callable[[memoryview], object]) -> None:
        data = self._socket.recv(_READ)
        if not data:
            raise ConnectionError("the daemon hung up")
        events = self._http2.receive(data)
        while self._http2.more:
            events += self._http2.receive(b"")
        for event in events:
            if type(event) is DataReceived:
                note(event.data)
                self._http2.release(event.stream, len(event.data))
            elif type(event) is HeadersReceived and event.ended:
                self._ended = True
                if event.head.code:
                    raise from_status(event.head.code, event.head.text)
            elif type(event) is StreamReset and not self._ended:
                raise ConnectionError(f"stream reset, code {event.code}")
        self._send()

    def _send(self) -> None:
        """Write what may be written now."""
        while pieces := self._http2.take(_WRITE):
            for at in range(0, len(pieces), _PIECES):
                _send_all(self._socket, pieces[at : at + _PIECES])


def _send_all(sock: socket.socket, pieces: Iterable[Buffer]) -> None:
    views = [memoryview(piece) for piece in pieces]
    sent = sock.sendmsg(views)
    for view in views:
        if sent >= len(view):
            sent -= len(view)
        else:
            sock.sendall(view[sent:])
            sent = 0
