"""Async. Events on their way to the daemon: Forward calls on one ttrpc connection, in order.

An event is sent when the one before it has been answered. One that the daemon refuses is tried
again after 1, 2, 3, ... seconds; after five times it is dropped, an exit queued behind the others.
A daemon that is away is waited for, and tried at once when a client has come, which may be its
successor. The queue is bounded; what does not fit is dropped from its old end. An exit is never
dropped: there are no more of them than there were processes when the daemon left.
"""

from __future__ import annotations

import os
from time import time_ns

from cradled import failpoints
from cradled.linux import fs, unix
from cradled.linux.coroutines import Closed, Future
from cradled.shim import log
from cradled.shim import messages as m
from cradled.ttrpc.codec import encode
from cradled.ttrpc.connection import CLIENT, Connection, ResponseReceived

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

    from cradled.linux.coroutines import Loop
    from cradled.ttrpc.codec import Message

SERVICE = "containerd.services.events.ttrpc.v1.Events"
TIMEOUT = 5.0
TRIES = 5
FIRST_TRY, LAST_TRY = 0.05, 5.0
"""Seconds between attempts to reach a daemon that is away, which double from one to the other."""
MAX_QUEUE = 4096

EXIT = "/tasks/exit"


class Publisher:
    """Sends events to ``address``; an empty one means that nobody wants them."""

    def __init__(self, loop: Loop, address: str, namespace: str) -> None:
        self._loop = loop
        self._address = address.removeprefix("unix://")
        self._namespace = namespace
        self._queue: list[tuple[str, bytes, str]] = []
        self._running: Future | None = None
        self._hint = Future()
        self._socket: socket | None = None
        self._connection = Connection(CLIENT)

    def send(self, topic: str, event: Message, note: str = "") -> None:
        """Queue an event; it carries the time of this call. The file ``note`` goes when the daemon
        has taken it."""
        if not self._address:
            if note:
                fs.discard(note)
            return
        envelope = m.Envelope(
            timestamp=timestamp(time_ns()),
            namespace=self._namespace,
            topic=topic,
            event=m.Any(type_url=event.NAME, value=encode(event)),
        )
        self._queue.append((topic, encode(m.ForwardRequest(envelope=envelope)), note))
        if len(self._queue) > MAX_QUEUE:
            self._drop()
        if self._running is None or self._running.done:
            self._running = self._loop.spawn(self._run())

    def hurry(self) -> None:
        """A daemon may have come back: try to reach it now."""
        self._hint.set()

    async def flush(self, seconds: float) -> None:
        """Wait until all is sent, but no longer."""
        if self._running is not None:
            await self._loop.within(self._running, seconds)

    def _drop(self) -> None:
        for index, (topic, _, _) in enumerate(self._queue[1:], 1):
            if topic != EXIT:
                del self._queue[index]
                return

    async def _run(self) -> None:
        tries, pause = 0, FIRST_TRY
        while self._queue:
            topic, request, note = self._queue[0]
            try:
                refusal = await self._forward(request)
                failpoints.hit("shim.event.answered")
            except (OSError, Closed):
                self._disconnect()
                pause = await self._pause(pause)
                continue
            pause = FIRST_TRY
            if refusal is not None and tries < TRIES:
                tries += 1
                await self._loop.sleep(tries)
                continue
            tries = 0
            event = self._queue.pop(0)
            if refusal is None and note:
                fs.discard(note)
            elif refusal is not None:
                log.line(f"event {topic} refused: {refusal}")
                if topic == EXIT:
                    self._queue.append(event)

    async def _pause(self, seconds: float) -> float:
        """Wait for the next attempt to reach the daemon; how long to wait for the one after it."""
        self._hint = Future()
        if await self._loop.within(self._hint, seconds):
            return FIRST_TRY
        return min(2 * seconds, LAST_TRY)

    async def _forward(self, request: bytes) -> str | None:
        """Send one; the daemon's refusal, None for success. Raises OSError when it is away."""
        fd = self._connect()
        nano = int(TIMEOUT * 1e9)
        stream = self._connection.send_request(SERVICE, "Forward", request, timeout_nano=nano)
        answer = self._loop.spawn(self._exchange(fd, stream))
        if not await self._loop.within(answer, TIMEOUT):
            self._disconnect()
            raise TimeoutError("no answer from the daemon")
        error, refusal = await answer
        if error is not None:
            raise error
        return refusal  # type: ignore[no-any-return]

    async def _exchange(self, fd: int, stream: int) -> tuple[Exception | None, str | None]:
        try:
            await self._loop.write(fd, self._connection.data_to_send())
            while True:
                await self._loop.readable(fd)
                data = os.read(fd, 4096)
                if not data:
                    return ConnectionResetError("the daemon has closed the connection"), None
                for event in self._connection.receive_data(data):
                    if isinstance(event, ResponseReceived) and event.stream_id == stream:
                        return None, event.message or str(event.code) if event.code else None
        except (OSError, Closed) as error:
            return error, None

    def _connect(self) -> int:
        if self._socket is None:
            self._socket = unix.connect(self._address)
            self._connection = Connection(CLIENT)
        return self._socket.fileno()

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._loop.close(self._socket.detach())
            self._socket = None


def timestamp(nanoseconds: int) -> m.Timestamp:
    """A time since the epoch as protobuf has it."""
    seconds, nanos = divmod(nanoseconds, 1_000_000_000)
    return m.Timestamp(seconds=seconds, nanos=nanos)
