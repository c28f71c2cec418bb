"""Pure. Leases: what keeps objects from garbage collection while a client works."""

from __future__ import annotations

from dataclasses import dataclass, field

from cradled.core.values import Labels


@dataclass(frozen=True, slots=True)
class Lease:
    """``created_at`` is in nanoseconds; expiry is the label ``containerd.io/gc.expire``."""

    id: str
    created_at: int = 0
    labels: Labels = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Resource:
    """``type`` is ``content``, ``ingests``, ``images`` or ``snapshots/<snapshotter>``."""

    id: str
    type: str
