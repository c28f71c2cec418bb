"""Async. The shim's entry in a process that the zygote has forked.

What is imported here is all that a forked shim ever imports, but for ``json`` to read a failure of
the runtime: an import after the fork is paid for by every shim, one before by all of them.
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, SOCK_STREAM, socket

from cradled.linux import heap, libc, loop  # noqa: F401 (loop: for mounts of images)
from cradled.shim import log
from cradled.shim.rehearsal import TIMES, rehearse
from cradled.shim.runc import LIMIT
from cradled.shim.supervise import run
from cradled.zygote import protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


def prepare() -> None:
    """Make this process ready to be forked from: called by the zygote, once."""
    libc.load()
    directory = protocol.scratch(os.environ, os.getpid())
    try:
        heap.gather(heap.executed(lambda: rehearse(directory, 1)))
        rehearse(directory, TIMES)
    except OSError as error:  # shims will be larger, nothing else
        log.line(f"rehearsal: {error}")


def forked(params: dict[str, Any], fds: Sequence[int]) -> None:
    """Serve until shut down. ``fds`` is the listening Unix socket.

    ``params``: ``namespace``, ``bundle`` (of the first container; the working directory, and where
    the ``log`` FIFO lies), ``ttrpc_address`` (of the daemon's events service; empty for none), and
    where it is not the usual one ``runtime_limit`` (seconds for a runtime's command, or None). With
    ``sched_core`` its processes share no core with others; where that cannot be it does not serve.
    """
    os.chdir(params["bundle"])
    if params.get("sched_core"):
        try:
            libc.own_core()
        except OSError as error:
            log.to_daemon(params["bundle"])
            log.line(str(error))
            return
    listener = socket(AF_UNIX, SOCK_STREAM, 0, fds[0])
    os.set_inheritable(fds[0], False)
    run(
        listener,
        params["namespace"],
        params["bundle"],
        params["ttrpc_address"],
        limit=params.get("runtime_limit", LIMIT),
    )
