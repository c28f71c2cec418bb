"""Pure. Leases and what they hold."""

from __future__ import annotations

from cradled.api import leases_pb2 as pb
from cradled.convert.values import nanoseconds, timestamp_or_none
from cradled.core.leases import Lease, Resource


def to_proto(lease: Lease) -> pb.Lease:
    return pb.Lease(
        id=lease.id, created_at=timestamp_or_none(lease.created_at), labels=lease.labels
    )


def from_proto(message: pb.Lease) -> Lease:
    return Lease(message.id, nanoseconds(message.created_at), dict(message.labels))


def resource_to_proto(resource: Resource) -> pb.Resource:
    return pb.Resource(id=resource.id, type=resource.type)


def resource_from_proto(message: pb.Resource) -> Resource:
    return Resource(message.id, message.type)
