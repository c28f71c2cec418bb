"""Pure. Container records."""

from __future__ import annotations

from cradled.api import containers_pb2 as pb
from cradled.convert.values import (
    any_from_proto,
    any_to_proto,
    nanoseconds,
    optional_any_to_proto,
    timestamp_or_none,
)
from cradled.core.containers import Container, Runtime


def to_proto(container: Container) -> pb.Container:
    runtime = container.runtime
    return pb.Container(
        id=container.id,
        labels=container.labels,
        image=container.image,
        runtime=pb.Container.Runtime(
            name=runtime.name, options=optional_any_to_proto(runtime.options)
        ),
        spec=optional_any_to_proto(container.spec),
        snapshotter=container.snapshotter,
        snapshot_key=container.snapshot_key,
        created_at=timestamp_or_none(container.created_at),
        updated_at=timestamp_or_none(container.updated_at),
        extensions={key: any_to_proto(value) for key, value in container.extensions.items()},
        sandbox=container.sandbox,
    )


def from_proto(message: pb.Container) -> Container:
    runtime = message.runtime
    return Container(
        id=message.id,
        labels=dict(message.labels),
        image=message.image,
        runtime=Runtime(
            runtime.name, any_from_proto(runtime.options) if runtime.HasField("options") else None
        ),
        spec=any_from_proto(message.spec) if message.HasField("spec") else None,
        snapshotter=message.snapshotter,
        snapshot_key=message.snapshot_key,
        created_at=nanoseconds(message.created_at),
        updated_at=nanoseconds(message.updated_at),
        extensions={key: any_from_proto(value) for key, value in message.extensions.items()},
        sandbox=message.sandbox,
    )


def encode(container: Container) -> bytes:
    """The serialised message: the form records are stored and served in."""
    return to_proto(container).SerializeToString()


def decode(record: bytes) -> Container:
    """Back from ``encode``."""
    return from_proto(pb.Container.FromString(record))
