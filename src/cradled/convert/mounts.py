"""Pure. Mounts."""

from __future__ import annotations

from cradled.api.types_pb2 import Mount as MountMessage
from cradled.core.mount import Mount


def to_proto(mount: Mount) -> MountMessage:
    return MountMessage(
        type=mount.type, source=mount.source, target=mount.target, options=mount.options
    )


def from_proto(message: MountMessage) -> Mount:
    return Mount(message.type, message.source, tuple(message.options), message.target)
