"""Pure. What somebody who wrote a word that nobody knows may have meant."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(key: str, known: Iterable[str], limit: int | None = None) -> str:
    """The known key fewest edits away, at most a third of its length; empty when none is near."""
    best, limit = "", (len(key) // 3 if limit is None else limit) + 1
    for candidate in sorted(known):
        distance = _edits(key, candidate)
        if distance < limit:
            best, limit = candidate, distance
    return best


def _edits(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]
