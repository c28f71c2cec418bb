"""Async. A shim from its first breath to its last, however it came into being."""

from __future__ import annotations

import faulthandler
import os

from cradled import failpoints
from cradled.linux import libc, signals
from cradled.linux.coroutines import Loop
from cradled.shim import log, service
from cradled.shim.container import Supervisor
from cradled.shim.publisher import Publisher
from cradled.shim.reaper import Reaper
from cradled.shim.runc import LIMIT
from cradled.shim.server import Server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable
    from typing import Any

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
    names = [listener.getsockname()]
    publisher = Publisher(loop, ttrpc_address, namespace)

    def shut_down() -> None:
        _remove(names)  # at once: killed from here on, it shall leave no socket behind
        failpoints.hit("shim.unlinked")
        loop.spawn(_finish(loop, publisher))

    reaper = Reaper(loop, shut_down)
    reaper.start()
    shim = Supervisor(loop, reaper, publisher, namespace, limit)
    dismissed = False

    def dismiss() -> None:
        nonlocal dismissed
        dismissed = True
        server.admit()
        # Who has come beside the one that sends us away is about to bring a container.
        if server.clients <= 1:
            shut_down()

    async def retire() -> None:
        await loop.sleep(_PATIENCE)
        if tasks.idle and not server.clients:
            shut_down()

    def left() -> None:
        server.admit()
        if server.clients:
            return
        if dismissed and tasks.idle:
            shut_down()
        else:
            loop.spawn(retire())

    tasks = service.TaskService(shim, dismiss)
    server = Server(loop, listener, service.METHODS, tasks, publisher.hurry, left)
    loop.spawn(server.serve())
    left()
    if began is not None:
        began(loop)
    failpoints.hit("shim.serving")
    loop.run()
    reaper.stop()
    failpoints.hit("shim.leaving")
    _remove(names)


async def _finish(loop: Loop, publisher: Publisher) -> None:
    await publisher.flush(_FLUSH)
    loop.stop()


def _remove(names: list[Any]) -> None:
    """Remove the sockets at these paths, once: the next to be found there is a successor's."""
    while names:
        address = names.pop()
        if isinstance(address, str) and address:  # an abstract one comes as bytes
            try:  # noqa: SIM105 (contextlib is not worth its import)
                os.unlink(address)
            except OSError:
                pass
