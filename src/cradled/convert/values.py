"""Pure. Small values: ``Any``, descriptors, timestamps.

A core time of 0 means "not set" and is left absent on the wire; where clients need an instant even
then, it is the year-1 timestamp (``timestamp_or_never``).
"""

from __future__ import annotations

from cradled.api.types_pb2 import Descriptor as DescriptorMessage
from cradled.api.wellknown_pb2 import Any, Timestamp
from cradled.core.values import AnyValue, Descriptor

STATUS = "google.rpc.Status"
"""The type of the events that tell of a denied call (``convert.denials``)."""

NEVER = -62135596800 * 1_000_000_000
"""Midnight of 0001-01-01 in nanoseconds: what "no time" looks like to Go clients."""


def timestamp(nanoseconds: int) -> Timestamp:
    """A wire timestamp of nanoseconds since the epoch; also before it."""
    seconds, nanos = divmod(nanoseconds, 1_000_000_000)
    return Timestamp(seconds=seconds, nanos=nanos)


def timestamp_or_none(nanoseconds: int) -> Timestamp | None:
    """As ``timestamp``; None (absent on the wire) for 0."""
    return timestamp(nanoseconds) if nanoseconds else None


def timestamp_or_never(nanoseconds: int) -> Timestamp:
    """As ``timestamp``; the year-1 timestamp for 0."""
    return timestamp(nanoseconds or NEVER)


def nanoseconds(message: Timestamp) -> int:
    """Nanoseconds since the epoch; 0 for an absent or year-1 timestamp."""
    value = message.seconds * 1_000_000_000 + message.nanos
    return 0 if value == NEVER else value


def any_to_proto(value: AnyValue) -> Any:
    return Any(type_url=value.type_url, value=value.value)


def any_from_proto(message: Any) -> AnyValue:
    return AnyValue(message.type_url, message.value)


def optional_any_to_proto(value: AnyValue | None) -> Any | None:
    return None if value is None else Any(type_url=value.type_url, value=value.value)


def descriptor_to_proto(value: Descriptor) -> DescriptorMessage:
    return DescriptorMessage(
        media_type=value.media_type,
        digest=value.digest,
        size=value.size,
        annotations=value.annotations,
    )


def descriptor_from_proto(message: DescriptorMessage) -> Descriptor:
    return Descriptor(message.media_type, message.digest, message.size, dict(message.annotations))
