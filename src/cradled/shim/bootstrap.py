"""Pure. How a daemon starts a shim program: what it says, and what it wants to hear.

A daemon of today writes ``BootstrapParams`` to stdin and reads a ``BootstrapResult``. An older one
gives flags and environment, writes just the runtime options (an ``Any``) or nothing, and reads the
address as text, which every older version understands. Both messages begin with two strings, so
which it is, is told by the flags: an ``Any``'s type URL is never the id that they name as well.
"""

from __future__ import annotations

from cradled.errors import InvalidArgument
from cradled.shim import messages as m
from cradled.ttrpc.codec import decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TypeVar

    from cradled.ttrpc.codec import Message

    M = TypeVar("M", bound=Message)

SOCKET_DIR = "/run/containerd/s"
_ACTIONS = ("start", "delete")
GROUP_ANNOTATIONS = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id")
GROUPING = "CRADLED_GROUPING"
"""The variable that says ``namespace`` where one shim is to serve all containers of each."""
WHOLE_NAMESPACE = ".namespace"
"""The group of all; no container has such an id."""

_SWITCHES = ("debug", "v", "version", "info")
_VALUES = ("namespace", "address", "publish-binary", "id", "bundle", "socket", "debug-socket")


class Flags:
    """The command line."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.switches: set[str] = set()
        self.action = ""

    def __getitem__(self, name: str) -> str:
        return self.values.get(name, "")


def parse_flags(argv: Sequence[str]) -> Flags:
    """Parse as Go's flag package does: ``-name value``, ``-name=value``, one or two dashes.

    Raises InvalidArgument.
    """
    flags = Flags()
    words = list(argv)
    while words and words[0].startswith("-") and words[0] not in ("-", "--"):
        name, equals, value = words.pop(0).lstrip("-").partition("=")
        if name in _SWITCHES:
            if value.lower() not in ("false", "0", "f"):
                flags.switches.add(name)
        elif name not in _VALUES:
            raise InvalidArgument(f"flag provided but not defined: -{name}")
        elif equals:
            flags.values[name] = value
        elif words:
            flags.values[name] = words.pop(0)
        else:
            raise InvalidArgument(f"flag needs an argument: -{name}")
    if words:
        flags.action = words[0]
        if flags.action not in _ACTIONS:
            raise InvalidArgument(f"unknown action {flags.action}")
    return flags


class Start:
    """What a ``start`` is about. ``modern``: the daemon reads a BootstrapResult."""

    def __init__(self, flags: Flags, environment: Mapping[str, str], stdin: bytes) -> None:
        params = _params(flags, stdin)
        self.modern = params is not None
        if params is None:
            options = _decoded(m.Any, stdin)
            params = m.BootstrapParams(extensions=[m.Extension(value=options)] if options else ())
        self.id = params.instance_id or flags["id"]
        self.namespace = params.namespace or flags["namespace"] or environment.get("NAMESPACE", "")
        self.grpc_address = params.containerd_grpc_address or flags["address"]
        self.ttrpc_address = (
            params.containerd_ttrpc_address
            or environment.get("TTRPC_ADDRESS", "")
            or f"{self.grpc_address}.ttrpc"
        )
        self.socket_dir = params.socket_dir or SOCKET_DIR
        self.is_for_all = environment.get(GROUPING) == "namespace"
        self.options = m.Options()
        for extension in params.extensions:
            value = extension.value
            if value is not None and value.type_url.rpartition("/")[2] == m.Options.NAME:
                self.options = _decoded(m.Options, value.value) or self.options

    def group(self, annotations: Mapping[str, str]) -> str:
        """The id of the containers that share a shim with this one."""
        if self.is_for_all:
            return WHOLE_NAMESPACE
        for name in GROUP_ANNOTATIONS:
            if annotations.get(name):
                return annotations[name]
        return self.id

    def answer(self, address: str) -> bytes:
        """What to print for the daemon: where the shim serves."""
        if self.modern:
            return encode(m.BootstrapResult(version=3, address=address, protocol="ttrpc"))
        return address.encode()


def socket_key(grpc_address: str, namespace: str, group: str) -> str:
    """The text whose sha256 names the socket of a group."""
    return f"{grpc_address.rstrip('/')}/{namespace}/{group}"


def _params(flags: Flags, stdin: bytes) -> m.BootstrapParams | None:
    params = _decoded(m.BootstrapParams, stdin)
    if params is None:
        return None
    if flags["id"]:
        return params if params.instance_id == flags["id"] else None
    return params if params.containerd_ttrpc_address or params.containerd_grpc_address else None


def _decoded(kind: type[M], data: bytes) -> M | None:
    try:
        return decode(kind, data) if data else None
    except ValueError:
        return None
