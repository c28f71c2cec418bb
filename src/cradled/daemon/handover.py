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

FD = 3
VERSION = 1
"""Of this conversation."""

_BYTES = 128 << 10
_FDS = 64


def send(sock: socket.socket, fds: Sequence[int] = (), /, **message: Any) -> None:
    """Raises OSError when the other end is gone."""
    socket.send_fds(sock, [json.dumps(message).encode()], fds)


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next message, and descriptors that came with it; empty at the end."""
    try:
        data, fds, _, _ = socket.recv_fds(sock, _BYTES, _FDS, socket.MSG_CMSG_CLOEXEC)
    except ConnectionError:
        return {}, []
    return (json.loads(data) if data else {}), fds
