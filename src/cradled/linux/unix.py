"""Blocking. Unix stream sockets at paths, none of which is inherited by a program that is started.

Used by the shim: imports only ``os`` and C modules.
"""

from __future__ import annotations

import os
from _socket import (
    AF_UNIX,
    SO_PEERCRED,
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
)

_BACKLOG = 128


def listen(path: str) -> socket:
    """A listening socket that only its owner can connect to. Raises OSError."""
    sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    umask = os.umask(0o177)
    try:
        sock.bind(path)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(umask)
    return sock


def accept(listener: socket) -> int:
    """The non-blocking descriptor of a connection. Raises OSError."""
    fd, _ = listener._accept()  # type: ignore[attr-defined]
    os.set_blocking(fd, False)
    return fd  # type: ignore[no-any-return]


def connect(path: str) -> socket:
    """A non-blocking connection. Raises OSError."""
    sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK)
    try:
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def is_served(path: str) -> bool:
    """Whether somebody listens at a path."""
    try:
        connect(path).close()
    except BlockingIOError:
        return True  # so busy that its backlog is full
    except OSError:
        return False
    return True


def remove_stale(path: str) -> bool:
    """Remove the socket at a path, if any; False where somebody listens there. Raises OSError."""
    if is_served(path):
        return False
    try:  # noqa: SIM105 (contextlib is not worth its import)
        os.unlink(path)
    except FileNotFoundError:
        pass
    return True


def peer(fd: int) -> tuple[int, int, int]:
    """Pid, uid and gid of the other side of a connection."""
    sock = socket(AF_UNIX, SOCK_STREAM, 0, fd)
    try:
        data = sock.getsockopt(SOL_SOCKET, SO_PEERCRED, 12)
    finally:
        sock.detach()
    pid, uid, gid = (int.from_bytes(data[i : i + 4], "little") for i in (0, 4, 8))
    return pid, uid, gid
