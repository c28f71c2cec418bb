"""Async. The daemon that takes over from another (``upgrade`` has the other side).

All that takes time and can fail without the old daemon's stores is done first: reading the
configuration, listening where the old one did not, importing what the old one had imported.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import socket
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, NamedTuple, Self

from cradled.daemon import handover, listeners
from cradled.daemon.config import Config, ConfigError
from cradled.daemon.listeners import Sockets, StartError
from cradled.daemon.upgrade import Leave, Outcome
from cradled.errors import Error
from cradled.version import VERSION


class Inheritance(NamedTuple):
    """What the old daemon hands over; ``locks`` of root and state."""

    sockets: Sockets
    locks: tuple[int, int]


class Successor:
    """Enter it for the start: what goes wrong in there is told to the old daemon, too."""

    def __init__(self) -> None:
        self.outcome: Outcome | None = None
        """Of the upgrade, when it has ended."""
        os.environ.pop(listeners.HANDOVER)
        self._control = socket.socket(fileno=handover.FD)
        os.set_inheritable(handover.FD, False)
        self._locks: tuple[int, int] = (-1, -1)
        self.is_owner = False
        """Whether what was inherited is not the old daemon's any more."""
        self._old_version = ""
        self._stopped = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is not None and not self.is_owner:
            told = isinstance(exc, (StartError, ConfigError, Error))
            self.fail(str(exc) if told else f"{type(exc).__name__}: {exc}")

    def inherit(self, config: Config) -> Inheritance:
        """Take what the old daemon hands over. Raises StartError when this cannot go on with it."""
        hello, fds = handover.receive(self._control)
        if hello.get("handover") != handover.VERSION:
            raise StartError(f"upgrade from a daemon that hands over as in {hello.get('handover')}")
        for what, ours in (("root", config.root), ("state", config.state)):
            if hello[what] != ours:
                text = f"{what} was {hello[what]} and is {ours} now: only a restart can change it"
                raise StartError(text)
        self._old_version = hello["version"]
        self._locks = (fds.pop(0), fds.pop(0))
        given = {
            address: socket.socket(fileno=fd)
            for address, fd in zip(hello["sockets"], fds, strict=True)
        }
        _warm_up(hello["modules"])
        return Inheritance(Sockets(given, lent=hello["lent"]), self._locks)

    async def turn(self, stop: asyncio.Event) -> Leave | None:
        """Wait until the old daemon has let go; None when it changed its mind."""
        self._control.setblocking(False)
        handover.send(self._control, say="ready", version=VERSION)
        message = await self._hear(stop)
        if message.get("say") != "turn":
            return None
        self._stopped = message["stopped"]
        for lock in self._locks:
            listeners.sign(lock)
        watchers = [(pid, tuple(filters)) for pid, filters in message["watchers"]]
        return Leave(self._stopped, message["number"], watchers)

    async def confirm(self, stop: asyncio.Event) -> bool:
        """Tell that this one serves; False when the old one did not hear it."""
        pause = time.monotonic_ns() - self._stopped
        handover.send(self._control, say="serving", pause=pause)
        heard = (await self._hear(stop)).get("say")
        self.outcome = Outcome(self._old_version, VERSION, os.getpid(), pause=pause)
        self.is_owner = not stop.is_set()
        self._control.close()
        return heard == "yours"

    def fail(self, why: str) -> None:
        """Have the old daemon go on."""
        try:
            handover.send(self._control, say="failed", why=why)
        except OSError:  # it is gone, or knows
            return

    async def _hear(self, stop: asyncio.Event) -> dict[str, Any]:
        """The next message; nothing at the end, or when told to stop."""
        loop = asyncio.get_running_loop()
        heard = asyncio.Event()
        loop.add_reader(self._control, heard.set)
        tasks = [asyncio.ensure_future(event.wait()) for event in (heard, stop)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            loop.remove_reader(self._control)
            for task in tasks:
                task.cancel()
        return {} if stop.is_set() else handover.receive(self._control)[0]


def _warm_up(modules: Iterable[str]) -> None:
    """Import what the old daemon has come to need, as far as it is still there."""
    for name in modules:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            continue
