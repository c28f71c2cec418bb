"""Async. The differ ``walking``: tar layers onto any mounts, and from any two."""

from __future__ import annotations

from collections.abc import Sequence

from cradled.differs.apply import WalkingApplier
from cradled.differs.compare import WalkingComparer
from cradled.differs.processors import Processor
from cradled.workers.pool import Pool


class WalkingDiffer(WalkingApplier, WalkingComparer):
    """Implements core.diff.ApartApplier and core.diff.Comparer."""

    def __init__(self, pool: Pool, processors: Sequence[Processor] = ()) -> None:
        WalkingApplier.__init__(self, pool, processors)
        WalkingComparer.__init__(self, pool)
