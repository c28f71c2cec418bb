"""Pure. What imported images are called (reference, services.md section 13)."""

from __future__ import annotations

import time
from collections.abc import Iterator

from cradled.core.images import Image
from cradled.core.transfer import ExtraReference, ImageDestination
from cradled.core.values import Descriptor
from cradled.errors import NotFound
from cradled.oci import image as oci

_BACK_REFERENCE = "containerd.io/gc.bref.image"
_EXPIRES = "containerd.io/gc.expire"


def named_by_destination(target: Descriptor, destination: ImageDestination) -> list[Image]:
    """Records for what the destination itself names. Raises NotFound when it names nothing."""
    images = []
    if destination.name:
        images.append(Image(destination.name, target, destination.labels))
    labels = dict(destination.labels)
    if destination.name:  # the others go when the main one does
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        labels |= {_BACK_REFERENCE: destination.name, _EXPIRES: now}
    for extra in destination.extra_references:
        if not extra.is_prefix:
            name = f"{extra.name}@{target.digest}" if extra.add_digest else extra.name
            images.append(Image(name, target, labels))
    return _some(images)


def named_by_archive(target: Descriptor, destination: ImageDestination) -> list[Image]:
    """Records for what the archive names, as far as the prefixes allow. Raises NotFound."""
    names: dict[str, None] = {}
    for extra in destination.extra_references:
        if extra.is_prefix:
            names |= dict.fromkeys(_names(target, extra))
    return _some([Image(name, target, destination.labels) for name in names])


def _names(target: Descriptor, extra: ExtraReference) -> Iterator[str]:
    name = _archive_name(target, extra)
    if name:
        yield name
    if extra.add_digest and not (name and extra.skip_named_digest):
        yield f"{extra.name}@{target.digest}"


def _archive_name(target: Descriptor, extra: ExtraReference) -> str:
    full = target.annotations.get(oci.IMAGE_NAME, "")
    if full:
        return full if _acceptable(full, extra) and _is_full(full) else ""
    short = target.annotations.get(oci.REF_NAME, "")
    if not short:
        return ""
    if _is_full(short):
        return short if _acceptable(short, extra) else ""
    return f"{extra.name}:{short}" if extra.name else ""


def _is_full(name: str) -> bool:
    """A bare tag is no name by itself."""
    return any(mark in name for mark in "/:@")


def _acceptable(name: str, extra: ExtraReference) -> bool:
    if extra.allow_overwrite:
        return True
    rest = name.removeprefix(extra.name)
    return rest != name and (not rest or rest[0] in "/:@")


def _some(images: list[Image]) -> list[Image]:
    if not images:
        raise NotFound("no image name found")
    return images
