"""Pure. What travels with transfers: sources, destinations, progress, and bytes in windows."""

from __future__ import annotations

from cradled.api import transfer_types_pb2 as pb
from cradled.api.types_pb2 import Platform as PlatformMessage
from cradled.api.wellknown_pb2 import Any
from cradled.convert.values import descriptor_from_proto, descriptor_to_proto
from cradled.core.transfer import ExtraReference, ImageDestination, Progress, Unpack

_DATA = pb.Data.DESCRIPTOR.full_name
_WINDOW = pb.WindowUpdate.DESCRIPTOR.full_name
_PROGRESS = pb.Progress.DESCRIPTOR.full_name


def type_name(value: Any) -> str:
    """The message type in an Any, whatever stands before it in the URL."""
    return value.type_url.rpartition("/")[2]


def data_to_any(data: bytes) -> Any:
    return Any(type_url=_DATA, value=pb.Data(data=data).SerializeToString())


def data_from_any(message: Any) -> bytes:
    """The bytes; empty for a message that is something else."""
    return pb.Data.FromString(message.value).data if type_name(message) == _DATA else b""


def window_to_any(update: int) -> Any:
    return Any(type_url=_WINDOW, value=pb.WindowUpdate(update=update).SerializeToString())


def window_from_any(message: Any) -> int:
    """The bytes granted; 0 for a message that is something else."""
    if type_name(message) != _WINDOW:
        return 0
    return pb.WindowUpdate.FromString(message.value).update


def progress_to_any(progress: Progress) -> Any:
    described = progress.descriptor
    message = pb.Progress(
        event=progress.event,
        name=progress.name,
        parents=progress.parents,
        progress=progress.done,
        total=progress.total,
        desc=None if described is None else descriptor_to_proto(described),
    )
    return Any(type_url=_PROGRESS, value=message.SerializeToString())


def progress_from_any(message: Any) -> Progress | None:
    """None for a message that is something else."""
    if type_name(message) != _PROGRESS:
        return None
    step = pb.Progress.FromString(message.value)
    return Progress(
        event=step.event,
        name=step.name,
        parents=tuple(step.parents),
        done=step.progress,
        total=step.total,
        descriptor=descriptor_from_proto(step.desc) if step.HasField("desc") else None,
    )


def destination_to_proto(image: ImageDestination) -> pb.ImageStore:
    extras = (
        pb.ImageReference(
            name=extra.name,
            is_prefix=extra.is_prefix,
            allow_overwrite=extra.allow_overwrite,
            add_digest=extra.add_digest,
            skip_named_digest=extra.skip_named_digest,
        )
        for extra in image.extra_references
    )
    unpacks = (
        pb.UnpackConfiguration(
            platform=platform_to_proto(one.platform), snapshotter=one.snapshotter
        )
        for one in image.unpacks
    )
    return pb.ImageStore(
        name=image.name,
        labels=image.labels,
        platforms=map(platform_to_proto, image.platforms),
        extra_references=extras,
        unpacks=unpacks,
    )


def destination_from_proto(message: pb.ImageStore) -> ImageDestination:
    references = (
        ExtraReference(
            name=extra.name,
            is_prefix=extra.is_prefix,
            allow_overwrite=extra.allow_overwrite,
            add_digest=extra.add_digest,
            skip_named_digest=extra.skip_named_digest,
        )
        for extra in message.extra_references
    )
    unpacks = (Unpack(platform(one.platform), one.snapshotter) for one in message.unpacks)
    return ImageDestination(
        name=message.name,
        labels=dict(message.labels),
        platforms=tuple(platform(one) for one in message.platforms),
        extra_references=tuple(references),
        unpacks=tuple(unpacks),
    )


def platform(message: PlatformMessage) -> str:
    """``os[(version)]/arch[/variant]``; empty for an empty message."""
    if not message.os and not message.architecture:
        return ""
    version = f"({message.os_version})" if message.os_version else ""
    parts = (f"{message.os}{version}", message.architecture, message.variant)
    return "/".join(part for part in parts if part)


def platform_to_proto(text: str) -> PlatformMessage:
    """The message of ``os/arch[/variant]``; empty for an empty text."""
    system, _, rest = text.partition("/")
    architecture, _, variant = rest.partition("/")
    return PlatformMessage(os=system, architecture=architecture, variant=variant)
