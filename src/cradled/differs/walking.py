"""Async. The differ ``walking``: tar layers onto any mounts, and from any two."""

from __future__ import annotations

from cradled.differs.apply import WalkingApplier
from cradled.differs.compare import WalkingComparer
from cradled.workers.pool import Pool


class WalkingDiffer(WalkingApplier, WalkingComparer):
    """Implements core.diff.ApartApplier and core.diff.Comparer."""

    def __init__(self, pool: Pool) -> None:
        WalkingApplier.__init__(self, pool)
        WalkingComparer.__init__(self, pool)
