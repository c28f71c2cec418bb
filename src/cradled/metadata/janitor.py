"""Async. Removing from the backends what no namespace has any more.

The metadata is the truth: an object is gone when its row is. What its row named in a backend is
an *orphan* from then on, kept here until the backend has removed it. The list is in memory only;
after a start, and whenever a removal failed, whole backends are compared with the metadata, which
finds also what a crash left between backend and metadata.

A backend that is another process's (a plugin) may be away or slow: each snapshotter is cleaned for
itself, and what could not be asked of one is asked again by and by (``later``).

A snapshot that is being made and has no row yet is *pinned*, so that a comparison does not take it
for an orphan. Blobs are removed and adopted under a lock per digest: a blob that a writer is about
to name is not removed under its hands.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, suppress

from cradled.aio.keyed_lock import KeyedLock
from cradled.core.content import ContentStore
from cradled.core.scope import Scope, bound, is_remote
from cradled.core.snapshots import Snapshotter
from cradled.errors import Error, FailedPrecondition, NotFound, Unimplemented
from cradled.metadata.engine import Engine

_AT_ONCE = 16
_GATHERED = 0.2  # seconds in which removals are waited for, to be made durable together
_AGAIN = 5.0  # seconds until a backend that did not answer is asked again

Retry = Callable[[], Coroutine[None, None, None]]

_log = logging.getLogger(__name__)


class Janitor:
    """Knows the orphans of all backends; ``clean_*`` removes them."""

    def __init__(
        self, engine: Engine, content: ContentStore, snapshotters: Mapping[str, Snapshotter]
    ) -> None:
        self._engine = engine
        self._content = content
        self._snapshotters = snapshotters
        self._blobs: set[str] = set()
        self._ingests: set[str] = set()
        self._snapshots: dict[str, set[str]] = {name: set() for name in snapshotters}
        self._pinned: set[str] = set()
        self._unknown = {"content", *(f"snapshots/{name}" for name in snapshotters)}
        self._spared: set[str] = set()
        self._asked: set[str] = set()  # other processes' snapshotters to be cleaned as a whole
        self._blob_locks: KeyedLock[str] = KeyedLock("content")
        self._called = {name: asyncio.Event() for name in snapshotters}
        self._retries: dict[str, list[Retry]] = {name: [] for name in snapshotters}
        self._turns: KeyedLock[str] = KeyedLock("clean-up")

    def blob(self, digest: str) -> None:
        """A namespace lost its entry for this blob."""
        self._blobs.add(digest)

    def ingest(self, backend_ref: str, expected: str) -> None:
        """The entry of this ingest is gone, and with it what kept the blob it expected, if any."""
        self._ingests.add(backend_ref)
        if expected:
            self._blobs.add(expected)

    def snapshot(self, snapshotter: str, backend_key: str) -> None:
        """The entry of this snapshot is gone."""
        self._snapshots[snapshotter].add(backend_key)
        self._called[snapshotter].set()

    def later(self, snapshotter: str, retry: Retry) -> None:
        """Do something soon, and not before it is the snapshotter's turn. It does not raise; it
        may call this again."""
        self._retries[snapshotter].append(retry)
        self._called[snapshotter].set()

    def spare(self, store: str, *, no_more: bool = False) -> None:
        """Remove nothing of ``content`` or ``snapshots/<name>``: what it has is not known yet."""
        (self._spared.discard if no_more else self._spared.add)(store)

    def hold_blob(self, digest: str) -> AbstractAsyncContextManager[None]:
        """``async with``: nobody else removes or adopts this blob meanwhile."""
        return self._blob_locks(digest)

    @contextmanager
    def pinned(self, backend_name: str) -> Iterator[None]:
        """For the length of the block a snapshot of this name is not an orphan."""
        self._pinned.add(backend_name)
        try:
            yield
        finally:
            self._pinned.discard(backend_name)

    async def run(self) -> None:
        """Remove snapshots soon after their entries are gone; ends by being cancelled."""
        async with asyncio.TaskGroup() as group:
            for name in self._snapshotters:
                group.create_task(self._look_after(name))

    async def clean(self) -> None:
        """Remove all orphans, those of other processes' snapshotters without waiting for it."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.clean_content())
            for name, snapshotter in self._snapshotters.items():
                if is_remote(snapshotter):
                    self._asked.add(name)
                    self._called[name].set()
                else:
                    group.create_task(self.clean_snapshots(name))

    async def clean_content(self) -> None:
        """Remove orphaned blobs and ingests; what fails is tried again at the next call."""
        async with self._turns("content"):
            if "content" in self._spared:
                return
            with _logged("content"):
                if "content" in self._unknown:
                    await self._find_content()
                await _each(self._blobs, self._remove_blob)
                await _each(self._ingests, self.abort_ingest)

    async def clean_snapshots(self, name: str) -> None:
        """Remove a snapshotter's orphans, children first, then have it clean up its own."""
        async with self._turns(name):
            if f"snapshots/{name}" in self._spared:
                return
            with _logged(name):
                if f"snapshots/{name}" in self._unknown:
                    await self._find_snapshots(name)
                orphans, left = self._snapshots[name], -1
                while orphans and len(orphans) != left:
                    left = len(orphans)
                    await _each(sorted(orphans), functools.partial(self._remove_snapshot, name))
                with suppress(Unimplemented):  # it has nothing of the kind, as some plugins
                    await self._snapshotters[name].cleanup()

    async def abort_ingest(self, backend_ref: str) -> None:
        """Remove one ingest now."""
        try:
            owner = Scope(backend_ref.partition("/")[0])
            await bound(self._content, owner).abort(backend_ref)
        except NotFound:
            pass
        except (Error, OSError):
            _log.warning("cannot abort ingest %s", backend_ref, exc_info=True)
            return
        self._ingests.discard(backend_ref)

    async def _look_after(self, name: str) -> None:
        while True:
            await self._called[name].wait()
            await asyncio.sleep(_GATHERED)
            self._called[name].clear()
            retries, self._retries[name] = self._retries[name], []
            for retry in retries:
                with _logged(name):  # or nobody would be cleaned up after any more
                    await retry()
            if self._snapshots[name] or name in self._asked:
                self._asked.discard(name)
                await self.clean_snapshots(name)
            if self._retries[name]:
                await asyncio.sleep(_AGAIN)

    async def _find_content(self) -> None:
        blobs = {info.digest async for info in self._content.walk()}
        refs = {status.ref for status in await self._content.list_statuses()}
        # Entries are read after the backend, and an ingest's is made before the ingest itself.
        known = await self._column("SELECT DISTINCT digest FROM content")
        known |= await self._column("SELECT expected FROM ingests")
        self._blobs |= blobs - known
        self._ingests |= refs - await self._column("SELECT backend_ref FROM ingests")
        self._unknown.discard("content")

    async def _column(self, sql: str, parameters: Sequence[str] = ()) -> set[str]:
        return set(await self._engine.scan(sql, parameters, lambda row: row[0]))

    async def _find_snapshots(self, name: str) -> None:
        found = {info.name async for info in self._snapshotters[name].walk()}
        # In this order: what the backend had is pinned now, or has an entry, or was given up.
        known = set(self._pinned)
        known |= await self._column(
            "SELECT backend_key FROM snapshots WHERE snapshotter=?"
            " UNION ALL SELECT backend_name FROM snapshot_commits WHERE snapshotter=?",
            (name, name),
        )
        self._snapshots[name] |= found - known
        self._unknown.discard(f"snapshots/{name}")

    async def _remove_blob(self, digest: str) -> None:
        async with self._blob_locks(digest):
            if not self._named(digest):
                try:
                    await self._content.delete(digest)
                except NotFound:
                    pass
                except (Error, OSError):
                    _log.warning("cannot remove blob %s", digest, exc_info=True)
                    return
            self._blobs.discard(digest)

    def _named(self, digest: str) -> bool:
        sql = (
            "SELECT 1 FROM content WHERE digest=? UNION ALL"
            " SELECT 1 FROM ingests WHERE expected=? LIMIT 1"
        )
        return self._engine.one(sql, (digest, digest)) is not None

    async def _remove_snapshot(self, name: str, key: str) -> None:
        try:
            owner = Scope(key.partition("/")[0])
            await bound(self._snapshotters[name], owner).remove(key)
        except NotFound:
            pass
        except FailedPrecondition:  # its children go first
            return
        except (Error, OSError):
            _log.warning("cannot remove snapshot %s of %s", key, name, exc_info=True)
            return
        self._snapshots[name].discard(key)


async def _each(names: Iterable[str], remove: Callable[[str], Coroutine[None, None, None]]) -> None:
    """Remove what is named, a few at a time."""
    left = list(names)
    while left:
        async with asyncio.TaskGroup() as group:
            for name in left[:_AT_ONCE]:
                group.create_task(remove(name))
        left = left[_AT_ONCE:]


@contextmanager
def _logged(backend: str) -> Iterator[None]:
    """A backend that fails is looked at again by the next collection; nobody waits for it."""
    try:
        yield
    except Error as error:
        _log.warning("cannot clean up %s: %s", backend, error)
    except Exception:
        _log.exception("cannot clean up %s", backend)
