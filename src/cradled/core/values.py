"""Pure. Small values that several nouns share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class AnyValue:
    """A typed payload that is passed on unopened (``google.protobuf.Any``)."""

    type_url: str
    value: bytes = b""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a blob is: media type, digest and size in bytes (OCI image-spec, descriptor.md)."""

    media_type: str
    digest: str
    size: int
    annotations: Labels = field(default_factory=dict)
