"""Pure. Which exits have been told, so that none is told twice.

The journal knows them when a daemon starts; from then on each is noted as it is told. An exit is of
one process: an id may come again, with another pid.
"""

from __future__ import annotations

from collections.abc import Iterable

from cradled.events.segments import Told

Key = tuple[str, str]
"""Namespace and id of a task."""

_PASSING = 1024


class ToldExits:
    """The exits told of processes; of those that were deleted, the latest.

    A shim that got no answer tells an exit again, maybe only after the deletion.
    """

    def __init__(self) -> None:
        self._told: dict[Key, set[tuple[str, int]]] = {}
        self._passing: dict[Told, None] = {}

    def add(self, told: Iterable[Told]) -> None:
        for namespace, id, process_id, pid in told:
            self._told.setdefault((namespace, id), set()).add((process_id, pid))

    def has(self, key: Key, process_id: str, pid: int) -> bool:
        """``process_id`` is the task's own for its init."""
        known = (process_id, pid) in self._told.get(key, ())
        return known or (*key, process_id, pid) in self._passing

    def forget(self, key: Key, process_id: str = "") -> None:
        """Keep those of a process that was deleted, or of a whole task, only for a while."""
        told = self._told.get(key, set())
        gone = {one for one in told if process_id in ("", one[0])}
        for one in gone:
            self._passing[(*key, *one)] = None
        while len(self._passing) > _PASSING:
            del self._passing[next(iter(self._passing))]
        if gone == told:
            self._told.pop(key, None)
        else:
            told -= gone
