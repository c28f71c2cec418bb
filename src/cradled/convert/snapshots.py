"""Pure. Snapshot records and usage."""

from __future__ import annotations

from cradled.api import snapshots_pb2 as pb
from cradled.convert.values import nanoseconds, timestamp_or_none
from cradled.core.snapshots import Kind, SnapshotInfo, Usage

_KINDS = {kind.value: kind for kind in Kind}


def to_proto(info: SnapshotInfo) -> pb.Info:
    return pb.Info(
        name=info.name,
        parent=info.parent,
        kind=int(info.kind),
        created_at=timestamp_or_none(info.created_at),
        updated_at=timestamp_or_none(info.updated_at),
        labels=info.labels,
    )


def from_proto(message: pb.Info) -> SnapshotInfo:
    """A kind this side does not know becomes UNKNOWN."""
    return SnapshotInfo(
        name=message.name,
        kind=_KINDS.get(message.kind, Kind.UNKNOWN),
        parent=message.parent,
        created_at=nanoseconds(message.created_at),
        updated_at=nanoseconds(message.updated_at),
        labels=dict(message.labels),
    )


def usage_to_proto(usage: Usage) -> pb.UsageResponse:
    return pb.UsageResponse(size=usage.size, inodes=usage.inodes)


def usage_from_proto(message: pb.UsageResponse) -> Usage:
    return Usage(message.size, message.inodes)
