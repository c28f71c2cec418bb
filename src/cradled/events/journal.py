"""Blocking. The journal of task events: what had been told before the daemon died.

    <directory>/<number of the first record, 20 digits>     append-only

A record is ``length: u32, crc32: u32`` (little endian), then ``length`` bytes of a serialised
envelope. Records are numbered from 1 on without a gap. Nothing is synced: the journal lives under
the state directory and survives kill -9, not power loss (containers don't either). A record that a
crash cut short ends its file; when the journal is opened it is cut off. Only the newest files are
kept, so what is told twice after a restart is at most an exit that is very old.

Writing is one short ``write`` to the page cache and is done in place, on the loop.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator

from cradled.api.types_pb2 import Envelope as EnvelopeMessage
from cradled.convert import events as convert
from cradled.core.events import Envelope
from cradled.events import topics

FILE_BYTES = 4 << 20
FILES_KEPT = 2

_FRAME = struct.Struct("<II")


class Journal:
    """The journal in a directory, made if it is not there. One process writes it."""

    def __init__(self, directory: str) -> None:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self._directory = directory
        self._next = 1
        self._size = 0
        self._fd = -1
        self._open_last()

    @property
    def last(self) -> int:
        """The number of the newest record; 0 when there is none."""
        return self._next - 1

    def append(self, encoded: bytes) -> int:
        """Write a serialised envelope; returns its number."""
        frame = _FRAME.pack(len(encoded), zlib.crc32(encoded)) + encoded
        if self._size and self._size + len(frame) > FILE_BYTES:
            self._rotate()
        written = os.write(self._fd, frame)
        if written != len(frame):  # the disk is full: never leave half a record before a whole one
            os.ftruncate(self._fd, self._size)
            raise OSError(f"event journal in {self._directory}: short write")
        self._size += written
        self._next += 1
        return self._next - 1

    def replay(self, after: int = 0) -> Iterator[tuple[int, Envelope]]:
        """The records with numbers above ``after`` that are still kept, oldest first."""
        for first in self._files():
            with open(self._path(first), "rb") as file:
                data = file.read()
            for number, payload in enumerate(_payloads(data), first):
                if number > after:
                    yield number, convert.from_proto(EnvelopeMessage.FromString(bytes(payload)))

    def exits(self) -> set[tuple[str, str, str, int]]:
        """(namespace, container id, process id, pid) of every exit that was published."""
        found = set()
        for _, envelope in self.replay():
            told = topics.read_task_exit(envelope.event)
            if told is not None:
                container_id, process_id, end = told
                found.add((envelope.namespace, container_id, process_id, end.pid))
        return found

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open_last(self) -> None:
        files = self._files()
        first = files[-1] if files else 1
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(self._path(first), flags, 0o600)
        data = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
        payloads = list(_payloads(data))
        self._next = first + len(payloads)
        self._size = sum(_FRAME.size + len(payload) for payload in payloads)
        if self._size != len(data):
            os.ftruncate(self._fd, self._size)

    def _rotate(self) -> None:
        self.close()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(self._path(self._next), flags, 0o600)
        self._size = 0
        for first in self._files()[:-FILES_KEPT]:
            os.unlink(self._path(first))

    def _files(self) -> list[int]:
        return sorted(int(name) for name in os.listdir(self._directory) if name.isdecimal())

    def _path(self, first: int) -> str:
        return f"{self._directory}/{first:020}"


def _payloads(data: bytes) -> Iterator[memoryview]:
    """The payloads of all whole records at the beginning of a file."""
    view, position = memoryview(data), 0
    while position + _FRAME.size <= len(view):
        length, checksum = _FRAME.unpack_from(view, position)
        payload = view[position + _FRAME.size : position + _FRAME.size + length]
        if not length or len(payload) != length or zlib.crc32(payload) != checksum:
            return
        yield payload
        position += _FRAME.size + length
