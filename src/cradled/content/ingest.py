"""Blocking. The directory of one ingest, and how its data becomes a blob.

    ingest/<sha256 of the ref>/ref        the ref
                               data       the bytes so far
                               startedat  updatedat    RFC 3339, nanoseconds
                               total      decimal, as announced (0: unknown)

Written without fsync: an ingest outlives the process, not the machine. ``ref`` is written first,
so a directory without it is the leftover of a crash. A small blob is committed without ever
having such a directory: it is written to an unnamed file that is linked once it is durable.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Sequence
from datetime import UTC, datetime

from cradled import failpoints
from cradled.core.content import IngestStatus
from cradled.errors import FailedPrecondition, NotFound
from cradled.linux import fs, libc, memory

_READ_SIZE = 1 << 20
_WRITEBACK = 8 << 20
_MODE = 0o444

Chunk = bytes | memoryview


class Ingest:
    """The bytes of an ingest on their way to disk; every method may be called in any thread.

    ``gone``: it was published or dropped; what is done with it then raises NotFound.
    """

    def __init__(self, path: str, ref: str, total: int, started_at: int) -> None:
        self.ref = ref
        self.total = total
        self.started_at = started_at
        self.gone = False
        self.path = path
        self._lock = threading.Lock()
        self._fd = -1  # until there is a directory
        self._written = 0
        self._flushed = 0
        self._failure: BaseException | None = None  # of a write: one after it would leave a gap

    def resume(self, algorithm: str) -> hashlib._Hash:
        """Go on with the directory that is there; returns the hash of its bytes."""
        with self._lock:
            self._open()
            return self._hash_file(algorithm)

    def append(self, chunks: Sequence[Chunk]) -> None:
        """Write chunks at the end."""
        with self._lock:
            self._append(chunks)

    @property
    def dirty(self) -> bool:
        """So much was written that ``write_back`` is worth a call."""
        return self._written - self._flushed >= _WRITEBACK

    def write_back(self) -> None:
        """Have the disk begin with what was written: less for ``publish`` to wait for.

        It waits while the disk has enough to do; others may write meanwhile.
        """
        with self._lock:
            if self._fd < 0:
                return
            start, self._flushed = self._flushed, self._written
            length = self._flushed - start
            fd = os.dup(self._fd)
        try:
            libc.start_writeback(fd, start, length)
        finally:
            os.close(fd)

    def truncate(self) -> None:
        """Forget the data."""
        with self._lock:
            if self._fd >= 0:
                os.ftruncate(self._fd, 0)
                self._written = self._flushed = 0

    def rehash(self, chunks: Sequence[Chunk], algorithm: str) -> hashlib._Hash:
        """Write chunks at the end; returns the hash of all bytes."""
        with self._lock:
            self._append(chunks)
            return self._hash_file(algorithm)

    def publish(self, chunks: Sequence[Chunk], target: str) -> bool:
        """Make the data, with ``chunks`` added, the blob ``target``; False when that exists.

        The data is durable when this returns, its name is not. The ingest is gone either way.
        """
        with self._lock:
            self._check()
            if self._fd < 0 and (fd := _open_unnamed(os.path.dirname(target))) is not None:
                try:
                    new = _link(fd, chunks, target)
                finally:
                    os.close(fd)
            else:
                new = self._rename(chunks, target)
            self.gone = True
            return new

    def keep(self, chunks: Sequence[Chunk], updated_at: int) -> None:
        """Leave everything for another writer to go on with."""
        with self._lock:
            self._append(chunks)
            self._record("updatedat", format_time(updated_at))

    def drop(self) -> bool:
        """Remove it; False when it had left nothing on disk."""
        with self._lock:
            self.gone = True
            self._close()
            return remove(self.path)

    def close(self) -> None:
        """Let go of the file. What is still on its way to it, after a cancellation, fails."""
        with self._lock:
            self._failure = FailedPrecondition(f"the ingest of {self.ref} is closed")
            self._close()

    def _append(self, chunks: Sequence[Chunk]) -> None:
        self._check()
        if self._failure is not None:
            raise self._failure
        try:
            if self._fd < 0:
                self._make()
            self._written += _write(self._fd, chunks)
        except BaseException as failure:
            self._failure = failure
            raise

    def _rename(self, chunks: Sequence[Chunk], target: str) -> bool:
        self._append(chunks)
        os.fchmod(self._fd, _MODE)
        os.utime(self._fd)
        os.fsync(self._fd)
        failpoints.hit("content.commit.synced")
        try:
            libc.rename_exclusive(f"{self.path}/data", target)
            new = True
        except FileExistsError:
            new = False
        self._close()
        remove(self.path)
        return new

    def _hash_file(self, algorithm: str) -> hashlib._Hash:
        state = hashlib.new(algorithm)
        offset = 0
        while chunk := os.pread(self._fd, _READ_SIZE, offset):
            state.update(chunk)
            offset += len(chunk)
        return state

    def _make(self) -> None:
        memory.reuse_buffers()
        os.mkdir(self.path)
        self._record("ref", self.ref)
        self._record("startedat", format_time(self.started_at))
        self._record("updatedat", format_time(self.started_at))
        self._record("total", str(self.total))
        self._open()

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        path = f"{self.path}/data"
        try:
            self._fd = os.open(path, flags, 0o644)
        except PermissionError:  # not root, and a commit died after it had set the blob's mode
            os.chmod(path, 0o644)
            self._fd = os.open(path, flags)
        self._written = self._flushed = os.fstat(self._fd).st_size

    def _record(self, name: str, text: str) -> None:
        fs.atomic_write(f"{self.path}/{name}", text.encode(), sync=False)

    def _check(self) -> None:
        if self.gone:
            raise NotFound(f"reference {self.ref}")

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def load(path: str) -> IngestStatus | None:
    """What a directory says of its ingest; None when it is not one (yet, or any more)."""
    try:
        ref = _read(f"{path}/ref")
        if not ref:
            return None
        data = os.stat(f"{path}/data")
        return IngestStatus(
            ref=ref,
            offset=data.st_size,
            total=int(_read(f"{path}/total") or "0"),
            started_at=parse_time(_read(f"{path}/startedat")),
            updated_at=parse_time(_read(f"{path}/updatedat")),
        )
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def remove(path: str) -> bool:
    """Remove an ingest's directory, the ref last; False when there was none."""
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        return False
    for name in sorted(names, key=lambda name: name == "ref"):
        try:
            os.unlink(f"{path}/{name}")
        except FileNotFoundError:
            continue
    os.rmdir(path)
    return True


def format_time(nanoseconds: int) -> str:
    """RFC 3339 in UTC, with as many digits of the second as are not zero."""
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{fraction:09}".rstrip("0").rstrip(".") + "Z"


def parse_time(text: str) -> int:
    """Nanoseconds since the epoch of an RFC 3339 time; raises ValueError."""
    whole, dot, rest = text.partition(".")
    if not dot:
        return int(datetime.fromisoformat(text).timestamp()) * 1_000_000_000
    digits = rest.rstrip("Z").partition("+")[0].partition("-")[0]
    zone = rest[len(digits) :]
    seconds = int(datetime.fromisoformat(whole + zone).timestamp())
    return seconds * 1_000_000_000 + int(digits.ljust(9, "0")[:9])


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def _write(fd: int, chunks: Sequence[Chunk]) -> int:
    size = sum(map(len, chunks))
    if len(chunks) > 1 and len(chunks) <= 1024:  # IOV_MAX
        written = os.writev(fd, chunks)
        if written == size:
            return size
        chunks = [b"".join(chunks)[written:]]
    for chunk in chunks:
        fs.write_all(fd, chunk)
    return size


def _open_unnamed(directory: str) -> int | None:
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, _MODE)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR):  # not on this file system
            return None
        raise


def _link(fd: int, chunks: Sequence[Chunk], target: str) -> bool:
    _write(fd, chunks)
    os.fchmod(fd, _MODE)
    os.fsync(fd)
    failpoints.hit("content.commit.synced")
    try:
        # With a descriptor of the source's directory Python follows the symbolic link of /proc.
        os.link(f"/proc/self/fd/{fd}", target, src_dir_fd=fd, follow_symlinks=True)
    except FileExistsError:
        return False
    return True
