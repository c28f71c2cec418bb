"""Blocking. What a daemon and the one that takes over from it say to each other.

    the old one                                    the new one
    hello: root, state, version, modules,    ->
           and all sockets and locks
                                             <-    ready: version
    turn: when it stopped to take calls,     ->
          and where subscribers were
                                             <-    serving: how long nobody did
    yours                                    ->

Each is a message on a SEQPACKET socket whose other end the new one finds at ``FD``, and is told so
by ``listeners.HANDOVER`` in its environment. It is JSON: the two may run on different interpreters.
The new one may say ``failed`` and why in place of anything else; that it ends says the same. That
the old one ends before ``yours`` ends the new one.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from typing import Any

from cradled.zygote import protocol

FD = 3
VERSION = 1
"""Of this conversation."""


def send(sock: socket.socket, fds: Sequence[int] = (), /, **message: Any) -> None:
    """Raises OSError when the other end is gone."""
    protocol.send(sock, json.dumps(message).encode(), fds)


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next message, and descriptors that came with it; empty at the end.

    That the other end was closed before it had read all is told first, and once, even if it had
    said something.
    """
    try:
        data, fds = protocol.receive(sock)
    except ConnectionResetError:
        data, fds = protocol.receive(sock)
    return (json.loads(data) if data else {}), fds
