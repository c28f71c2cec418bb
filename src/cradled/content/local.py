"""Async. The local content store: blobs as files named by digest (reference, storage.md 1).

    <root>/blobs/<algorithm>/<hex>    0444, modified when committed; whole and durable once visible
    <root>/ingest/<...>/              blobs in the making, see ``ingest``

Knows neither namespaces nor labels. One process owns the directory. After a crash nothing needs
repair: directories of ingests without a ref are removed when the store is opened.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import time
from collections.abc import AsyncIterator, Iterable, Sequence

from cradled import digest as digests
from cradled import filters as filter_language
from cradled.aio import threads
from cradled.content import ingest as ingests
from cradled.content.ingest import Chunk, Ingest
from cradled.content.writer import LocalWriter
from cradled.core.content import ContentInfo, IngestStatus
from cradled.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from cradled.linux import fs, libc

_NOWAIT_SIZE = 256 << 10
_HEX = re.compile(r"[0-9a-f]+", re.ASCII).fullmatch


class Moved:
    """Bytes that came in and went out of a store."""

    written = 0
    read = 0


class LocalReader:
    """Implements ``core.content.Reader``."""

    def __init__(self, fd: int, moved: Moved) -> None:
        self._fd = fd
        self._moved = moved
        self.size = os.fstat(fd).st_size

    def fileno(self) -> int:
        return self._fd

    async def read(self, offset: int, length: int, /) -> bytes:
        length = min(length, self.size - offset)
        if length <= 0:
            return b""
        self._moved.read += length
        if length <= _NOWAIT_SIZE:
            buffer = bytearray(length)
            try:
                count = os.preadv(self._fd, [buffer], offset, os.RWF_NOWAIT)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP):
                    raise
            else:
                return bytes(memoryview(buffer)[:count])
        return await threads.run("bulk", os.pread, self._fd, length, offset)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class LocalContentStore:
    """Implements ``core.content.ContentStore``; made by ``open_store``.

    What cannot be on disk is not looked for there: hashes of the digests of blobs and names of
    the directories of ingests are kept in memory, so that beginning a new blob costs no hop.
    """

    def __init__(self, root: str, blobs: Iterable[str], kept: Iterable[str]) -> None:
        self.moved = Moved()
        self._blobs = f"{root}/blobs"
        self._ingests = f"{root}/ingest"
        self._hashes = {hash(digest) for digest in blobs}
        self._kept = set(kept)
        self._directories: dict[str, fs.SharedSync] = {}
        self._locked: dict[str, int] = {}
        self._writers: dict[str, LocalWriter] = {}
        self._unsynced: set[str] = set()

    async def info(self, digest: str, /) -> ContentInfo:
        return await threads.run("fs", _info, self._blob(digest), digest)

    async def update(self, info: ContentInfo, fieldpaths: Sequence[str] = (), /) -> ContentInfo:
        raise FailedPrecondition("update not supported on immutable content store")

    async def walk(self, filters: Sequence[str] = (), /) -> AsyncIterator[ContentInfo]:
        """All blobs, in no order; filters can ask for ``digest``."""
        wanted = filter_language.parse(filters)
        for info in await threads.run("fs", _list_infos, self._blobs):
            if wanted.match(_field("digest", info.digest)):
                yield info

    async def delete(self, digest: str, /) -> None:
        try:
            await threads.run("fs", os.unlink, self._blob(digest))
        except FileNotFoundError:
            raise NotFound(f"content {digest}") from None
        finally:
            self._hashes.discard(hash(digest))

    async def open(self, digest: str, /) -> LocalReader:
        path = self._blob(digest)
        flags = os.O_RDONLY | os.O_NOFOLLOW
        try:
            fd = await _open_path(path, flags)
        except FileNotFoundError:
            raise NotFound(f"content {digest}") from None
        return LocalReader(fd, self.moved)

    async def writer(self, ref: str, /, *, total: int = 0, expected: str = "") -> LocalWriter:
        if not ref:
            raise InvalidArgument("ref must not be empty")
        if expected:
            await self._refuse_existing(expected)
        self._lock(ref)
        try:
            writer = await self._begin(ref, total, expected)
        except BaseException:
            del self._locked[ref]
            raise
        self._writers[ref] = writer
        return writer

    async def status(self, ref: str, /) -> IngestStatus:
        writer = self._writers.get(ref)
        if writer is not None and not writer.ingest.gone:
            return writer.status()
        status = await self._load(self._ingest(ref))
        if status is None:
            raise NotFound(f"reference {ref}")
        return status

    async def list_statuses(self, filters: Sequence[str] = (), /) -> list[IngestStatus]:
        """All ingests; filters can ask for ``ref``."""
        wanted = filter_language.parse(filters)
        found = {s.ref: s for s in await threads.run("fs", _list_ingests, self._ingests)}
        found |= {ref: w.status() for ref, w in self._writers.items() if not w.ingest.gone}
        return [status for ref, status in found.items() if wanted.match(_field("ref", ref))]

    async def abort(self, ref: str, /) -> None:
        writer = self._writers.get(ref)
        path = self._ingest(ref)
        if writer is not None:
            await threads.run("fs", writer.ingest.drop)
        elif path not in self._kept or not await threads.run("fs", ingests.remove, path):
            raise NotFound(f"reference {ref}")
        self._kept.discard(path)

    async def publish(self, ingest: Ingest, chunks: Sequence[Chunk], digest: str) -> bool:
        """For writers: make an ingest a durable blob; False when it exists (durably) already."""
        self._unsynced.add(digest)
        self._hashes.add(hash(digest))
        try:
            return await threads.run("fs", self._publish, ingest, chunks, digest)
        finally:
            self._unsynced.discard(digest)

    def release(self, ingest: Ingest) -> None:
        """For writers: let others have the ref."""
        self._writers.pop(ingest.ref, None)
        self._locked.pop(ingest.ref, None)
        if ingest.gone:
            self._kept.discard(ingest.path)
        else:
            self._kept.add(ingest.path)

    def _publish(self, ingest: Ingest, chunks: Sequence[Chunk], digest: str) -> bool:
        directory = self._directory(digests.split(digest)[0])
        new = ingest.publish(chunks, self._blob(digest))
        directory.sync()
        return new

    def _directory(self, algorithm: str) -> fs.SharedSync:
        known = self._directories.get(algorithm)
        if known is None:
            path = f"{self._blobs}/{algorithm}"
            os.makedirs(path, exist_ok=True)
            fs.sync_directory(self._blobs)
            known = self._directories.setdefault(algorithm, fs.SharedSync(path))
        return known

    def _blob(self, digest: str) -> str:
        algorithm, encoded = digests.split(digest)
        return f"{self._blobs}/{algorithm}/{encoded}"

    def _ingest(self, ref: str) -> str:
        return f"{self._ingests}/{hashlib.sha256(ref.encode()).hexdigest()}"

    async def _load(self, path: str) -> IngestStatus | None:
        return await threads.run("fs", ingests.load, path) if path in self._kept else None

    async def _refuse_existing(self, digest: str) -> None:
        if hash(digest) not in self._hashes:
            return
        try:
            await self.info(digest)
        except NotFound:
            return
        if digest in self._unsynced:
            await threads.run("fs", self._directory(digests.split(digest)[0]).sync)
        raise AlreadyExists(f"content {digest}")

    def _lock(self, ref: str) -> None:
        now = time.time_ns()
        if ref in self._locked:
            since = self._locked[ref]
            age = (now - since) / 1e9
            when = ingests.format_time(since)
            raise Unavailable(f"ref {ref} locked for {age:.6f}s (since {when})")
        self._locked[ref] = now

    async def _begin(self, ref: str, total: int, expected: str) -> LocalWriter:
        algorithm = digests.split(expected)[0] if expected else digests.CANONICAL
        path = self._ingest(ref)
        now = time.time_ns()
        found = await self._load(path)
        if found is not None and not (total and found.total and total != found.total):
            ingest = Ingest(path, ref, found.total, found.started_at)
            state = await threads.run("bulk", ingest.resume, algorithm)
            status = IngestStatus(ref, found.offset, expected=expected, updated_at=now)
        else:
            if found is not None:
                await threads.run("fs", ingests.remove, path)
            ingest = Ingest(path, ref, total, now)
            state = hashlib.new(algorithm)
            status = IngestStatus(ref, 0, expected=expected, updated_at=now)
        return LocalWriter(self, ingest, state, status)


async def open_store(root: str) -> LocalContentStore:
    """The store in a directory, made if it is not there."""
    return await threads.run("fs", _open_store, root)


def _open_store(root: str) -> LocalContentStore:
    blobs = f"{root}/blobs"
    ingest = f"{root}/ingest"
    os.makedirs(f"{blobs}/{digests.CANONICAL}", exist_ok=True)
    os.makedirs(ingest, exist_ok=True)
    # A blob that was named right before the last process died may not be durable yet.
    for path in (*(entry.path for entry in os.scandir(blobs) if entry.is_dir()), blobs, root):
        fs.sync_directory(path)
    kept = []
    for path in (entry.path for entry in os.scandir(ingest)):
        if ingests.load(path) is None:
            ingests.remove(path)
        else:
            kept.append(path)
    return LocalContentStore(root, _list_blobs(blobs), kept)


def _field(name: str, value: str) -> filter_language.Adaptor:
    """An object with one field, as filters see it."""
    return lambda path: value if path == (name,) else None


async def _open_path(path: str, flags: int) -> int:
    """Open at once if the kernel can do it without touching the disk, else in a thread."""
    try:
        return libc.openat2(libc.AT_FDCWD, path, flags, resolve=libc.RESOLVE_CACHED)
    except FileNotFoundError:
        raise
    except OSError:
        return await threads.run("fs", os.open, path, flags | os.O_CLOEXEC)


def _info(path: str, digest: str) -> ContentInfo:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise NotFound(f"content digest {digest}") from None
    return ContentInfo(digest, found.st_size, found.st_mtime_ns, found.st_mtime_ns)


def _list_blobs(root: str) -> list[str]:
    found = []
    for algorithm in os.listdir(root):
        found += [f"{algorithm}:{name}" for name in os.listdir(f"{root}/{algorithm}") if _HEX(name)]
    return found


def _list_infos(root: str) -> list[ContentInfo]:
    found = []
    for digest in _list_blobs(root):
        with contextlib.suppress(NotFound):  # deleted meanwhile
            found.append(_info(f"{root}/{digest.replace(':', '/')}", digest))
    return found


def _list_ingests(root: str) -> list[IngestStatus]:
    loaded = (ingests.load(f"{root}/{name}") for name in os.listdir(root))
    return [status for status in loaded if status is not None]
