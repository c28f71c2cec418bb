"""Async. What snapshotters share that keep each snapshot in a directory of its own.

    <root>/metadata.db           see ``records``; made again from what ``descriptions`` say
    <root>/snapshots/<id>/       one snapshot; ids are never used twice while one exists
    <root>/snapshots/new-<id>/   being made

A snapshot exists when its record does. Directories without one (a crash, a removal) go with
``cleanup``. Of an active snapshot only the record is made durable: when power fails before its
directory was written, an empty one is made again at the next start. A committed one is durable
with all its files before its record says so.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

from cradled import filters as filter_language
from cradled.aio import threads
from cradled.core.mount import Mount
from cradled.core.snapshots import Kind, SnapshotInfo, Usage
from cradled.core.values import Labels
from cradled.errors import Error, FailedPrecondition, InvalidArgument, quote
from cradled.linux import fs, tree
from cradled.snapshotters import descriptions
from cradled.snapshotters.records import Record, Records
from cradled.snapshotters.trees import ThreadTrees, Trees


class DirectorySnapshotter(ABC):
    """Implements ``core.snapshots.Snapshotter`` but for what is in a directory.

    ``root`` is the directory of the snapshotter. ``sync_remove``: a removed snapshot's files are
    gone when ``remove`` returns, not at the next ``cleanup``. Call ``start`` first.
    """

    capabilities: tuple[str, ...] = ()

    def __init__(self, root: str, *, sync_remove: bool = False, trees: Trees | None = None) -> None:
        self.root = root
        self._snapshots = f"{root}/snapshots"
        self._sync_remove = sync_remove
        self._trees = trees or ThreadTrees()
        self._filesystem = fs.SharedSync(root, fs.sync_filesystem)
        self._cleaning = asyncio.Lock()
        self._making: set[int] = set()
        self._ids = itertools.count(1)
        self._records: Records

    async def start(self) -> None:
        """Open what is on disk, or begin with nothing."""
        await threads.run("fs", self._open)

    async def aclose(self) -> None:
        """Close the records; calls that are still under way raise Unavailable."""
        await threads.run("fs", self._records.close)

    @abstractmethod
    def fill(self, path: str, record: Record) -> None:
        """Blocking: make the contents of a new snapshot's directory; ``path`` does not exist."""

    @abstractmethod
    def content(self, id: int) -> str:
        """The tree that holds a snapshot's own files."""

    @abstractmethod
    def mounts_of(self, record: Record) -> list[Mount]:
        """How to mount an active snapshot or a view."""

    def sync_files(self) -> None:
        """Blocking: make all files below the root durable."""
        self._filesystem.sync()

    async def stat(self, key: str, /) -> SnapshotInfo:
        return self.info_of(self._records.get(key))

    def info_of(self, record: Record) -> SnapshotInfo:
        return record.info()

    async def update(self, info: SnapshotInfo, fieldpaths: Sequence[str] = (), /) -> SnapshotInfo:
        change = _Relabel(info, fieldpaths)
        return self.info_of(await threads.run("fs", self._relabel, info.name, change))

    async def usage(self, key: str, /) -> Usage:
        record = self._records.get(key)
        if record.kind == Kind.ACTIVE:
            return await self._trees.usage(self.content(record.id))
        return record.usage()

    async def mounts(self, key: str, /) -> list[Mount]:
        record = self._records.get(key)
        if record.kind not in (Kind.ACTIVE, Kind.VIEW):
            raise FailedPrecondition(f"requested snapshot {key} not active or view")
        return self.mounts_of(record)

    async def prepare(self, key: str, parent: str, labels: Labels, /) -> list[Mount]:
        return await self._create(Kind.ACTIVE, key, parent, labels)

    async def view(self, key: str, parent: str, labels: Labels, /) -> list[Mount]:
        return await self._create(Kind.VIEW, key, parent, labels)

    async def commit(self, name: str, key: str, labels: Labels, /, *, parent: str = "") -> None:
        record = self._records.to_commit(name, key)
        usage = await self._trees.usage(self.content(record.id))
        await threads.run("fs", self._commit, name, key, labels, usage, parent)

    async def remove(self, key: str, /) -> None:
        record = await threads.run("fs", self._records.remove, key)
        if self._sync_remove:
            await self._trees.remove(f"{self._snapshots}/{record.id}")

    async def walk(self, filters: Sequence[str] = (), /) -> AsyncIterator[SnapshotInfo]:
        """All snapshots, parents first."""
        wanted = filter_language.parse(filters)
        for record in self._records.all():
            info = self.info_of(record)
            if wanted.match(_Fields(info)):
                yield info

    async def cleanup(self) -> None:
        async with self._cleaning:
            for name in await threads.run("fs", self._unrecorded):
                await self._trees.remove(f"{self._snapshots}/{name}")

    def _open(self) -> None:
        os.makedirs(self._snapshots, mode=0o700, exist_ok=True)
        path = f"{self.root}/metadata.db"
        self._records, records = descriptions.open_records(path, self._snapshots)
        names = set(os.listdir(self._snapshots))
        for record in records:
            if str(record.id) not in names and record.kind != Kind.COMMITTED:
                self._make(record)
        used = [record.id for record in records]
        used += [int(name) for name in (n.removeprefix("new-") for n in names) if name.isdecimal()]
        self._ids = itertools.count(max(used, default=0) + 1)

    def _unrecorded(self) -> list[str]:
        """The directories that belong to no snapshot, nor to one that is being made."""
        names = os.listdir(self._snapshots)
        # Asked after the listing: what is made meanwhile is in one or the other.
        making = list(self._making)
        kept = {str(id) for id in (*making, *self._records.ids())}
        kept |= {f"new-{id}" for id in making}
        return [name for name in names if name not in kept]

    async def _create(self, kind: Kind, key: str, parent: str, labels: Labels) -> list[Mount]:
        id = next(self._ids)
        self._making.add(id)
        try:
            record = await threads.run("fs", self._make_recorded, id, kind, key, parent, labels)
        finally:
            self._making.discard(id)
        return self.mounts_of(record)

    def _make_recorded(self, id: int, kind: Kind, key: str, parent: str, labels: Labels) -> Record:
        parent_id = self._records.parent(parent).id if parent else None
        now = time.time_ns()
        self._make(Record(id, key, parent_id, kind, now, now, labels, 0, 0, parent))
        try:
            return self._records.add(id, key, parent, kind, labels)
        except BaseException:
            tree.remove_tree(f"{self._snapshots}/{id}")
            raise

    def _make(self, record: Record) -> None:
        new = f"{self._snapshots}/new-{record.id}"
        self.fill(new, record)
        descriptions.write(new, record)
        os.rename(new, f"{self._snapshots}/{record.id}")

    def _relabel(self, key: str, change: _Relabel) -> Record:
        record = self._records.relabel(key, change)
        descriptions.write(f"{self._snapshots}/{record.id}", record)
        return record

    def _commit(self, name: str, key: str, labels: Labels, usage: Usage, parent: str) -> None:
        before = self._records.get(key)
        path = f"{self._snapshots}/{before.id}"
        descriptions.write(path, self._committed(before, name, labels, usage, parent))
        try:
            self.sync_files()
            self._records.commit(name, key, labels, usage, parent)
        except BaseException:
            descriptions.write(path, before)
            raise

    def _committed(
        self, before: Record, name: str, labels: Labels, usage: Usage, parent: str
    ) -> Record:
        """What an active snapshot is once it is committed, for its description."""
        parent_id, now = before.parent, time.time_ns()
        with suppress(Error):  # the records refuse it then
            parent_id = self._records.parent(parent).id if parent else parent_id
        return before._replace(
            key=name, parent=parent_id, kind=Kind.COMMITTED, created_at=now, updated_at=now,
            labels=labels, size=usage.size, inodes=usage.inodes,
        )  # fmt: skip


class _Relabel:
    """An update of labels as asked for; raises InvalidArgument for any other field."""

    def __init__(self, info: SnapshotInfo, fieldpaths: Sequence[str]) -> None:
        self._labels = info.labels
        self._paths = fieldpaths
        for path in fieldpaths:
            if path != "labels" and not path.startswith("labels."):
                raise InvalidArgument(
                    f"cannot update {quote(path)} field on snapshot {quote(info.name)}"
                )

    def __call__(self, current: Labels) -> Labels:
        if not self._paths or "labels" in self._paths:
            return {key: value for key, value in self._labels.items() if value}
        changed = dict(current)
        for key in (path.removeprefix("labels.") for path in self._paths):
            changed[key] = self._labels.get(key, "")
        return {key: value for key, value in changed.items() if value}


class _Fields:
    """A snapshot as filters see it."""

    def __init__(self, info: SnapshotInfo) -> None:
        self._info = info

    def __call__(self, path: tuple[str, ...]) -> str | None:
        info = self._info
        match path:
            case ("name",):
                return info.name
            case ("parent",):
                return info.parent
            case ("kind",):
                return info.kind.name.lower()
            case ("labels", _, *_):
                return info.labels.get(filter_language.field_key(path))
        return None
