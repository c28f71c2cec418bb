"""Blocking. Who is at the other end of a unix socket, beyond pid, uid and gid.

All of it is short enough to be asked on the loop: a socket option, three reads of /proc.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
import sys

from cradled.linux import libc, unix

_SO_PEERGROUPS = 59
_SO_PEERPIDFD = 77  # Linux 6.5
_MOST_GROUPS = 65536
_FEW_GROUPS = 64


def groups(sock: socket.socket) -> frozenset[int]:
    """The supplementary groups the peer had when it connected. Raises OSError."""
    try:
        return _groups(sock, _FEW_GROUPS)
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
    return _groups(sock, _MOST_GROUPS)


def executable(sock: socket.socket) -> str:
    """The path of the program that the peer runs; empty if that is not certain.

    A path counts only if it names for us the same file as for the peer: not for a program in
    another mount namespace, nor for one that was replaced on disk. The peer is held by a pidfd
    meanwhile, so that the answer is not about a later process of the same number.
    """
    pid, _, _ = unix.peer(sock.fileno())
    try:
        pidfd = _pidfd(sock, pid)
    except OSError:
        return ""
    try:
        path = os.readlink(f"/proc/{pid}/exe")
        certain = os.path.samestat(os.stat(f"/proc/{pid}/exe"), os.stat(path))
        signal.pidfd_send_signal(pidfd, 0)  # it is still there, so was its entry in /proc
    except OSError:
        return ""
    finally:
        os.close(pidfd)
    return path if certain else ""


def _groups(sock: socket.socket, count: int) -> frozenset[int]:
    found = libc.buffer(bytes(4 * count))
    size = libc.buffer((4 * count).to_bytes(4, sys.byteorder))
    libc.call("getsockopt", sock.fileno(), socket.SOL_SOCKET, _SO_PEERGROUPS, found, size)
    length = int.from_bytes(size.raw, sys.byteorder)
    return frozenset(struct.unpack(f"={length // 4}I", found.raw[:length]))


def _pidfd(sock: socket.socket, pid: int) -> int:
    """Of the process that connected; before Linux 6.5 of whoever has its number now."""
    try:
        return sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
    return os.pidfd_open(pid)
