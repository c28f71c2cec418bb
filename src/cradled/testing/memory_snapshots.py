"""Async. A snapshotter in memory: a ``core.snapshots.Snapshotter`` for tests of what lies above.

It passes the suite that the real ones pass. Mounts lead nowhere. ``offer`` makes it behave like a
remote snapshotter that has a layer already.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from cradled import filters as language
from cradled.core.mount import Mount
from cradled.core.snapshots import Kind, SnapshotInfo, Usage
from cradled.core.values import Labels
from cradled.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, quote

TARGET = "containerd.io/snapshot.ref"


class MemorySnapshotter:
    """``infos`` may be looked at, and tampered with."""

    def __init__(self) -> None:
        self.infos: dict[str, SnapshotInfo] = {}
        self.cleanups = 0
        self._offered: set[str] = set()

    def offer(self, target: str) -> None:
        """From now on a layer prepared for this target is there already."""
        self._offered.add(target)

    async def stat(self, key: str, /) -> SnapshotInfo:
        return self._get(key)

    async def update(self, info: SnapshotInfo, fieldpaths: Sequence[str] = (), /) -> SnapshotInfo:
        labels = dict(self._get(info.name).labels)
        for path in fieldpaths or ("labels",):
            if path == "labels":
                labels = dict(info.labels)
            elif path.startswith("labels."):
                key = path.removeprefix("labels.")
                labels[key] = info.labels.get(key, "")
            else:
                raise InvalidArgument(
                    f"cannot update {quote(path)} field on snapshot {quote(info.name)}"
                )
        kept = {key: value for key, value in labels.items() if value}
        changed = replace(self.infos[info.name], labels=kept, updated_at=time.time_ns())
        self.infos[info.name] = changed
        return changed

    async def usage(self, key: str, /) -> Usage:
        return Usage(0, 0 if self._get(key).kind is Kind.VIEW else 1)

    async def mounts(self, key: str, /) -> list[Mount]:
        info = self._get(key)
        if info.kind not in (Kind.ACTIVE, Kind.VIEW):
            raise FailedPrecondition(f"requested snapshot {key} not active or view")
        return [Mount("bind", f"/nowhere/{key}", ("rw" if info.kind is Kind.ACTIVE else "ro",))]

    async def prepare(self, key: str, parent: str, labels: Labels, /) -> list[Mount]:
        target = labels.get(TARGET, "")
        if target in self._offered:
            self._add(f"remote-{len(self.infos)}", parent, Kind.COMMITTED, labels)
            raise AlreadyExists(f"snapshot {quote(target)}")
        return await self._create(key, parent, Kind.ACTIVE, labels)

    async def view(self, key: str, parent: str, labels: Labels, /) -> list[Mount]:
        return await self._create(key, parent, Kind.VIEW, labels)

    async def commit(self, name: str, key: str, labels: Labels, /, *, parent: str = "") -> None:
        await asyncio.sleep(0)
        if name in self.infos:
            raise AlreadyExists(f"snapshot {quote(name)}")
        active = self._get(key)
        if active.kind is not Kind.ACTIVE:
            raise FailedPrecondition(f"snapshot {key} is not active")
        if parent not in ("", active.parent):
            if active.parent:
                raise InvalidArgument("cannot change parent of active snapshot")
            self._check_parent(parent)
        self._add(name, parent or active.parent, Kind.COMMITTED, labels)
        del self.infos[key]

    async def remove(self, key: str, /) -> None:
        await asyncio.sleep(0)
        self._get(key)
        if any(info.parent == key for info in self.infos.values()):
            raise FailedPrecondition("cannot remove snapshot with child")
        del self.infos[key]

    async def walk(self, filters: Sequence[str] = (), /) -> AsyncIterator[SnapshotInfo]:
        wanted = language.parse(filters)
        for info in list(self.infos.values()):
            if wanted.match(lambda path: _field(info, path)):  # noqa: B023
                yield info

    async def cleanup(self) -> None:
        self.cleanups += 1

    async def _create(self, key: str, parent: str, kind: Kind, labels: Labels) -> list[Mount]:
        await asyncio.sleep(0)
        if parent:
            self._check_parent(parent)
        self._add(key, parent, kind, labels)
        return await self.mounts(key)

    def _add(self, key: str, parent: str, kind: Kind, labels: Labels) -> None:
        if key in self.infos:
            raise AlreadyExists(f"snapshot {quote(key)}")
        now = time.time_ns()
        self.infos[key] = SnapshotInfo(key, kind, parent, now, now, dict(labels))

    def _check_parent(self, parent: str) -> None:
        if parent not in self.infos:
            raise NotFound(f"parent snapshot {parent} does not exist")
        if self.infos[parent].kind is not Kind.COMMITTED:
            raise InvalidArgument(f"parent {quote(parent)} is not committed snapshot")

    def _get(self, key: str) -> SnapshotInfo:
        if key not in self.infos:
            raise NotFound(f"snapshot {key} does not exist")
        return self.infos[key]


def _field(info: SnapshotInfo, path: tuple[str, ...]) -> str | None:
    if path[0] == "labels":
        return info.labels.get(language.field_key(path))
    fields = {"name": info.name, "parent": info.parent, "kind": info.kind.name.lower()}
    return fields.get(path[0])
