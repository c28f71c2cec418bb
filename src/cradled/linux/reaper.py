"""Async. The only place where children are waited for.

SIGCHLD and the signals that end the process arrive as bytes in a pipe (``set_wakeup_fd``). All
children are reaped, those that were handed to us as their subreaper too. A process may die before
anybody knows its pid (a fast ``create`` or ``exec``), so while one of those is in flight, the
endings of unknown processes are kept. Until a child is reaped here its pid cannot be reused:
``kill`` by pid is safe for every process whose end has not been delivered.

Used by the shim: imports only ``os``, ``errors``, ``linux`` and C modules.
"""

from __future__ import annotations

import os
from time import time_ns

from cradled.errors import Error
from cradled.linux.coroutines import Closed, Future
from cradled.linux.signals import SIGCHLD, SIGINT, SIGTERM, handle, wake

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cradled.linux.coroutines import Loop


class Ending:
    """How a process ended: 0..255 or 128 + signal, and when (nanoseconds since the epoch)."""

    __slots__ = ("at", "status")

    def __init__(self, status: int, at: int) -> None:
        self.status = status
        self.at = at


class Reaper:
    """Delivers endings; ``terminated`` is called for SIGTERM and SIGINT."""

    def __init__(self, loop: Loop, terminated: Callable[[], None]) -> None:
        self._loop = loop
        self._terminated = terminated
        self._watched: dict[int, Future] = {}
        self._unknown: dict[int, Ending] = {}
        self._held = 0
        self._fd, self._wakeup = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def start(self) -> None:
        """Take over the signals of this process and begin to reap."""
        wake(self._wakeup)
        for number in (SIGCHLD, SIGTERM, SIGINT):
            handle(number, _ignore)
        self._loop.spawn(self._serve())

    def stop(self) -> None:
        """Give the signals back."""
        for number in (SIGCHLD, SIGTERM, SIGINT):
            handle(number, None)
        wake(-1)
        self._loop.close(self._fd)
        os.close(self._wakeup)

    def watch(self, pid: int) -> Future:
        """The ``Ending`` of a child, to come or kept."""
        future = self._watched.get(pid)
        if future is None:
            future = Future()
            ending = self._unknown.pop(pid, None)
            if ending is not None:
                future.set(ending)
            else:
                self._watched[pid] = future
        return future

    def adopt(self, pid: int) -> Future:
        """The same of a process that a child says it has left to us. Raises Error if it has not."""
        try:
            if pid not in self._unknown:
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            raise Error(f"process {pid} is none of its own") from None
        if pid in self._watched:
            raise Error(f"process {pid} is another's")
        return self.watch(pid)

    def __enter__(self) -> None:
        """Keep the endings of unknown processes until the block is left."""
        self._held += 1

    def __exit__(self, *_: object) -> None:
        self._held -= 1
        if not self._held:
            self._unknown.clear()

    async def _serve(self) -> None:
        while True:
            try:
                await self._loop.readable(self._fd)
            except Closed:
                return
            signals = os.read(self._fd, 512)
            if SIGTERM in signals or SIGINT in signals:
                self._terminated()
            if SIGCHLD in signals:
                self._reap()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            ending = Ending(code if code >= 0 else 128 - code, time_ns())
            future = self._watched.pop(pid, None)
            if future is not None:
                future.set(ending)
            elif self._held:
                self._unknown[pid] = ending


def _ignore(*_: object) -> None:
    """The byte in the pipe is what counts."""
