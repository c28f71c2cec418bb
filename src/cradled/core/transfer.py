"""Pure. Transfers: where images come from and go to, and what is told meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cradled.core.values import Descriptor, Labels


@dataclass(frozen=True, slots=True)
class ExtraReference:
    """Another name to give, or (``is_prefix``) the beginning of the names to take from a source.

    ``allow_overwrite``: full names of the source need not begin with the prefix. ``add_digest``:
    name by digest too; ``skip_named_digest``: unless there was a name.
    """

    name: str
    is_prefix: bool = False
    allow_overwrite: bool = False
    add_digest: bool = False
    skip_named_digest: bool = False


@dataclass(frozen=True, slots=True)
class Unpack:
    """Images of this platform (``os/arch[/variant]``) shall be unpacked into this snapshotter."""

    platform: str
    snapshotter: str


@dataclass(frozen=True, slots=True)
class ImageDestination:
    """How to record images; ``platforms`` limits what is kept of them, none of them keeps all."""

    name: str = ""
    labels: Labels = field(default_factory=dict)
    platforms: tuple[str, ...] = ()
    extra_references: tuple[ExtraReference, ...] = ()
    unpacks: tuple[Unpack, ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """One step; ``done`` and ``total`` are bytes, 0 where they mean nothing."""

    event: str
    name: str = ""
    parents: tuple[str, ...] = ()
    done: int = 0
    total: int = 0
    descriptor: Descriptor | None = None


Tell = Callable[[Progress], None]
"""Hears of each step; returns at once."""
