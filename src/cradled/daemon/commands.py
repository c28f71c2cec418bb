"""Blocking. The commands beside the daemon itself; each returns the exit status."""

from __future__ import annotations

import asyncio
import sys

from cradled.daemon import builtins, config_file, config_text, migrate
from cradled.daemon.arguments import Arguments
from cradled.daemon.config import DEFAULT_PATH, Config
from cradled.errors import Error, InvalidArgument

PUBLISH_SECONDS = 30.0


def default() -> int:
    """Print the built-in configuration."""
    print(config_text.full(Config(), builtins.known().sections), end="")
    return 0


def dump(config: Config) -> int:
    """Print the configuration in force."""
    print(config_text.full(config, builtins.known().sections), end="")
    return 0


def migrate_file(args: Arguments) -> int:
    """Print a file (not what it imports) in the newest layout. Raises ConfigError."""
    tables = config_file.parse(args.config or DEFAULT_PATH)
    print(config_text.text(migrate.lift(tables)), end="")
    return 0


def check(args: Arguments) -> int:
    """Print every problem of a file and its imports; 1 if the daemon would not start with it."""
    path = args.config or DEFAULT_PATH
    _, problems = config_file.examine(path, must_exist=True, known=builtins.known)
    for problem in problems:
        print(problem)
    return int(bool(config_file.fatal(problems, args.strict)))


def publish(address: str, topic: str, namespace: str) -> int:
    """Publish the event that stdin has. Raises Error."""
    if not topic:
        raise InvalidArgument("topic required to publish event: invalid argument", verbatim=True)
    asyncio.run(_publish(address, topic, namespace, sys.stdin.buffer.read()))
    return 0


async def _publish(address: str, topic: str, namespace: str, event: bytes) -> None:
    from google.protobuf.message import DecodeError

    from cradled.api import events_service_pb2 as pb
    from cradled.api.wellknown_pb2 import Any
    from cradled.rpc import grpc_client
    from cradled.rpc.stub import Stub

    try:
        request = pb.PublishRequest(topic=topic, event=Any.FromString(event))
    except DecodeError as error:
        raise Error(f"stdin has no serialised Any: {error}") from error
    channel = await grpc_client.connect(address)
    try:
        metadata = [("containerd-namespace", namespace)] if namespace else []
        await Stub(channel, pb.Events, metadata).publish(request, timeout=PUBLISH_SECONDS)
    finally:
        await channel.aclose()
