"""Blocking. The journal: every event with a number, kept over the end of the daemon.

``segments`` has the format of its files. Nothing is synced: the journal lives under the state
directory and survives kill -9, not power loss (containers don't either). The newest segments are
kept, up to a size; a position that was dropped, or that belongs to a journal that was lost with
the state directory, is told from one that can be gone on with.

A damaged end is cut off when the journal is opened. Its numbers are not given again: nobody who
has seen one of them takes another event for it.

Of exits it knows which were told, however long ago, until a while after their task is deleted: a
task may be deleted anew by a daemon that does not know that the one before got so far.

``handed`` is the number of the event up to which all have been given to who listened. What is
behind it when a daemon has died may have reached nobody.

Writing is one short ``write`` to the page cache and is done in place, on the loop. ``cursor``
reads.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from typing import TypeVar

from google.protobuf.message import DecodeError

from cradled.api.types_pb2 import Envelope as EnvelopeMessage
from cradled.convert import events as convert
from cradled.core.events import Envelope
from cradled.errors import FailedPrecondition, InvalidArgument, OutOfRange, quote
from cradled.events import segments, topics
from cradled.events.segments import HEAD_SIZE, OVERHEAD, Told

LIMIT = 16 << 20
"""Bytes on disk."""

_SEGMENTS = 16
_INITS_KEPT, _PASSING_KEPT = 4096, 256  # exits that are remembered, at the most
K = TypeVar("K")
V = TypeVar("V")

_HANDED = struct.Struct("<Q")


class Journal:
    """The journal in a directory, made if it is not there. One process writes it.

    ``limit`` is the most it takes on disk, in bytes.
    """

    def __init__(self, directory: str, limit: int = LIMIT) -> None:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self.directory = directory
        self.epoch = ""
        self._limit = limit
        self._next = 1
        self._size = 0
        self._fd = -1
        self._told = _ToldExits()
        self._sizes: dict[int, int] = {}  # of segments, by number; the last one's is ``_size``
        self._open()
        self._mark = -1
        self.handed = self._read_mark()
        self._next = max(self._next, self.handed + 1)  # where damage took more than it left behind

    @property
    def last(self) -> int:
        """The number of the newest record; 0 when there never was one."""
        return self._next - 1

    @property
    def oldest(self) -> int:
        """The number from which on all is kept."""
        return next(iter(self._sizes))

    def append(self, envelope: Envelope, encoded: bytes) -> int:
        """Write an event, which is also given serialised; returns its number.

        Raises OSError; then the number is nobody's.
        """
        number, self._next = self._next, self._next + 1
        self._told.note(envelope)
        frame = segments.record(number, time.time_ns(), encoded)
        if len(frame) > self._limit // 2:
            raise OSError(errno.EFBIG, f"event of {len(encoded)} bytes is too large to be kept")
        if self._size + len(frame) > self._limit // _SEGMENTS and self._size > HEAD_SIZE:
            self._begin(number)
        self._write(frame)
        return number

    def hand(self, number: int) -> None:
        """All events up to this one have been given to who listens."""
        if self._fd < 0:
            return
        self.handed = number
        if self._mark < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
            self._mark = os.open(f"{self.directory}/handed", flags, 0o600)
        os.pwrite(self._mark, _HANDED.pack(number), 0)

    def exits(self) -> set[Told]:
        """All exits that were published, of tasks that were not deleted long ago."""
        return self._told.all()

    def position(self, number: int) -> str:
        """A number as clients know it."""
        return f"{self.epoch}-{number}"

    def number(self, position: str) -> int:
        """The number in a position, or in a text that is just a number.

        Raises InvalidArgument for a text that is neither, FailedPrecondition for a position in
        another journal, OutOfRange when what follows it is not kept or has not been written.
        """
        epoch, dash, digits = position.rpartition("-")
        if not (digits.isascii() and digits.isdecimal()) or (dash and not epoch):
            raise InvalidArgument(f"{quote(position)} is no position in the journal of events")
        if epoch and epoch != self.epoch:
            text = f"events of {epoch} are lost, the journal has been begun anew as {self.epoch}"
            raise FailedPrecondition(text)
        number = int(digits)
        self.check(number)
        if number > self.last:
            last = self.position(self.last)
            raise OutOfRange(f"event {number} has not happened yet, the last one is {last}")
        return number

    def check(self, number: int) -> None:
        """Raises OutOfRange unless all that follows a number is kept."""
        before = self.oldest - 1
        if number < before:
            text = f"events after {number} are not kept, the oldest are those after"
            raise OutOfRange(f"{text} {self.position(before)}")

    def close(self) -> None:
        """Close the files; idempotent."""
        if self._mark >= 0:
            os.close(self._mark)
            self._mark = -1
        self._leave()

    def _read_mark(self) -> int:
        try:
            with open(f"{self.directory}/handed", "rb") as file:
                found = int(_HANDED.unpack(file.read())[0])
        except (FileNotFoundError, struct.error):
            return self.last
        return found if found <= segments.HIGHEST else self.last

    def _leave(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        """Find the last segment that can be gone on with; what is behind it is removed."""
        found = segments.firsts(os.listdir(self.directory))
        safe = 1  # no number from here on was ever given
        while found:
            path = self._path(found[-1])
            with open(path, "rb") as file:
                data = file.read()
            safe = max(safe, found[-1] + len(data) // OVERHEAD)
            self.epoch = segments.epoch_of(data)
            if self.epoch:
                break
            os.unlink(path)
            found.pop()
        if not found:
            self.epoch = os.urandom(4).hex()
            self._next = safe
            self._begin(safe)
            return
        self._sizes = {first: os.stat(self._path(first)).st_size for first in found}
        self._go_on(found[-1], data, safe)

    def _go_on(self, first: int, data: bytes, safe: int) -> None:
        self._fd = os.open(self._path(first), os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._size, self._next = HEAD_SIZE, first
        for record in segments.records(data, HEAD_SIZE, first - 1):
            self._size = record.end
            if record.number:
                self._next = record.number + 1
                self._told.read(record.payload)
            else:
                self._told.restore(record.payload)
        if self._size != len(data):
            os.ftruncate(self._fd, self._size)
            self._next = max(self._next, safe)

    def _begin(self, first: int) -> None:
        """Go on in a new segment; the oldest go, so that all stay within the limit."""
        if self._fd >= 0:
            self._sizes[next(reversed(self._sizes))] = self._size
            self._leave()
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(self._path(first), flags, 0o600)
        self._size = 0
        self._sizes[first] = 0
        exits = segments.pack_told(self._told.lasting())
        self._write(segments.head(self.epoch) + segments.record(0, time.time_ns(), exits))
        room = self._limit - self._limit // _SEGMENTS  # the new one is to grow
        while len(self._sizes) > 1 and sum(self._sizes.values()) > room:
            oldest = self.oldest
            del self._sizes[oldest]
            os.unlink(self._path(oldest))

    def _write(self, data: bytes) -> None:
        """All or nothing."""
        try:
            written = os.write(self._fd, data)
            if written != len(data):
                raise OSError(errno.ENOSPC, "short write")
        except OSError as error:
            os.ftruncate(self._fd, self._size)
            raise OSError(error.errno, f"journal {self.directory}: {error.strerror}") from error
        self._size += written

    def _path(self, first: int) -> str:
        return f"{self.directory}/{segments.name_of(first)}"


class _ToldExits:
    """Exits that were told. Of execs only the latest: they are told again only by a shim that does
    not know yet that they were. So it is with tasks that have been deleted."""

    def __init__(self) -> None:
        self._inits: dict[tuple[str, str], Told] = {}
        self._execs: dict[Told, None] = {}
        self._deleted: dict[Told, None] = {}

    def all(self) -> set[Told]:
        return {*self._inits.values(), *self._execs, *self._deleted}

    def lasting(self) -> set[Told]:
        """Those of tasks that are still there, and of execs."""
        return {*self._inits.values(), *self._execs}

    def note(self, envelope: Envelope) -> None:
        """Look at any event."""
        if envelope.topic == topics.TASK_EXIT:
            if (exited := topics.read_task_exit(envelope.event)) is not None:
                container_id, process_id, end = exited
                self._add((envelope.namespace, container_id, process_id, end.pid))
        elif (
            envelope.topic == topics.TASK_DELETE
            and (deleted := topics.read_task_deletion(envelope.event)) is not None
        ):
            container_id, process_id = deleted
            if process_id in ("", container_id):
                gone = self._inits.pop((envelope.namespace, container_id), None)
                if gone is not None:
                    _keep(self._deleted, gone, None, _PASSING_KEPT)

    def read(self, payload: bytes) -> None:
        """As ``note``, of an event that is serialised."""
        if topics.TASK_EXIT.encode() in payload or topics.TASK_DELETE.encode() in payload:
            try:
                self.note(convert.from_proto(EnvelopeMessage.FromString(payload)))
            except DecodeError:  # whole, and yet not of our making
                return

    def restore(self, payload: bytes) -> None:
        for one in segments.unpack_told(payload):
            self._add(one)

    def _add(self, exited: Told) -> None:
        namespace, container_id, process_id, _ = exited
        if container_id == process_id:
            _keep(self._inits, (namespace, container_id), exited, _INITS_KEPT)
        else:
            _keep(self._execs, exited, None, _PASSING_KEPT)


def _keep(known: dict[K, V], key: K, value: V, most: int) -> None:
    known[key] = value
    if len(known) > most:
        del known[next(iter(known))]
