"""Async. Upgrade in place: the program as it is installed now goes on where this one stops.

The new program is started beside the old one, and not executed in its place, for two reasons. What
takes longest, the interpreter and its imports, is done while the old one still serves: between the
two there is only what cannot overlap, letting go of the stores and opening them. And one that does
not start, whatever the reason, is nothing but an error: the old one goes on, even if it had let go
already. The price is another pid; systemd is told of it (MAINPID). A supervisor that knows a daemon
by its pid alone takes this for its end, so a process that is the first of its pid namespace, whose
end would end the new one, refuses.

Sockets go over by descriptor and never stop listening: who connects between the two waits in the
queue. The locks on root and state go over too, so that no third daemon comes in between. Zygote and
workers are not handed over: they end with the old daemon, and the new one has its own, of its own
code. Shims and containers notice nothing but a connection that is made anew.

This module is imported before it is needed: by then the files may be those of the new program.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from cradled.daemon import handover, listeners, notify
from cradled.daemon.config import Config
from cradled.daemon.listeners import Sockets
from cradled.errors import FailedPrecondition, NotFound
from cradled.linux.limits import restore_files
from cradled.version import VERSION

log = logging.getLogger(__name__)

GRACE = 0.1
"""Seconds that calls under way are given, from when they began."""

WORK = 2.0
"""Seconds that the making and taking apart of containers is given, because it would be lost."""

ANSWER = 0.01
"""Seconds to tell clients how that went."""

LAST_WORDS = 0.05
"""Seconds for clients to read why their calls ended."""

READY_SECONDS = 60.0
SERVING_SECONDS = 60.0
"""How long the new program may take to start, and to serve when it is its turn."""

_END_SECONDS = 5.0  # for one that hung up to end by itself
_OF_THIS_PROCESS = ("WATCHDOG_PID",)


class Outcome(NamedTuple):
    """How an upgrade ended. ``pid`` is of the daemon that serves; ``error`` is empty if it is the
    new one, ``pause`` (nanoseconds) is how long there was none."""

    old_version: str
    new_version: str
    pid: int
    error: str = ""
    pause: int = 0


class Ready(NamedTuple):
    """The new program, about to take over."""

    version: str
    pid: int


class Leave(NamedTuple):
    """How a daemon left: when it took calls for the last time (``time.monotonic_ns``), and where
    its subscribers were (``events.exchange.Parting``)."""

    stopped: int
    number: int
    watchers: list[tuple[int, tuple[str, ...]]]


class Upgrades:
    """At most one at a time. ``leave`` is called when a new program waits: whoever owns the stores
    lets go of them and calls ``hand_over``, as ``due`` says."""

    def __init__(
        self, config: Config, sockets: Sockets, locks: tuple[int, int], leave: Callable[[], None]
    ) -> None:
        self.due = False
        self.last: Outcome | None = None
        self._config = config
        self._sockets = sockets
        self._locks = locks
        self._leave = leave
        self._task: asyncio.Task[Ready] | None = None
        self._heir: _Heir | None = None
        self._settled = asyncio.Event()

    def settle(self, outcome: Outcome | None = None) -> None:
        """No upgrade is under way, which this one is from its making on: ``outcome`` is of the one
        that has ended."""
        self.last = outcome or self.last
        self._settled.set()

    async def begin(self) -> Ready:
        """Start the new program; returns when it waits for its turn.

        Raises FailedPrecondition when it does not start, or another upgrade is under way.
        """
        if not self._settled.is_set():
            raise FailedPrecondition("an upgrade is under way already")
        if os.getpid() == 1:
            text = "the daemon is the first process of its pid namespace: its end would end the new"
            raise FailedPrecondition(text)
        self._settled.clear()
        self._task = asyncio.ensure_future(self._begin())
        return await asyncio.shield(self._task)

    def begin_by_signal(self) -> None:
        """As ``begin``, for nobody who waits; what goes wrong is in the log."""
        task = asyncio.ensure_future(self.begin())
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def outcome(self) -> Outcome:
        """How the last upgrade ended; waits for one that is under way. Raises NotFound."""
        await self._settled.wait()
        if self.last is None:
            raise NotFound("upgrade")
        return self.last

    async def hand_over(self, leave: Leave, stop: asyncio.Event) -> bool:
        """The stores are let go of: have the new program go on, and tell whether it does.

        A ``stop`` meanwhile ends the new program.
        """
        heir = self._heir
        assert heir is not None
        try:
            heir.tell(say="turn", **leave._asdict())
            message = await heir.hear("serving", SERVING_SECONDS, stop)
        except _Failed as error:
            await self._take_back(str(error))
            return False
        status = f"STATUS=serving {self._config.root}"
        notify.notify(f"MAINPID={heir.pid}", "WATCHDOG=1", status)
        heir.tell(say="yours")
        self._sockets.forget()
        self._heir = None
        heir.close()
        log.info("process %d took over after %.0f ms", heir.pid, message["pause"] / 1e6)
        return True

    async def aclose(self) -> None:
        """Give up what is under way."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError, FailedPrecondition):
                await self._task
        if self._heir is not None:
            await self._heir.end()

    async def _begin(self) -> Ready:
        log.info("starting the program that is to take over")
        heir = None
        try:
            heir = _Heir(self._hello(), self._fds())
            message = await heir.hear("ready", READY_SECONDS)
        except (_Failed, OSError) as error:
            self.settle(Outcome(VERSION, "", os.getpid(), str(error)))
            if heir is not None:
                await heir.end()
            log.error("the new program does not start: %s", error)
            raise FailedPrecondition(f"the new program does not start: {error}") from None
        except asyncio.CancelledError:
            if heir is not None:
                await heir.end()
            raise
        heir.version = message["version"]
        log.info("cradled %s is ready to take over", heir.version)
        self._heir, self.due = heir, True
        asyncio.get_running_loop().call_soon(self._leave)
        return Ready(heir.version, heir.pid)

    async def _take_back(self, why: str) -> None:
        heir, self._heir, self.due = self._heir, None, False
        assert heir is not None
        await heir.end()
        for lock in self._locks:
            listeners.sign(lock)
        log.error("the new program does not serve, going on: %s", why)
        self.settle(Outcome(VERSION, heir.version, os.getpid(), why))

    def _hello(self) -> dict[str, Any]:
        return {
            "handover": handover.VERSION,
            "root": self._config.root,
            "state": self._config.state,
            "version": VERSION,
            "sockets": list(self._sockets.all()),
            "lent": list(self._sockets.lent),
            "modules": [
                name
                for name in list(sys.modules)
                if name.startswith("cradled.") and not name.endswith("__main__")
            ],
        }

    def _fds(self) -> list[int]:
        return [*self._locks, *(sock.fileno() for sock in self._sockets.all().values())]


class _Failed(Exception):
    """The new program will not take over; the text says why."""


class _Heir:
    """The new program's process. Raises OSError when it cannot be started."""

    def __init__(self, hello: Mapping[str, Any], fds: list[int]) -> None:
        self.version = ""
        self._loop = asyncio.get_running_loop()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self.pid = _spawn(theirs.fileno())
        except BaseException:
            self._control.close()
            raise
        self._pidfd = os.pidfd_open(self.pid)
        self._control.setblocking(False)
        restore_files(self.pid)  # long before it looks at them
        self.tell(fds, **hello)

    def tell(self, fds: list[int] | None = None, /, **message: Any) -> None:
        """If it is gone, that is seen when its answer is waited for."""
        with suppress(ConnectionError):
            handover.send(self._control, fds or (), **message)

    async def hear(
        self, word: str, seconds: float, stop: asyncio.Event | None = None
    ) -> dict[str, Any]:
        """Its next message, which must be this one. Raises _Failed."""
        try:
            async with asyncio.timeout(seconds):
                if not await self._wait(self._control, stop):
                    raise _Failed("the old one was told to stop")
        except TimeoutError:
            raise _Failed(f"it has not been {word} within {seconds:g} s") from None
        message, _ = handover.receive(self._control)
        if message.get("say") == word:
            return message
        raise _Failed(message.get("why") or await self._how_it_ended())

    async def end(self) -> None:
        """Kill it, if it lives, and wait until it is gone."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        await self._wait(self._pidfd)
        with suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)  # noqa: ASYNC222 - it has ended
        self.close()

    def close(self) -> None:
        """Let go of it."""
        self._control.close()
        os.close(self._pidfd)

    async def _how_it_ended(self) -> str:
        with suppress(TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                await self._wait(self._pidfd)
                flags = os.WEXITED | os.WNOWAIT
                ended = os.waitid(os.P_PIDFD, self._pidfd, flags)  # noqa: ASYNC222 - it has
                if ended is not None:
                    how = "status" if ended.si_code == os.CLD_EXITED else "signal"
                    return f"it ended with {how} {ended.si_status}, and may have told the log why"
        return "it closed its socket"

    async def _wait(self, what: socket.socket | int, stop: asyncio.Event | None = None) -> bool:
        """Until it can be read; False when told to stop before that."""
        readable = asyncio.Event()
        events = [readable] if stop is None else [readable, stop]
        self._loop.add_reader(what, readable.set)
        tasks = [asyncio.ensure_future(event.wait()) for event in events]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._loop.remove_reader(what)
            for task in tasks:
                task.cancel()
        return readable.is_set()


def _spawn(control: int) -> int:
    argv = _command()
    env = {name: value for name, value in os.environ.items() if name not in _OF_THIS_PROCESS}
    return os.posix_spawn(
        argv[0],
        argv,
        {**env, listeners.HANDOVER: "1"},
        file_actions=[(os.POSIX_SPAWN_DUP2, control, handover.FD)],
        setsigmask=[],
        setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
    )


def _command() -> list[str]:
    """How this program was started; a script by itself, so that it names its interpreter anew."""
    script = os.path.abspath(sys.argv[0])
    if os.access(script, os.X_OK) and not script.endswith(".py"):
        return [script, *sys.argv[1:]]
    return [sys.executable, *sys.orig_argv[1:]]
