"""Pure. The image record: a name for a descriptor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cradled.core.values import Descriptor, Labels


@dataclass(frozen=True, slots=True)
class Image:
    """Times are nanoseconds since the epoch."""

    name: str
    target: Descriptor
    labels: Labels = field(default_factory=dict)
    created_at: int = 0
    updated_at: int = 0


class ImageStore(Protocol):
    """The image records of a namespace."""

    async def get(self, name: str, /) -> Image:
        """Raises NotFound ``image "N"``."""
        ...

    async def create(self, image: Image, /) -> Image:
        """Returns it with its times. Raises AlreadyExists."""
        ...

    async def update(self, image: Image, fieldpaths: Sequence[str] = (), /) -> Image:
        """No paths: replace everything but the creation time. Raises NotFound."""
        ...
