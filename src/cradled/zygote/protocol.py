"""Blocking. What the daemon and its zygote say to each other over their control socket.

One SEQPACKET message each way per fork, descriptors by SCM_RIGHTS: there go the writing end of a
pipe, on which the child gives a sign of life, and what is for the child; back comes a pidfd. Both
ends are the same interpreter, so the messages are ``marshal``: it needs no import and carries
bytes as they are.

Imported by everything that is forked: imports only ``marshal`` and ``socket`` at run time.
"""

from __future__ import annotations

import marshal
import socket
from sys import byteorder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

# The zygote's end of the control socket.
CONTROL_FD = 3

# SCM_RIGHTS carries at most 253 descriptors; this many suffice and keep buffers small.
MAX_FDS = 32
MAX_MESSAGE = 128 << 10


_INT = 4


def send(control: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    control.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _pack(fds))] if fds else [])


def receive(control: socket.socket) -> tuple[bytes, list[int]]:
    """A message and its descriptors, which no program executed later inherits; b"" at the end."""
    space = socket.CMSG_SPACE(MAX_FDS * _INT)
    data, rights, _, _ = control.recvmsg(MAX_MESSAGE, space, socket.MSG_CMSG_CLOEXEC)
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
