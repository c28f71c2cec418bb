"""Blocking. Reads a journal from some number on, also while it is written; for threads.

It needs no more than the directory. A segment it is in the middle of can be dropped meanwhile: what
is in it can still be read.
"""

from __future__ import annotations

import os

from cradled.events import segments
from cradled.events.segments import HEAD_SIZE, OVERHEAD, Record

_CHUNK = 64 << 10  # bytes read at a time


class Dropped(Exception):
    """Records that were to be read are not kept any more."""


class Cursor:
    """For one thread at a time. ``number`` is that of the last record read."""

    def __init__(self, directory: str, number: int = 0) -> None:
        self.number = number
        self._directory = directory
        self._first = 0  # of the segment that is open
        self._fd = -1
        self._offset = 0

    def read(self, last: int) -> list[tuple[int, bytes]]:
        """Some of the records up to ``last``, which must be written: at least one, unless there is
        none. Damaged ones are left out. Raises Dropped.
        """
        if self._fd < 0 and self.number < last:
            self._enter()
        while self.number < last:
            records = self._peek()
            if not records:
                if not self._advance():
                    self.number = last
                continue
            self._offset += records[-1].end
            found = [(one.number, one.payload) for one in records if one.number > self.number]
            if found:
                self.number = found[-1][0]
                return found
        return []

    def seek(self, moment: int) -> None:
        """Go to the first record written at ``moment`` (nanoseconds since the epoch) or later; to
        the oldest there is if all were, behind the newest if none was."""
        found = self._segments()
        while len(found) > 1 and self._began(found[-1]) >= moment:
            found.pop()
        if not found:
            return
        self._open(found[-1])
        self.number = found[-1] - 1
        while records := self._peek():
            for one in records:
                if one.number and one.time >= moment:
                    return
                self.number = max(self.number, one.number)
            self._offset += records[-1].end

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _enter(self) -> None:
        """Open the segment that the next record is in."""
        found = self._segments()
        if not found or found[0] > self.number + 1:
            raise Dropped
        self._open(max(first for first in found if first <= self.number + 1))

    def _advance(self) -> bool:
        """Go to the next segment; False if there is none."""
        found = self._segments()
        later = [first for first in found if first > self._first]
        if not later:
            return False
        if self._first not in found and later[0] > self.number + 1:
            raise Dropped
        self._open(later[0])
        return True

    def _peek(self) -> list[Record]:
        """Whole records from where we are, none at the end or before damage."""
        data = os.pread(self._fd, _CHUNK, self._offset)
        if len(data) == _CHUNK and (size := segments.size(data)) > _CHUNK:
            left = os.fstat(self._fd).st_size - self._offset
            data = os.pread(self._fd, min(size, left), self._offset)
        return list(segments.records(data))

    def _segments(self) -> list[int]:
        return segments.firsts(os.listdir(self._directory))

    def _open(self, first: int) -> None:
        try:
            fd = os.open(self._path(first), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # dropped since we looked
            raise Dropped from None
        self.close()
        self._first, self._fd, self._offset = first, fd, HEAD_SIZE

    def _began(self, first: int) -> int:
        try:
            with open(self._path(first), "rb") as file:
                return segments.began(file.read(HEAD_SIZE + OVERHEAD))
        except FileNotFoundError:
            return 0

    def _path(self, first: int) -> str:
        return f"{self._directory}/{segments.name_of(first)}"
