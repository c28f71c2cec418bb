"""Pure. What a handler is told about the call it serves, whatever carried it here."""

from __future__ import annotations

import base64
import socket
import struct
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple

from cradled import identifiers, spans
from cradled.core.scope import Scope
from cradled.errors import FailedPrecondition, InvalidArgument

NAMESPACE = "containerd-namespace"
NAMESPACE_TTRPC = "containerd-namespace-ttrpc"
LEASE = "containerd-lease"

_UCRED = struct.Struct("3i")


class Peer(NamedTuple):
    """The process at the other end of a unix socket, as the kernel saw it at connect."""

    pid: int
    uid: int
    gid: int

    @classmethod
    def of(cls, sock: socket.socket) -> Peer | None:
        """The peer of a connected socket; None for one that is no unix socket."""
        if sock.family != socket.AF_UNIX:
            return None
        return cls(*_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)))


class Call(spans.Call):
    """One call as its handler sees it.

    ``metadata`` and ``binary`` (the ``-bin`` keys) are read only: calls of one connection may
    share them. Keys are in lower case; of repeated keys the first value counts. ``deadline``
    is in the loop's time; the transport cancels the handler when it passes. What a handler
    adds to ``initial_metadata`` before its first response, or to ``trailing_metadata`` before
    it ends, goes to the client where the transport can carry it. It is a span, too.
    """

    __slots__ = (
        "binary",
        "deadline",
        "initial_metadata",
        "metadata",
        "peer",
        "trailing_metadata",
        "transport",
    )

    def __init__(
        self,
        transport: str,
        metadata: Mapping[str, str],
        binary: Mapping[str, bytes],
        peer: Peer | None = None,
        deadline: float | None = None,
    ) -> None:
        self.transport = transport
        self.metadata = metadata
        self.binary = binary
        self.peer = peer
        self.deadline = deadline
        self.initial_metadata: list[tuple[str, str | bytes]] = []
        self.trailing_metadata: list[tuple[str, str | bytes]] = []

    def scope(self) -> Scope:
        """The namespace and lease that the caller named.

        Raises FailedPrecondition without a namespace, InvalidArgument for a malformed one.
        """
        metadata = self.metadata
        if self.transport == "ttrpc":  # a Go client sends either form on its own transport only
            return _scope(metadata.get(NAMESPACE_TTRPC, ""), "")
        return _scope(metadata.get(NAMESPACE, ""), metadata.get(LEASE, ""))


def split_metadata(
    pairs: Iterable[tuple[str, str]],
) -> tuple[dict[str, str], dict[str, bytes]]:
    """Texts and ``-bin`` values of metadata as it travelled; the first of a key counts.

    A ``-bin`` value that is no base64 is left out.
    """
    texts: dict[str, str] = {}
    binary: dict[str, bytes] = {}
    for key, value in pairs:
        if not key.endswith("-bin"):
            texts.setdefault(key, value)
        elif key not in binary:
            first = value.partition(",")[0]  # a sender may join repeated values
            with suppress(ValueError):
                binary[key] = base64.b64decode(first + "=" * (-len(first) % 4), validate=True)
    return texts, binary


@lru_cache(1024)
def _scope(namespace: str, lease: str) -> Scope:
    if not namespace:
        raise FailedPrecondition("namespace is required")
    try:
        identifiers.validate(namespace)
    except InvalidArgument as error:
        raise InvalidArgument(f"namespace validation: {error.what}") from error
    return Scope(namespace, lease)
