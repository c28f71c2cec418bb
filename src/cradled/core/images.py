"""Pure. The image record: a name for a descriptor."""

from __future__ import annotations

from dataclasses import dataclass, field

from cradled.core.values import Descriptor, Labels


@dataclass(frozen=True, slots=True)
class Image:
    """Times are nanoseconds since the epoch."""

    name: str
    target: Descriptor
    labels: Labels = field(default_factory=dict)
    created_at: int = 0
    updated_at: int = 0
