"""Pure. When to collect (reference, storage.md section 8). Times are seconds of one clock."""

from __future__ import annotations

import math
from dataclasses import dataclass

_LEAST_SECONDS = 0.005
_AFTER_EXPIRY = 0.001  # what expires is there at that very moment still


@dataclass(frozen=True, slots=True)
class Config:
    """Thresholds: 0 switches one off. Delays are in seconds.

    ``pause_threshold``: the share of time (up to 0.5) that collections may take on average.
    """

    pause_threshold: float = 0.02
    deletion_threshold: int = 0
    mutation_threshold: int = 100
    schedule_delay: float = 0.0
    startup_delay: float = 0.1


class Policy:
    """Counts what happens between collections; ``due`` is when the next one shall begin, if any.

    Between collections time is cut into intervals, long enough for collections to keep to their
    share. Whatever makes one necessary makes it due at the end of the interval under way; only a
    number of deletions above its threshold does at once. What expires makes one due at the end of
    the interval in which it does.
    """

    def __init__(self, config: Config, now: float) -> None:
        self._config = config
        self._deletions = self._mutations = 0
        self._seconds = 0.0
        self._collections = 0
        self._interval = 1.0
        self._ended = now
        self.due: float | None = now + config.startup_delay

    def changed(self, mutations: int, deletions: int, now: float) -> None:
        """So many writes were committed, and among them so many deletions."""
        self._mutations += mutations
        self._deletions += deletions
        config = self._config
        if 0 < config.deletion_threshold <= self._deletions:
            self._at_latest(now + config.schedule_delay)
        elif self._needed():
            self._at_latest(self._interval_end(now))

    def expires(self, at: float) -> None:
        """Something will have expired then."""
        self._at_latest(self._interval_end(max(at, self._ended)) + _AFTER_EXPIRY)

    def started(self) -> None:
        """A collection begins: what happened so far it takes care of."""
        self._deletions = self._mutations = 0
        self.due = None

    def ended(self, seconds: float, now: float) -> None:
        """It has ended and took so long."""
        self._collections += 1
        self._seconds += seconds
        if self._config.pause_threshold > 0:
            average = max(self._seconds / self._collections, _LEAST_SECONDS)
            self._interval = average / self._config.pause_threshold - average
        self._ended = now
        self.due = self._interval_end(now) if self._needed() else None

    def failed(self, now: float) -> None:
        """A collection broke off: it is tried again after an interval."""
        self._ended = now
        self.due = now + self._interval

    def _needed(self) -> bool:
        threshold = self._config.mutation_threshold
        return self._deletions > 0 or 0 < threshold <= self._mutations

    def _interval_end(self, now: float) -> float:
        passed = max(math.ceil((now - self._ended) / self._interval), 1)
        return self._ended + passed * self._interval

    def _at_latest(self, at: float) -> None:
        self.due = at if self.due is None else min(self.due, at)
