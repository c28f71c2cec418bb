"""A disk that remembers in which order it was written to, to see what loss of power would leave.

It is a file served by this program through FUSE, and used by a loop device: what the file system
on it writes, and when it has the disk flush its cache, arrives here. ``Recording.after`` makes the
disk as it would be if the power had failed at some moment: all that was flushed, and of what came
after the last flush any part, since a disk's cache keeps no order.

Run as a program it serves; ``Disk`` starts it. Sources: fuse(4), linux/fuse.h.
"""

from __future__ import annotations

import errno
import os
import random
import select
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from cradled.linux import mount

_WRITE, _FLUSH, _MARK = b"W", b"F", b"M"
_ENTRY = struct.Struct("<cqq")  # kind, offset or number, length

_IN = struct.Struct("=IIQQIIIHH")
_OUT = struct.Struct("=IiQ")
_ATTRIBUTES = struct.Struct("=QII" + "QQQQQQ" + "IIIIIIIIII")
_INIT_OUT = struct.Struct("=IIIIHHIIHHI28x")
_IO = struct.Struct("=QQI")  # handle, offset, size
_WRITE_IN = 40
_PAGES = 256
_MAX_WRITE = _PAGES * 4096
_BIG_WRITES, _MAX_PAGES = 1 << 5, 1 << 22


class _Op:
    FORGET, GETATTR, SETATTR, OPEN, READ, WRITE = 2, 3, 4, 14, 15, 16
    RELEASE, FSYNC, FLUSH, INIT, INTERRUPT, DESTROY, BATCH_FORGET = 18, 20, 25, 26, 36, 38, 42


class Entry(NamedTuple):
    """Of the recording: ``W`` a write of ``data``, ``F`` a flush, ``M`` the mark ``at``."""

    kind: str
    at: int = 0
    data: bytes = b""


class _Server:
    def __init__(self, target: str, disk: str, log: str) -> None:
        self._disk = os.open(disk, os.O_RDWR)
        self._size = os.fstat(self._disk).st_size
        self._log = open(log, "wb", buffering=1 << 20)  # noqa: SIM115 - closed by run
        self._fuse = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self._fuse},rootmode=100000,user_id=0,group_id=0"
        mount.mount_raw("fuse", "disk", target, mount.MS_NOSUID | mount.MS_NODEV, options)

    def run(self) -> None:
        """Serve until the end of stdin. A line of it is a mark; the answer says it is there."""
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([self._fuse, sys.stdin], [], [])
            if self._fuse in ready:
                try:
                    request = os.read(self._fuse, _MAX_WRITE + 4096)
                except OSError as error:
                    if error.errno == errno.ENODEV:  # unmounted
                        break
                    if error.errno == errno.ENOENT:  # interrupted
                        continue
                    raise
                self._answer(request)
            elif line := sys.stdin.readline():
                self._note(_MARK, int(line))
                print("marked", flush=True)
            else:
                break
        self._log.close()

    def _note(self, kind: bytes, at: int = 0, data: bytes = b"") -> None:
        self._log.write(_ENTRY.pack(kind, at, len(data)) + data)

    def _answer(self, request: bytes) -> None:
        _, op, unique, *_ = _IN.unpack_from(request)
        if op in (_Op.FORGET, _Op.BATCH_FORGET, _Op.INTERRUPT):
            return
        body = memoryview(request)[_IN.size :]
        code, reply = 0, b""
        if op == _Op.INIT:
            flags = _BIG_WRITES | _MAX_PAGES
            reply = _INIT_OUT.pack(7, 31, 1 << 17, flags, 16, 12, _MAX_WRITE, 1, _PAGES, 0, 0)
        elif op in (_Op.GETATTR, _Op.SETATTR):
            reply = self._attributes()
        elif op == _Op.OPEN:
            reply = struct.pack("=QIi", 0, 0, 0)
        elif op == _Op.READ:
            _, at, size = _IO.unpack_from(body)
            reply = os.pread(self._disk, size, at)
        elif op == _Op.WRITE:
            _, at, size = _IO.unpack_from(body)
            data = bytes(body[_WRITE_IN : _WRITE_IN + size])
            os.pwrite(self._disk, data, at)
            self._note(_WRITE, at, data)
            reply = struct.pack("=II", size, 0)
        elif op == _Op.FSYNC:
            self._note(_FLUSH)
        elif op not in (_Op.RELEASE, _Op.FLUSH, _Op.DESTROY):
            code = -errno.ENOSYS
        os.write(self._fuse, _OUT.pack(_OUT.size + len(reply), code, unique) + reply)

    def _attributes(self) -> bytes:
        times = (0,) * 3
        return _ATTRIBUTES.pack(
            3600, 0, 0, 1, self._size, self._size // 512, 0, 0, 0, *times, 0o100600, 1, 0, 0, 0,
            4096, 0,
        )  # fmt: skip


class Disk:
    """The file that a loop device may use, as long as ``serving`` lasts."""

    def __init__(self, path: Path, process: subprocess.Popen[str]) -> None:
        self.path = path
        self._process = process

    def mark(self, number: int) -> None:
        """Note in the recording that something was done by now."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "marked\n"


@contextmanager
def serving(directory: Path, disk: Path) -> Iterator[Disk]:
    """Serve the file ``disk``, which changes with it; the recording is ``directory/log``."""
    target = directory / "served"
    target.touch()
    command = [sys.executable, "-m", "harness.flakydisk", str(target), str(disk)]
    process = subprocess.Popen(
        [*command, str(directory / "log")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Disk(target, process)
    finally:
        # A mount namespace that somebody made meanwhile may have it mounted as long as it lives.
        mount.unmount(str(target), detach=True)
        process.communicate(timeout=20)


class Recording:
    """What was written to a disk that began as ``before``."""

    def __init__(self, before: bytes, log: Path) -> None:
        self._before = before
        self.entries = list(_read(log.read_bytes()))

    def flushes(self) -> list[int]:
        """The positions behind all flushes."""
        return [n + 1 for n, entry in enumerate(self.entries) if entry.kind == "F"]

    def marks(self, position: int) -> list[int]:
        """What was done before a position."""
        return [entry.at for entry in self.entries[:position] if entry.kind == "M"]

    def after(self, position: int, rest: random.Random | None = None) -> bytes:
        """The disk if power failed when a flush, behind which ``position`` is, was just done, or,
        with ``rest``, some time before the next: then with any of the writes between."""
        disk = bytearray(self._before)
        for entry in self.entries[:position]:
            _apply(disk, entry)
        if rest is not None:
            for entry in self.entries[position:]:
                if entry.kind == "F":
                    break
                if rest.random() < 0.5:
                    _apply(disk, entry)
        return bytes(disk)


def _apply(disk: bytearray, entry: Entry) -> None:
    if entry.kind == "W":
        disk[entry.at : entry.at + len(entry.data)] = entry.data


def _read(log: bytes) -> Iterator[Entry]:
    at = 0
    while at < len(log):
        kind, where, length = _ENTRY.unpack_from(log, at)
        at += _ENTRY.size
        yield Entry(kind.decode(), where, log[at : at + length])
        at += length


if __name__ == "__main__":
    _Server(*sys.argv[1:]).run()
