"""Async. The connection to a plugin that another process serves, which may be away or stand still.

Whoever calls a plugin gets an answer or an error within some time, and nobody else waits for it:
a connection is made within ``_DIAL`` seconds; while calls are under way the process is asked now
and then whether it is there (any answer to a health check will do), and the calls are given up
when it is not; a call that ought to be short has a limit. After a failure nobody tries again for
some time, ever longer: calls fail at once, and say why (a circuit breaker). The first to try
after that asks for a sign of life before anything else.
"""

from __future__ import annotations

import asyncio
import time

from cradled import errors
from cradled.api.health_pb2 import Health, HealthCheckRequest
from cradled.api.pool import Method
from cradled.rpc.grpc_client import ClientConnection, GrpcChannel, GrpcStream
from cradled.rpc.service import Message
from cradled.rpc.stub import Metadata

_DIAL = 5.0  # seconds
_PROBE = 10.0  # seconds between signs of life while calls are under way
_SIGN = 10.0  # seconds for one
_SIGN_AGAIN = 2.0  # seconds for one of a plugin that has just failed
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds
_CHECK = Health.methods["Check"]


class Breaker:
    """How long to leave something alone that has failed. Times are seconds of any one clock."""

    def __init__(self) -> None:
        self.reason = ""
        self._pause = 0.0
        self._until = 0.0

    @property
    def failing(self) -> bool:
        """Whether it has not answered since it failed."""
        return bool(self._pause)

    def left(self, now: float) -> float:
        """Seconds until it may be tried; 0: now."""
        return max(self._until - now, 0.0)

    def failed(self, reason: str, now: float) -> None:
        """It did not answer."""
        self.reason = reason
        self._pause = min(max(2 * self._pause, _FIRST_PAUSE), _LONGEST_PAUSE)
        self._until = now + self._pause

    def answered(self) -> None:
        """It is well."""
        self.reason, self._pause, self._until = "", 0.0, 0.0


class PluginChannel(GrpcChannel):
    """A transport to the plugin ``id``; ``limit`` is what a unary call may take, in seconds, where
    its caller sets none (None: any time)."""

    def __init__(self, id: str, path: str, limit: float | None) -> None:
        super().__init__(path)
        self._name = f"plugin {errors.quote(id)}"
        self._limit = limit
        self._breaker = Breaker()
        self._trying = asyncio.Lock()
        self._prober: asyncio.Task[None] | None = None

    async def call(
        self,
        method: Method,
        request: Message,
        /,
        *,
        metadata: Metadata = (),
        timeout: float | None = None,
    ) -> Message:
        limit = self._limit if timeout is None else timeout
        try:
            return await super().call(method, request, metadata=metadata, timeout=limit)
        except errors.DeadlineExceeded as error:
            if timeout is not None:
                raise
            what = f"{self._name} has not answered {method.name} in {limit:g} s"
            raise errors.DeadlineExceeded(what) from error

    def open(
        self, method: Method, /, *, metadata: Metadata = (), timeout: float | None = None
    ) -> GrpcStream:
        if self._prober is None or self._prober.done():
            self._prober = asyncio.create_task(self._probe(), name=f"probe of {self._name}")
        return super().open(method, metadata=metadata, timeout=timeout)

    async def connected(self) -> ClientConnection:
        if (connection := self.ready()) is not None:
            return connection
        async with self._trying:
            if left := self._breaker.left(time.monotonic()):
                raise self._unavailable(f", tried again in {left:.1f} s")
            return await self._connected()

    async def aclose(self) -> None:
        if self._prober is not None:
            self._prober.cancel()
        await super().aclose()

    async def _connected(self) -> ClientConnection:
        """As soon as the plugin is there; raises Unavailable."""
        try:
            async with asyncio.timeout(_DIAL):
                connection = await super().connected()
        except errors.Unavailable as error:
            self._failed(error.what)
            raise self._unavailable() from error
        except TimeoutError as error:
            self._failed(f"no connection in {_DIAL:g} s")
            raise self._unavailable() from error
        connection.lost_text = f"{self._name}: the connection was lost"
        if self._breaker.failing and not await self._lives(_SIGN_AGAIN):
            raise self._unavailable()
        return connection

    async def _probe(self) -> None:
        """As long as calls are under way, see whether somebody is there to answer them."""
        while True:
            await asyncio.sleep(_PROBE)
            connection = self.ready()
            if connection is None or not connection.http2.streams:
                return
            await self._lives(_SIGN)

    async def _lives(self, seconds: float) -> bool:
        """Whether the plugin answers anything in this time; it is hung up on if it does not."""
        try:
            await super().call(_CHECK, HealthCheckRequest(), timeout=seconds)
        except errors.DeadlineExceeded:
            self._failed(f"no sign of life in {seconds:g} s")
            self.drop(f"{self._name}: {self._breaker.reason}")
            return False
        except errors.Unavailable as error:
            self._failed(error.what)
            return False
        except errors.Error:  # most plugins have no such service, and say so
            pass
        self._breaker.answered()
        return True

    def _failed(self, reason: str) -> None:
        self._breaker.failed(reason, time.monotonic())

    def _unavailable(self, more: str = "") -> errors.Unavailable:
        return errors.Unavailable(f"{self._name}: {self._breaker.reason}{more}")
