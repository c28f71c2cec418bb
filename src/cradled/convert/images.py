"""Pure. Image records."""

from __future__ import annotations

from cradled.api import images_pb2 as pb
from cradled.convert.values import (
    descriptor_from_proto,
    descriptor_to_proto,
    nanoseconds,
    timestamp_or_none,
)
from cradled.core.images import Image


def to_proto(image: Image) -> pb.Image:
    return pb.Image(
        name=image.name,
        labels=image.labels,
        target=descriptor_to_proto(image.target),
        created_at=timestamp_or_none(image.created_at),
        updated_at=timestamp_or_none(image.updated_at),
    )


def from_proto(message: pb.Image) -> Image:
    return Image(
        name=message.name,
        target=descriptor_from_proto(message.target),
        labels=dict(message.labels),
        created_at=nanoseconds(message.created_at),
        updated_at=nanoseconds(message.updated_at),
    )


def encode(image: Image) -> bytes:
    """The serialised message: the form records are stored and served in."""
    return to_proto(image).SerializeToString()


def decode(record: bytes) -> Image:
    """Back from ``encode``."""
    return from_proto(pb.Image.FromString(record))
