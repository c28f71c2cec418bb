"""Pure. Layers: applying one to mounts, making one from the difference of two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from cradled.core.content import Reader
from cradled.core.mount import Mount
from cradled.core.values import AnyValue, Descriptor


class Applier(Protocol):
    async def apply(
        self,
        layer: Descriptor,
        blob: Reader,
        mounts: Sequence[Mount],
        /,
        *,
        payloads: Mapping[str, AnyValue] | None = None,
        sync_fs: bool = False,
    ) -> Descriptor:
        """Unpack a layer onto mounts; returns the descriptor of the uncompressed tar (its diff ID).

        Raises Unimplemented for a media type this differ does not know.
        """
        ...
