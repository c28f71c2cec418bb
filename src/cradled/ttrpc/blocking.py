"""Blocking. A ttrpc client for programs without an event loop: one call at a time."""

from __future__ import annotations

import socket
import time

from cradled.ttrpc.connection import CLIENT, Connection, ResponseReceived
from cradled.ttrpc.envelope import Response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

_READ = 1 << 16


class Client:
    """A connection to a server; close it, or use it as a context manager.

    After an exception other than LocalError it is of no more use.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._core = Connection(CLIENT)

    @classmethod
    def connect(cls, path: str) -> Self:
        """Connect to a unix socket (a NUL in front: abstract). Raises OSError."""
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(path)
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    def call(
        self,
        service: str,
        method: str,
        payload: bytes,
        *,
        metadata: Sequence[tuple[str, str]] = (),
        timeout: float | None = None,
    ) -> Response:
        """Make a unary call; the response may carry an error code.

        Raises ConnectionError when the server has gone or breaks the protocol, TimeoutError after
        ``timeout`` seconds, LocalError for a request over the limit.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        nanoseconds = 0 if timeout is None else max(1, int(timeout * 1e9))
        stream_id = self._core.send_request(
            service, method, payload, timeout_nano=nanoseconds, metadata=metadata
        )
        self._limit(deadline)
        self._socket.sendall(self._core.data_to_send())
        while True:
            self._limit(deadline)
            data = self._socket.recv(_READ)
            if not data:
                raise ConnectionError("ttrpc: closed")
            for event in self._core.receive_data(data):
                if event.stream_id != stream_id:
                    continue
                if isinstance(event, ResponseReceived):
                    return Response(event.payload, event.code, event.message)
                raise ConnectionError("ttrpc: data where a response belongs")

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _limit(self, deadline: float | None) -> None:
        """Let the next step on the socket take what is left."""
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            self._socket.settimeout(left)
        else:
            self._socket.settimeout(None)
