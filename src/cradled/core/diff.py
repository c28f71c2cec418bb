"""Pure. Layers: applying one to mounts, making one from the difference of two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cradled.core.content import ContentStore, Reader
from cradled.core.mount import Mount
from cradled.core.values import AnyValue, Descriptor, Labels


@dataclass(frozen=True, slots=True)
class Apart:
    """A layer that was unpacked before the layers below it were there.

    ``applied`` describes the uncompressed tar. ``implied`` are the directories that the layer goes
    through but does not list, relative and outermost first. ``needs_lowers``: the layer met what
    cannot be done without the layers below (a hard link to one of their files, ...), so what was
    unpacked is no use; ``applied`` is right all the same.
    """

    applied: Descriptor
    implied: tuple[bytes, ...] = ()
    needs_lowers: bool = False


@dataclass(frozen=True, slots=True)
class DiffOptions:
    """What a new layer is to be.

    ``media_type``: empty for a gzipped tar. ``ref``: of the ingest, so that others can see how far
    it is; empty for one of no interest. ``labels``: of the blob. ``source_date_epoch``:
    nanoseconds since the epoch that no time of modification exceeds.
    """

    media_type: str = ""
    ref: str = ""
    labels: Labels = field(default_factory=dict)
    source_date_epoch: int | None = None


class Comparer(Protocol):
    async def compare(
        self,
        left: Sequence[Mount],
        right: Sequence[Mount],
        content: ContentStore,
        options: DiffOptions,
        /,
    ) -> Descriptor:
        """Make a layer of what ``right`` changes of ``left``, as a blob in ``content``; returns
        its descriptor.

        Raises Unimplemented for a media type this differ does not make.
        """
        ...


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


class ApartApplier(Applier, Protocol):
    """An applier for layers in any order, each into an overlay upper directory of its own.

    An image's layers are then unpacked all at once: ``apply_apart`` for each, and, from the bottom
    up, ``settle`` with the finished layers below.
    """

    async def apply_apart(self, layer: Descriptor, blob: Reader, upper: str, /) -> Apart:
        """Unpack by overlay's rules into ``upper``, an empty directory, knowing no lower layer."""
        ...

    async def settle(self, apart: Apart, upper: str, lowers: Sequence[str], /) -> bool:
        """Give implied directories owner, mode, xattrs and times of the nearest lower layer's.

        False when the layer has to be applied again on its mounted lowers: it needs them, or one
        of its implied directories is a symbolic link or no directory below. ``upper`` is then
        empty. ``lowers`` are directories, the nearest first.
        """
        ...
