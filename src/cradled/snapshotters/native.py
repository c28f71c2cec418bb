"""Async. Snapshots as full copies of their parents: slow and big, but on any file system.

    snapshots/<id>/    0755: the whole tree

A view has no directory of its own but shows its parent's.
"""

from __future__ import annotations

import os

from cradled.core.mount import Mount
from cradled.core.snapshots import Kind
from cradled.linux.copytree import copy_tree
from cradled.snapshotters.directories import DirectorySnapshotter
from cradled.snapshotters.records import Record


class NativeSnapshotter(DirectorySnapshotter):
    """Needs nothing of the kernel but bind mounts."""

    def fill(self, path: str, record: Record) -> None:
        if record.kind == Kind.ACTIVE and record.parent is not None:
            copy_tree(self.content(record.parent), path)
            self.sync_files()  # a copy that power failure took could not be made again empty
            return
        os.mkdir(path)
        os.chmod(path, 0o755)

    def content(self, id: int) -> str:
        return f"{self._snapshots}/{id}"

    def mounts_of(self, record: Record) -> list[Mount]:
        if record.kind == Kind.VIEW:
            shown = record.id if record.parent is None else record.parent
            return [Mount("bind", self.content(shown), ("rbind", "ro"))]
        return [Mount("bind", self.content(record.id), ("rbind", "rw"))]
