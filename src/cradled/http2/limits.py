"""Pure. What a peer may cost us before the connection ends.

Sizes are limited one by one; what a peer does too often is limited as a rate. Each frame that
asks for an answer, or moves nothing, costs some of the connection's patience; so does a stream
that is broken off before its end. Patience grows back with time, and faster with useful work:
calls that were answered, data that went out. So a connection may live for years, and have
thousands of calls under way, as long as it does more than it fusses.
"""

from __future__ import annotations

from collections.abc import Callable

from cradled.http2.frames import ErrorCode, RemoteProtocolError

FRAME_SIZE = 1 << 20  # the largest frame we take; only DATA may be larger than the next
CONTROL_SIZE = 128 << 10  # of a frame that is handled whole
BLOCK_SIZE = 128 << 10  # of a header block, encoded
MAX_CONTINUATIONS = 256
HEADERS_LIMIT = 64 << 10  # of a list of fields; a longer one costs its stream
MAX_STREAMS = 1 << 15  # that a client has open; we do not say so, more are refused
UNREAD = 64 << 20  # bytes of data that handlers have yet to read, of all streams of a client

PATIENCE = 1 << 16  # frames at once
PER_SECOND = 2000
PER_CALL = 8  # for each call that was answered
PER_FRAME = 4  # for each frame of data that we sent: peers open windows and ping after it

RESET = 4  # a stream that the peer broke off, or that we did because of what it sent
OVERSIZED_HEADERS = 1000
_SMALL = 1 << 10


class Patience:
    """How much more a peer may do to no purpose.

    ``work`` says what useful work has earned so far, a number that only grows; ``clock`` is in
    seconds. Both are asked only when patience has run out: what was not used in the meantime is
    capped then, not earlier.
    """

    __slots__ = ("_clock", "_earned", "_since", "_work", "left")

    def __init__(self, work: Callable[[], int], clock: Callable[[], float]) -> None:
        self.left = PATIENCE
        self._work = work
        self._clock = clock
        self._earned = 0
        self._since = clock()

    def spend(self, cost: int, what: str) -> None:
        """Raises RemoteProtocolError when there is none left."""
        self.left -= cost
        if self.left < 0:
            self._recover(what)

    def _recover(self, what: str) -> None:
        now, earned = self._clock(), self._work()
        gained = (now - self._since) * PER_SECOND + earned - self._earned
        self._since, self._earned = now, earned
        self.left += min(int(gained), PATIENCE)
        if self.left < 0:
            raise RemoteProtocolError(ErrorCode.ENHANCE_YOUR_CALM, f"too many {what}")


def is_small(size: int) -> bool:
    """A frame of so little data is not worth its head, where the data is not wanted."""
    return size < _SMALL
