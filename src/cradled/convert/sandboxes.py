"""Pure. Sandbox records."""

from __future__ import annotations

from cradled.api.types_pb2 import Sandbox as SandboxMessage
from cradled.convert.values import (
    any_from_proto,
    any_to_proto,
    nanoseconds,
    optional_any_to_proto,
    timestamp_or_none,
)
from cradled.core.containers import Runtime
from cradled.core.sandboxes import Sandbox


def to_proto(sandbox: Sandbox) -> SandboxMessage:
    runtime = sandbox.runtime
    return SandboxMessage(
        sandbox_id=sandbox.id,
        runtime=SandboxMessage.Runtime(
            name=runtime.name, options=optional_any_to_proto(runtime.options)
        ),
        spec=optional_any_to_proto(sandbox.spec),
        labels=sandbox.labels,
        created_at=timestamp_or_none(sandbox.created_at),
        updated_at=timestamp_or_none(sandbox.updated_at),
        extensions={key: any_to_proto(value) for key, value in sandbox.extensions.items()},
        sandboxer=sandbox.sandboxer,
    )


def from_proto(message: SandboxMessage) -> Sandbox:
    runtime = message.runtime
    return Sandbox(
        id=message.sandbox_id,
        runtime=Runtime(
            runtime.name, any_from_proto(runtime.options) if runtime.HasField("options") else None
        ),
        spec=any_from_proto(message.spec) if message.HasField("spec") else None,
        labels=dict(message.labels),
        created_at=nanoseconds(message.created_at),
        updated_at=nanoseconds(message.updated_at),
        extensions={key: any_from_proto(value) for key, value in message.extensions.items()},
        sandboxer=message.sandboxer,
    )


def encode(sandbox: Sandbox) -> bytes:
    """The serialised message."""
    return to_proto(sandbox).SerializeToString()


def decode(record: bytes) -> Sandbox:
    """Back from the serialised message."""
    return from_proto(SandboxMessage.FromString(record))
