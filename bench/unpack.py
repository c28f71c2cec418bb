"""``python -m bench.unpack --image OCI.tar``: unpacking alone, ours and containerd's, one run.

containerd is asked over its API (Prepare, Diff.Apply, Commit a layer); we unpack by the pool of
workers, one layer at a time and all at once. Nothing is removed before the end: a file system that
has just freed inodes is slow at giving them out again.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.container import Layout, unpack, write_blob
from bench.report import Report, interleaved
from bench.targets import Target
from bench.workloads import ensure_namespace
from cradled.api import leases_pb2
from cradled.core.mount import Mount
from cradled.core.values import Descriptor
from cradled.differs.apply import WalkingApplier
from cradled.digest import chain_ids
from cradled.workers.pool import Pool
from cradled.zygote.client import Zygote

FIGURE = "unpack"
LEASE = "unpack"
_numbers = itertools.count(1)


@dataclass
class Blob:
    """A layer's blob in a file, as core.content.Reader."""

    path: Path
    fd: int
    size: int

    @classmethod
    def open(cls, path: Path) -> Blob:
        return cls(path, os.open(path, os.O_RDONLY), path.stat().st_size)

    def fileno(self) -> int:
        return self.fd

    async def read(self, offset: int, length: int, /) -> bytes:
        return os.pread(self.fd, length, offset)

    def close(self) -> None:
        os.close(self.fd)


class Original:
    """containerd with the layers in its content store, held by a lease."""

    def __init__(self, target: Target, layout: Layout) -> None:
        self.target, self.layout = target, layout

    async def load(self) -> None:
        await self.target.start()
        await ensure_namespace(self.target)
        leases = self.target.stub(leases_pb2.Leases)
        await leases.create(leases_pb2.CreateRequest(id=LEASE))
        for layer in self.layout.manifest["layers"]:
            await write_blob(self.target, LEASE, self.layout.blob(layer["digest"]))

    async def unpack(self) -> None:
        number = next(_numbers)
        names = [f"{number}-{chain}" for chain in chain_ids(self.layout.diff_ids())]
        await unpack(self.target, LEASE, self.layout.manifest["layers"], names)


class Ours:
    """The applier and its workers, with the layers in files."""

    def __init__(self, work: Path, layout: Layout) -> None:
        self.work, self.layout = work, layout
        self.zygote = Zygote()
        self.pool = Pool(self.zygote, str(work), idle=600)
        self.applier = WalkingApplier(self.pool)
        self.layers: list[tuple[Descriptor, Blob]] = []

    async def load(self) -> None:
        for number, layer in enumerate(self.layout.manifest["layers"]):
            path = self.work / f"blob{number}"
            path.write_bytes(self.layout.blob(layer["digest"]))
            what = Descriptor(layer["mediaType"], layer["digest"], layer["size"])
            self.layers.append((what, Blob.open(path)))

    def _mounts(self, lowers: Sequence[str]) -> tuple[str, list[Mount]]:
        top = self.work / f"snapshot{next(_numbers)}"
        for name in ("fs", "work"):
            (top / name).mkdir(parents=True)
        upper = str(top / "fs")
        words = [f"workdir={top}/work", f"upperdir={upper}"]
        if lowers:
            words.append("lowerdir=" + ":".join(lowers))
        return upper, [Mount("overlay", "overlay", tuple(words))]

    async def one_by_one(self) -> None:
        lowers: list[str] = []
        for (what, blob), diff_id in zip(self.layers, self.layout.diff_ids(), strict=True):
            upper, mounts = self._mounts(lowers)
            applied = await self.applier.apply(what, blob, mounts)
            assert applied.digest == diff_id
            lowers.insert(0, upper)

    async def side_by_side(self) -> None:
        jobs = (self.applier.apply(what, blob, self._mounts([])[1]) for what, blob in self.layers)
        applied = await asyncio.gather(*jobs)
        assert [one.digest for one in applied] == self.layout.diff_ids()
        self.raw = sum(one.size for one in applied)

    async def aclose(self) -> None:
        await self.pool.aclose()
        await self.zygote.aclose()
        for _, blob in self.layers:
            blob.close()


async def run(layout: Layout, work: Path, rounds: int) -> Report:
    report = Report(ours="one by one", theirs="containerd")
    original, ours = Original(Target("containerd", work), layout), Ours(work, layout)
    try:
        await original.load()
        await ours.load()
        ways: dict[str, Callable[[], Awaitable[None]]] = {
            "containerd": original.unpack,
            "one by one": ours.one_by_one,
            "side by side": ours.side_by_side,
        }
        for number, name in interleaved(ways, rounds):
            os.sync()
            began = time.perf_counter()
            await ways[name]()
            seconds = time.perf_counter() - began
            if number >= 0:
                report.add(FIGURE, "MB/s raw", name, ours.raw / seconds / 1e6)
    finally:
        await ours.aclose()
        await original.target.destroy()
    return report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.unpack", description=__doc__)
    parser.add_argument("--image", type=Path, required=True, help="OCI layout tar, several layers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", default="/var/tmp", help="scratch, not on tmpfs")
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="cradled-unpack-", dir=args.work))
    try:
        report = asyncio.run(run(Layout.open(args.image), work, args.rounds))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"{os.cpu_count()} cores, Linux {platform.release()}\n\n{report.table()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
