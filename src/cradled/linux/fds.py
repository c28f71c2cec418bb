"""Blocking. Descriptors handed from one process to another.

Used by the shim: imports only ``os`` and C modules.
"""

from __future__ import annotations

import os
from _socket import SCM_RIGHTS, SOL_SOCKET, socket
from fcntl import F_DUPFD_CLOEXEC, fcntl

_SIZE = 4  # of one descriptor in a control message


def above(fd: int, lowest: int) -> int:
    """Move a descriptor to a number from ``lowest`` up, closed on exec.

    A spawn that maps descriptors to low numbers must not overwrite one it still has to map.
    """
    if fd >= lowest:
        return fd
    try:
        return fcntl(fd, F_DUPFD_CLOEXEC, lowest)
    finally:
        os.close(fd)


def receive(sock: socket) -> int:
    """One descriptor sent over a Unix socket, closed on exec. Raises OSError when none came."""
    _, messages, _, _ = sock.recvmsg(4096, 1024)
    received = [
        int.from_bytes(data[i : i + _SIZE], "little")
        for level, kind, data in messages
        if (level, kind) == (SOL_SOCKET, SCM_RIGHTS)
        for i in range(0, len(data) - len(data) % _SIZE, _SIZE)
    ]
    if not received:
        raise OSError("no descriptor was sent")
    for fd in received[1:]:
        os.close(fd)
    os.set_inheritable(received[0], False)
    return received[0]
