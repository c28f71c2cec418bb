"""kill -9 at random instants: whatever was acknowledged is there, and nothing is left over.

A child process makes containers, blobs, images, snapshots and leases over the real backends as
fast as it can, removes some again, collects garbage, and prints a line for each thing it was
told is done. It is killed, and this process opens what it left.
"""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cradled import digest
from cradled.aio import threads
from cradled.content.local import LocalContentStore, open_store
from cradled.core.containers import Container, Runtime
from cradled.core.images import Image
from cradled.core.scope import Scope
from cradled.core.values import AnyValue, Descriptor
from cradled.errors import NotFound
from cradled.gc.scheduler import Scheduler
from cradled.metadata.db import Database, ScopedDatabase
from cradled.snapshotters.overlay import OverlaySnapshotter
from cradled.testing.content_suite import get

WORKERS = 6
ROUNDS = 12


@asynccontextmanager
async def opened(
    root: Path,
) -> AsyncIterator[tuple[Database, LocalContentStore, OverlaySnapshotter]]:
    overlay = OverlaySnapshotter(str(root / "overlay"))
    await overlay.start()
    content = await open_store(str(root / "content"))
    db = await Database.open(
        str(root / "meta.db"), content=content, snapshotters={"overlayfs": overlay}
    )
    try:
        yield db, content, overlay
    finally:
        await db.aclose()
        await overlay.aclose()
        threads.close()


def blob_of(name: str) -> bytes:
    return f"blob {name}".encode() * 50


async def work(ns: ScopedDatabase, name: str) -> None:
    """One round of a client; every line printed is a promise."""
    await ns.leases.create(f"lease-{name}")
    leased = ns.leases
    scoped = ns._db.scoped(Scope("ns", f"lease-{name}"))
    snapshots = scoped.snapshots("overlayfs")
    data = blob_of(name)
    writer = await scoped.content.writer(f"ref-{name}", total=len(data))
    await writer.write(data)
    await writer.commit(len(data), digest.of(data), {"name": name})
    print("content", name, flush=True)
    await ns.images.create(Image(f"image-{name}", Descriptor("m", digest.of(data), len(data))))
    print("image", name, flush=True)
    await snapshots.prepare(f"making-{name}", "", {})
    await snapshots.commit(f"layer-{name}", f"making-{name}", {"containerd.io/gc.root": "x"})
    print("layer", name, flush=True)
    await snapshots.prepare(f"rootfs-{name}", f"layer-{name}", {})
    await ns.containers.create(
        Container(name, {"n": name}, f"image-{name}", Runtime("r"), AnyValue("s", data),
                  "overlayfs", f"rootfs-{name}")
    )  # fmt: skip
    print("container", name, flush=True)
    await leased.delete(f"lease-{name}")
    if random.random() < 0.5:
        print("going", name, flush=True)
        await ns.containers.delete(name)
        print("gone", name, flush=True)


async def client(db: Database, prefix: str) -> None:
    count = 0
    while True:
        await work(db.scoped(Scope("ns")), f"{prefix}-{count}")
        count += 1


async def serve(root: Path, seed: str) -> None:
    async with opened(root) as (db, _, _):
        scheduler = Scheduler(db)

        async def collect() -> None:
            while True:
                await scheduler.collect()

        print("ready", flush=True)
        await asyncio.gather(collect(), *(client(db, f"{seed}-{n}") for n in range(WORKERS)))


def run_and_kill(root: Path, seed: str, lines: int) -> list[list[str]]:
    """What the child acknowledged before it was killed, after about so many lines."""
    command = [sys.executable, __file__, str(root), seed]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        told = []
        for line in child.stdout:
            told.append(line.split())
            if len(told) >= lines:
                child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    return [line for line in told if len(line) == 2]


class Promises:
    """What must be there: sets of names by kind."""

    def __init__(self) -> None:
        self.kept: dict[str, set[str]] = {
            k: set() for k in ("content", "image", "layer", "container")
        }
        self.unsure: set[str] = set()
        self.gone: set[str] = set()

    def add(self, lines: list[list[str]]) -> None:
        for kind, name in lines:
            if kind == "going":
                self.unsure.add(name)
                self.kept["container"].discard(name)
            elif kind == "gone":
                self.gone.add(name)
            else:
                self.kept[kind].add(name)

    async def check(self, ns: ScopedDatabase) -> None:
        for name in self.kept["content"] & self.kept["image"]:
            assert await get(ns.content, digest.of(blob_of(name))) == blob_of(name)
        for name in self.kept["image"]:
            assert (await ns.images.get(f"image-{name}")).target.size == len(blob_of(name))
        snapshots = ns.snapshots("overlayfs")
        for name in self.kept["layer"]:
            assert (await snapshots.stat(f"layer-{name}")).parent == ""
        for name in self.kept["container"]:
            container = await ns.containers.get(name)
            assert container.spec == AnyValue("s", blob_of(name))
            (mount,) = await snapshots.mounts(container.snapshot_key)
            upper = next(o for o in mount.options if o.startswith("upperdir="))
            assert Path(upper.removeprefix("upperdir=")).is_dir()
        for name in self.gone:
            with pytest.raises(NotFound):
                await ns.containers.get(name)


async def check_nothing_is_left_over(
    root: Path, db: Database, content: LocalContentStore, overlay: OverlaySnapshotter
) -> None:
    """After a collection the backends hold what the metadata names and nothing else."""
    scheduler = Scheduler(db)
    await db.engine.run(lambda tx: tx.execute("DELETE FROM leases").rowcount)
    await scheduler.collect()
    await scheduler.aclose()
    ns = db.scoped(Scope("ns"))
    named = {info.digest async for info in ns.content.walk()}
    assert {info.digest async for info in content.walk()} == named
    refs = [status.ref for status in await ns.content.list_statuses()]
    assert len(await content.list_statuses()) <= len(refs)
    keys = {info.name async for info in ns.snapshots("overlayfs").walk()}
    assert {info.name.split("/", 2)[2] async for info in overlay.walk()} == keys
    assert len(list((root / "overlay" / "snapshots").iterdir())) == len(keys)
    assert db.engine.query("SELECT * FROM snapshot_commits") == []


@pytest.mark.timeout(300)
async def test_what_was_acknowledged_survives(tmp_path: Path) -> None:
    promises, dice = Promises(), random.Random(20260801)
    for turn in range(ROUNDS):
        lines = run_and_kill(tmp_path, f"r{turn}", dice.randint(2, 150))
        promises.add(lines)
        async with opened(tmp_path) as (db, content, overlay):
            ns = db.scoped(Scope("ns"))
            await promises.check(ns)
            await check_nothing_is_left_over(tmp_path, db, content, overlay)
            await promises.check(ns)
    assert all(len(names) > 20 for names in promises.kept.values())
    assert promises.gone


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2]))
