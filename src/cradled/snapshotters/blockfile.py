"""Async. Snapshots as images of file systems, each a file that is mounted by a loop device.

    scratch                    what a snapshot without a parent begins as: an empty file system
    snapshots/<id>/disk        the whole file system; a copy of the parent's, sharing its blocks
                               where the file system they lie on can

A view of a committed snapshot has no file of its own but shows its parent's.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress

from cradled.aio import threads
from cradled.core.mount import Mount
from cradled.core.snapshots import Kind
from cradled.core.values import Labels
from cradled.errors import FailedPrecondition
from cradled.linux import loop
from cradled.linux.copytree import copy_file
from cradled.snapshotters.directories import DirectorySnapshotter
from cradled.snapshotters.records import Record


class BlockfileSnapshotter(DirectorySnapshotter):
    """``scratch_file`` is an empty file system of the type ``fs_type``; it is copied when there is
    no copy of it yet, and each time with ``recreate_scratch``."""

    def __init__(
        self,
        root: str,
        *,
        scratch_file: str = "",
        fs_type: str = "ext4",
        mount_options: Sequence[str] = (),
        recreate_scratch: bool = False,
    ) -> None:
        super().__init__(root)
        self._scratch = f"{root}/scratch"
        self._scratch_file = scratch_file
        self._recreate = recreate_scratch
        self._type = fs_type
        self._options = ("loop", *(word for word in mount_options if word != "loop"))

    async def start(self) -> None:
        """Raises FailedPrecondition where there is no empty file system to begin with."""
        await threads.run("fs", self._provide_scratch)
        await super().start()

    async def commit(self, name: str, key: str, labels: Labels, /, *, parent: str = "") -> None:
        await threads.run("fs", _settle, self._disk(self._records.to_commit(name, key).id))
        await super().commit(name, key, labels, parent=parent)

    def _provide_scratch(self) -> None:
        there = os.path.exists(self._scratch)
        if there and not (self._recreate and self._scratch_file):
            return
        if not self._scratch_file:
            raise FailedPrecondition("no scratch file with an empty file system is configured")
        os.makedirs(self.root, mode=0o700, exist_ok=True)
        new = f"{self._scratch}.new"
        with suppress(FileNotFoundError):
            os.unlink(new)
        self._copy(self._scratch_file, new)
        os.rename(new, self._scratch)

    def fill(self, path: str, record: Record) -> None:
        os.mkdir(path, 0o700)
        if record.parent is None:
            self._copy(self._scratch, f"{path}/disk")
        elif record.kind == Kind.ACTIVE:
            self._copy(self._disk(record.parent), f"{path}/disk")

    def content(self, id: int) -> str:
        return f"{self._snapshots}/{id}"

    def mounts_of(self, record: Record) -> list[Mount]:
        if record.kind != Kind.VIEW:
            return [Mount(self._type, self._disk(record.id), (*self._options, "rw"))]
        shown = record.id if record.parent is None else record.parent
        return [Mount(self._type, self._disk(shown), (*self._options, "ro"))]

    def _disk(self, id: int) -> str:
        return f"{self.content(id)}/disk"

    def _copy(self, source: str, target: str) -> None:
        """Durable at once: half a file system could be neither used nor told from a whole one."""
        copy_file(source, target)
        fd = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _settle(disk: str) -> None:
    """See that all that was written to a file system is in its file.

    Who unmounts it writes it out, unless another mount namespace, made meanwhile, has it mounted
    still. Nobody but the kernel can find it there.
    """
    if loop.is_attached(disk):
        os.sync()
