"""Async. The daemon's workers: started for a job, kept warm for the next, ended when idle.

A job is done by one process that nothing else depends on, so killing it is always safe: that is
what a cancelled job comes to, and ``run`` returns only when the process is gone and touches nothing
any more.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, Protocol

from cradled import errors, spans
from cradled.zygote import protocol

ENTRY = "cradled.workers.main:forked"
LOCK = "workers.lock"
MOUNTPOINT = "tmpmounts"


class Zygote(Protocol):
    """What forks workers; ``cradled.zygote.client.Zygote`` does."""

    async def fork(
        self, entry: str, params: dict[str, Any], fds: Sequence[int] = (), *, name: str = ""
    ) -> tuple[int, int]:
        """Fork a child that calls ``entry``; returns pid and pidfd."""
        ...


class Pool:
    """At most ``size`` workers (as many as cores); an idle one ends after ``idle`` seconds.

    ``root`` is where the lock file and the directory that workers mount on lie.
    """

    def __init__(self, zygote: Zygote, root: str, *, size: int = 0, idle: float = 10.0) -> None:
        self._zygote = zygote
        self._idle_seconds = idle
        self._root = os.path.abspath(root)
        self._params = {
            "lock": os.path.join(self._root, LOCK),
            "mountpoint": os.path.join(self._root, MOUNTPOINT),
        }
        os.makedirs(self._params["mountpoint"], 0o700, exist_ok=True)
        self._size = size or len(os.sched_getaffinity(0))
        self._slots = asyncio.Semaphore(self._size)
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._closed = False

    def covers(self, path: str) -> bool:
        """Whether every worker sees this path; if not, its job has to be run ``anywhere``."""
        return path == self._root or path.startswith(self._root + "/")

    async def run(
        self, job: str, params: dict[str, Any], fds: Sequence[int] = (), *, anywhere: bool = False
    ) -> Any:
        """Have a worker do a job; returns its result.

        The worker gets copies of ``fds``. It sees the file systems that the pool's root lies on;
        ``anywhere`` asks for one that sees all there are, and ends after the job, because it keeps
        what it sees from being unmounted for good.

        Raises what the job raised as a domain error, Aborted when the worker died over it,
        FailedPrecondition after ``aclose``.
        """
        async with self._slots:
            worker = await (self._start([]) if anywhere else self._worker())
            self._busy.add(worker)
            try:
                reply = await worker.ask(job, params, fds)
            except BaseException:
                await _completed(worker.kill())
                raise
            finally:
                self._busy.discard(worker)
            if anywhere or self._closed:
                worker.close()
            else:
                self._park(worker)
        if (span := spans.current()) is not None:
            for name, begun, ended, told in reply.get("steps", ()):
                spans.record(span, name, begun, ended, **told)
        if "error" in reply:
            kind, text = reply["error"]
            raise getattr(errors, kind)(text)
        return reply["result"]

    async def aclose(self) -> None:
        """End all workers; jobs that run are broken off."""
        self._closed = True
        for worker in self._busy:
            worker.signal()
        for _ in range(self._size):  # whoever holds or waits for a slot finds the pool closed
            await self._slots.acquire()
        while self._idle:
            worker = self._idle.pop()
            worker.unpark()
            await _completed(worker.kill())
        for _ in range(self._size):
            self._slots.release()

    async def _worker(self) -> _Worker:
        while self._idle:
            worker = self._idle.pop()
            worker.unpark()
            if worker.alive():
                return worker
            worker.close()
        return await self._start([self._root, os.path.realpath(self._root)])

    async def _start(self, roots: list[str]) -> _Worker:
        if self._closed:
            raise errors.FailedPrecondition("the worker pool is closed")
        with spans.span("worker.start"):
            return await self._forked(self._params | {"roots": roots})

    async def _forked(self, params: dict[str, Any]) -> _Worker:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        try:
            with theirs:
                _, pidfd = await self._zygote.fork(
                    ENTRY, params, [theirs.fileno()], name="cradled-worker"
                )
        except BaseException:
            ours.close()
            raise
        return _Worker(ours, pidfd)

    def _park(self, worker: _Worker) -> None:
        self._idle.append(worker)
        worker.park(self._idle_seconds, self._idle.remove)


class _Worker:
    """One worker process, known by its socket and pidfd; closing the socket ends it."""

    def __init__(self, control: socket.socket, pidfd: int) -> None:
        self._control = control
        self._pidfd = pidfd
        self._timer: asyncio.TimerHandle | None = None

    async def ask(self, job: str, params: dict[str, Any], fds: Sequence[int]) -> dict[str, Any]:
        try:
            protocol.send(self._control, protocol.encode({"job": job, "params": params}), fds)
            await _readable(self._control.fileno())
            data, _ = protocol.receive(self._control)
        except ConnectionError:
            data = b""
        if not data:
            raise errors.Aborted(f"worker died while it did {job}")
        return protocol.decode(data)

    def alive(self) -> bool:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return not poll.poll(0)

    def signal(self) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def kill(self) -> None:
        """End the process and wait until it is gone."""
        self.signal()
        await _readable(self._pidfd)
        self.close()

    def park(self, seconds: float, expire: Any) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(seconds, self._expired, expire)

    def unpark(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expired(self, expire: Any) -> None:
        expire(self)
        self.close()

    def close(self) -> None:
        """Let go of it; an idle worker exits at the end of its socket."""
        self._control.close()
        os.close(self._pidfd)


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, _settle, future)
    try:
        await future
    finally:
        loop.remove_reader(fd)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _completed(step: Coroutine[Any, Any, None]) -> None:
    """Carry a step through whatever cancels us meanwhile."""
    task = asyncio.ensure_future(step)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.shield(task)
    task.result()
