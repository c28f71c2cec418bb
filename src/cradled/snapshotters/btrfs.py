"""Async. Snapshots as subvolumes of btrfs, which copies nothing until it is written to.

    snapshots/<id>/    0755: the whole tree, a subvolume; read-only once it is committed

A view of a committed snapshot has no subvolume of its own but shows its parent's.
"""

from __future__ import annotations

import os

from cradled.aio import threads
from cradled.core.mount import Mount
from cradled.core.snapshots import Kind, Usage
from cradled.core.values import Labels
from cradled.errors import FailedPrecondition
from cradled.linux import btrfs, tree
from cradled.snapshotters.directories import DirectorySnapshotter
from cradled.snapshotters.records import Record


class BtrfsSnapshotter(DirectorySnapshotter):
    """``root`` lies on btrfs."""

    def __init__(self, root: str) -> None:
        super().__init__(root, trees=_Subvolumes())
        self._device = ""

    async def start(self) -> None:
        """Raises FailedPrecondition for a root on another file system."""
        try:
            self._device = await threads.run("fs", btrfs.device, self.root)
        except ValueError as error:
            raise FailedPrecondition(str(error)) from error
        await super().start()

    async def usage(self, key: str, /) -> Usage:
        record = self._records.get(key)
        if record.kind != Kind.ACTIVE:
            return record.usage()
        return await threads.run("fs", self._own_usage, record)

    async def commit(self, name: str, key: str, labels: Labels, /, *, parent: str = "") -> None:
        record = self._records.to_commit(name, key)
        usage = await threads.run("fs", self._own_usage, record)
        await threads.run("fs", self._commit, name, key, labels, usage, parent)
        await threads.run("fs", btrfs.freeze, self.content(record.id))

    def fill(self, path: str, record: Record) -> None:
        if record.parent is None:
            btrfs.create(path)
            os.chmod(path, 0o755)
        elif record.kind == Kind.ACTIVE:
            btrfs.snapshot(self.content(record.parent), path)
        else:
            os.mkdir(path, 0o700)

    def content(self, id: int) -> str:
        return f"{self._snapshots}/{id}"

    def mounts_of(self, record: Record) -> list[Mount]:
        shown = record.id
        if record.kind == Kind.VIEW and record.parent is not None:
            shown = record.parent
        options = [f"subvolid={btrfs.subvolume_id(self.content(shown))}"]
        if record.kind == Kind.VIEW:
            options.append("ro")
        return [Mount("btrfs", self._device, tuple(options))]

    def _own_usage(self, record: Record) -> Usage:
        own = self.content(record.id)
        if record.parent is None:
            return Usage(*tree.usage(own))
        return Usage(*tree.usage_of_changes(own, self.content(record.parent)))


class _Subvolumes:
    """Removes what ``fill`` makes, in no time. Implements ``Trees``."""

    async def usage(self, path: str, /) -> Usage:
        return Usage(*await threads.run("fs", tree.usage, path))

    async def remove(self, path: str, /) -> None:
        await threads.run("fs", _remove, path)


def _remove(path: str) -> None:
    if btrfs.is_subvolume(path):
        btrfs.destroy(path)
    else:
        tree.remove_tree(path)
