"""Blocking. What the daemon and its zygote say to each other over their control socket.

One SEQPACKET message each way per fork, descriptors by SCM_RIGHTS. With the request go a socket for
the reply and what is for the child; with the reply comes a pidfd. A reply socket that ends without
a reply says that there is no child. Both ends are the same interpreter, so the messages are
``marshal``: it needs no import and carries bytes as they are.

Imported by everything that is forked: imports only C modules at run time.
"""

from __future__ import annotations

import marshal
from _socket import CMSG_SPACE, MSG_CMSG_CLOEXEC, SCM_RIGHTS, SOL_SOCKET
from sys import byteorder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Mapping, Sequence
    from typing import Any

# The zygote's end of the control socket.
CONTROL_FD = 3

# SCM_RIGHTS carries at most 253 descriptors; this many suffice and keep buffers small.
MAX_FDS = 32
MAX_MESSAGE = 128 << 10


_INT = 4


def scratch(env: Mapping[str, str], pid: int) -> str:
    """A directory that a zygote may make for itself; who started it removes it when it dies."""
    return f"{env.get('TMPDIR', '/tmp')}/.cradled-{pid}"


def send(sock: socket, data: bytes, fds: Sequence[int]) -> None:
    sock.sendmsg([data], [(SOL_SOCKET, SCM_RIGHTS, _pack(fds))] if fds else [])


def receive(sock: socket) -> tuple[bytes, list[int]]:
    """A message and its descriptors, which no program executed later inherits; b"" at the end."""
    data, rights, _, _ = sock.recvmsg(MAX_MESSAGE, CMSG_SPACE(MAX_FDS * _INT), MSG_CMSG_CLOEXEC)
    return data, [fd for _, _, packed in rights for fd in _unpack(packed)]


def _pack(fds: Sequence[int]) -> bytes:
    return b"".join(fd.to_bytes(_INT, byteorder) for fd in fds)


def _unpack(packed: bytes) -> list[int]:
    return [
        int.from_bytes(packed[at : at + _INT], byteorder)
        for at in range(0, len(packed) - _INT + 1, _INT)
    ]


def encode(message: dict[str, Any]) -> bytes:
    """Raises ValueError for a message that is too long or holds more than plain values."""
    data = marshal.dumps(message)
    if len(data) > MAX_MESSAGE:
        raise ValueError(f"a message of {len(data)} bytes is over the limit of {MAX_MESSAGE}")
    return data


def decode(data: bytes) -> dict[str, Any]:
    return marshal.loads(data)  # type: ignore[no-any-return]


def request(
    entry: str, params: dict[str, Any], name: str, oom_score_adj: int | None, cgroups: list[str]
) -> dict[str, Any]:
    """A fork: ``entry`` is ``module:function``, called with ``params`` and the descriptors."""
    return {
        "entry": entry,
        "params": params,
        "name": name,
        "oom_score_adj": oom_score_adj,
        "cgroups": cgroups,
    }
