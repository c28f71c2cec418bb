"""Async. A shim from its first breath to its last, however it came into being."""

from __future__ import annotations

import faulthandler
import os

from cradled import failpoints
from cradled.linux import libc, signals
from cradled.linux.coroutines import Loop
from cradled.linux.reaper import Reaper
from cradled.shim import log, service
from cradled.shim.container import Supervisor
from cradled.shim.publisher import Publisher
from cradled.shim.runc import LIMIT
from cradled.shim.server import Server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable

PR_SET_CHILD_SUBREAPER = 36
faulthandler.register(signals.SIGUSR1, 2)  # here, so that what is forked from us has it already

_FLUSH = 5.0  # seconds that the last events get
# Seconds that a shim without a container waits for a client: its daemon may have died between
# starting it and writing down that it did.
_PATIENCE = 60.0


def run(
    listener: socket,
    namespace: str,
    bundle: str,
    ttrpc_address: str,
    began: Callable[[Loop], None] | None = None,
    limit: float | None = LIMIT,
) -> None:
    """Serve on a listening Unix socket until a client or a signal ends it; then remove its path.

    ``bundle`` is that of the first container. With an empty ``ttrpc_address`` nobody wants events.
    ``began`` is called once all is set up. A runtime's command gets ``limit`` seconds.
    """
    log.to_daemon(bundle)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    for number in signals.IGNORED_BY_PYTHON:
        signals.ignore(number)
    loop = Loop(log.trace)
    life = _Life(loop, listener, Publisher(loop, ttrpc_address, namespace))
    reaper = Reaper(loop, life.shut_down)
    reaper.start()
    tasks = service.TaskService(
        Supervisor(loop, reaper, life.publisher, namespace, limit), life.dismiss
    )
    life.begin(tasks)
    if began is not None:
        began(loop)
    failpoints.hit("shim.serving")
    loop.run()
    reaper.stop()
    failpoints.hit("shim.leaving")
    life.vanish()


class _Life:
    """When a shim ends: when it is sent away, killed, or has been left by all."""

    def __init__(self, loop: Loop, listener: socket, publisher: Publisher) -> None:
        self.publisher = publisher
        self._loop = loop
        self._listener = listener
        self._names = [listener.getsockname()]
        self._dismissed = False

    def begin(self, tasks: service.TaskService) -> None:
        """Let clients in."""
        self._tasks = tasks
        self._server = Server(
            self._loop, self._listener, service.METHODS, tasks, self.publisher.hurry, self._left
        )
        self._loop.spawn(self._server.serve())
        self._left()

    def dismiss(self) -> None:
        """Go, unless somebody else has come, who is about to bring a container."""
        self._dismissed = True
        self._server.admit()
        if self._server.clients <= 1:
            self.shut_down()

    def shut_down(self) -> None:
        """Go once all events have been told."""
        self.vanish()  # at once: killed from here on, it shall leave no socket behind
        failpoints.hit("shim.unlinked")
        self._loop.spawn(self._finish())

    def vanish(self) -> None:
        """Remove the socket, once: the next to be found at its path is a successor's."""
        while self._names:
            address = self._names.pop()
            if isinstance(address, str) and address:  # an abstract one comes as bytes
                try:  # noqa: SIM105 (contextlib is not worth its import)
                    os.unlink(address)
                except OSError:
                    pass

    def _left(self) -> None:
        self._server.admit()
        if self._server.clients:
            return
        if self._dismissed and self._tasks.idle:
            self.shut_down()
        else:
            self._loop.spawn(self._retire())

    async def _retire(self) -> None:
        await self._loop.sleep(_PATIENCE)
        if self._tasks.idle and not self._server.clients:
            self.shut_down()

    async def _finish(self) -> None:
        await self.publisher.flush(_FLUSH)
        self._loop.stop()
