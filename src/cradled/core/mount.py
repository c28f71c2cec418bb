"""Pure. A mount as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mount:
    """Arguments of one mount; ``target`` is a path below the target root, mostly empty."""

    type: str
    source: str
    options: tuple[str, ...] = ()
    target: str = ""
