"""Pure. Blobs and ingests."""

from __future__ import annotations

from cradled.api import content_pb2 as pb
from cradled.convert.values import nanoseconds, timestamp_or_none
from cradled.core.content import ContentInfo, IngestStatus


def to_proto(info: ContentInfo) -> pb.Info:
    return pb.Info(
        digest=info.digest,
        size=info.size,
        created_at=timestamp_or_none(info.created_at),
        updated_at=timestamp_or_none(info.updated_at),
        labels=info.labels,
    )


def from_proto(message: pb.Info) -> ContentInfo:
    return ContentInfo(
        digest=message.digest,
        size=message.size,
        created_at=nanoseconds(message.created_at),
        updated_at=nanoseconds(message.updated_at),
        labels=dict(message.labels),
    )


def status_to_proto(status: IngestStatus) -> pb.Status:
    return pb.Status(
        started_at=timestamp_or_none(status.started_at),
        updated_at=timestamp_or_none(status.updated_at),
        ref=status.ref,
        offset=status.offset,
        total=status.total,
        expected=status.expected,
    )


def status_from_proto(message: pb.Status) -> IngestStatus:
    return IngestStatus(
        ref=message.ref,
        offset=message.offset,
        total=message.total,
        expected=message.expected,
        started_at=nanoseconds(message.started_at),
        updated_at=nanoseconds(message.updated_at),
    )
