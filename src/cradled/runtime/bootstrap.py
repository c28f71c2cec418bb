"""Pure. How a shim program is asked to start, and how its answer is read (all versions of both).

Reference: tasks-and-shims.md section 2. The answer of ``start`` is a ``BootstrapResult`` message,
or JSON, or just an address; the daemon keeps it as ``bootstrap.json`` in the bundle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from cradled.api import bootstrap_pb2 as pb
from cradled.api import task_v2_pb2, wellknown_pb2
from cradled.core.tasks import Exit
from cradled.core.values import AnyValue
from cradled.errors import Error, Unimplemented
from cradled.runtime.timeouts import DEFAULT, Timeouts
from cradled.version import COMPATIBLE

MAX_VERSION = 3
SOCKET_DIR_LIMIT = 42
"""Shims put 65 characters behind it: a longer one is not told, they use their own."""
PROTOCOLS = ("ttrpc", "grpc")

_FIRST_FIELD = b"\x08"  # a BootstrapResult starts with its version; no text does


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Where a shim serves: the version of its Task API, its address, ``ttrpc`` or ``grpc``."""

    version: int
    address: str
    protocol: str = "ttrpc"

    @property
    def path(self) -> str:
        """Of its socket; empty when that is no file."""
        path = self.address.removeprefix("unix://")
        return path if path.startswith("/") else ""

    def to_json(self) -> bytes:
        """As it is kept in ``bootstrap.json``."""
        values = {"version": self.version, "address": self.address, "protocol": self.protocol}
        return json.dumps(values, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class Daemon:
    """What shims are told about the daemon that starts them.

    ``publish_binary`` is a program that publishes events by ``publish``; ``env`` goes on top of
    what every shim gets.
    """

    grpc_address: str
    ttrpc_address: str
    socket_dir: str
    publish_binary: str = "cradled"
    env: Mapping[str, str] | None = None
    debug: bool = False
    timeouts: Timeouts = DEFAULT


def parse_output(output: bytes) -> Bootstrap:
    """What ``start`` printed. Raises Error for nothing usable, Unimplemented for one too new."""
    return _usable(_parse_message(output) or _parse_json(output) or _parse_text(output))


def parse_json(data: bytes) -> Bootstrap:
    """The content of ``bootstrap.json``. Raises Error, Unimplemented."""
    return _usable(_parse_json(data) or Bootstrap(0, ""))


def _usable(result: Bootstrap) -> Bootstrap:
    if result.version > MAX_VERSION:
        raise Unimplemented(f"unsupported shim version ({result.version})")
    if result.protocol not in PROTOCOLS:
        raise Error(f'unsupported shim protocol "{result.protocol}"')
    if result.address[:1] in ("", "{"):
        raise Error(f"shim gave no usable address: {result.address[:200]!r}")
    return result


def parse_address(text: str, version: int) -> Bootstrap:
    """An address as clients keep it, ``<protocol>+<address>``; ttrpc where none is named."""
    protocol, plus, address = text.partition("+")
    if plus and protocol in PROTOCOLS:
        return Bootstrap(version, address, protocol)
    return Bootstrap(version, text)


def _parse_message(output: bytes) -> Bootstrap | None:
    if not output.startswith(_FIRST_FIELD):
        return None
    try:
        message = pb.BootstrapResult.FromString(output)
    except DecodeError:
        return None
    return Bootstrap(message.version, message.address, message.protocol or "ttrpc")


def _parse_json(output: bytes) -> Bootstrap | None:
    try:
        values = json.loads(output)
        version = values["version"]
        if version < 2:
            return None
        return Bootstrap(int(version), str(values["address"]), str(values["protocol"]))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def _parse_text(output: bytes) -> Bootstrap:
    return Bootstrap(2, output.decode(errors="replace").strip())


def params(
    daemon: Daemon, namespace: str, instance_id: str, options: AnyValue | None
) -> pb.BootstrapParams:
    """What a shim of today reads from stdin."""
    message = pb.BootstrapParams(
        instance_id=instance_id,
        namespace=namespace,
        log_level=pb.LOG_LEVEL_DEBUG if daemon.debug else pb.LOG_LEVEL_INFO,
        containerd_version=COMPATIBLE,
        containerd_ttrpc_address=daemon.ttrpc_address,
        containerd_grpc_address=daemon.grpc_address,
        containerd_binary=daemon.publish_binary,
        socket_dir=daemon.socket_dir if len(daemon.socket_dir) <= SOCKET_DIR_LIMIT else "",
    )
    if options is not None:
        message.extensions.add().value.CopyFrom(_any(options))
    return message


def legacy_params(options: AnyValue | None) -> bytes:
    """What older shims read from stdin: the options, or nothing."""
    return b"" if options is None else bytes(_any(options).SerializeToString())


def arguments(daemon: Daemon, namespace: str, instance_id: str, bundle: str = "") -> list[str]:
    """The flags of every action, without program and action."""
    flags = [
        "-namespace",
        namespace,
        "-address",
        daemon.grpc_address,
        "-publish-binary",
        daemon.publish_binary,
        "-id",
        instance_id,
    ]
    if bundle:
        flags += ["-bundle", bundle]
    if daemon.debug:
        flags.append("-debug")
    return flags


def environment(base: Mapping[str, str], daemon: Daemon, namespace: str) -> dict[str, str]:
    """What a shim program finds in its environment."""
    return {
        **base,
        "GOMAXPROCS": "2",
        "MAX_SHIM_VERSION": "2",
        "TTRPC_ADDRESS": daemon.ttrpc_address,
        "GRPC_ADDRESS": daemon.grpc_address,
        "NAMESPACE": namespace,
        **(daemon.env or {}),
    }


def parse_delete(output: bytes) -> Exit:
    """What ``delete`` printed. Raises Error, for nothing at all too."""
    if not output:
        raise Error("shim printed no DeleteResponse")
    try:
        response = task_v2_pb2.DeleteResponse.FromString(output)
    except DecodeError as error:
        raise Error(f"shim printed no DeleteResponse: {error}") from None
    at = response.exited_at.seconds * 1_000_000_000 + response.exited_at.nanos
    return Exit(response.pid, response.exit_status, max(at, 0))


def _any(value: AnyValue) -> Any:
    return wellknown_pb2.Any(type_url=value.type_url, value=value.value)
