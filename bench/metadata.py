"""Figures of the metadata, event and collection rooms, without any transport.

    python bench/metadata.py [--directory DIR] [--images N]

DIR must lie on a real disk: what a durable write costs is the disk's flush. Each figure stands
beside its target; times are medians.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from cradled.core.containers import Container, Runtime
from cradled.core.content import ContentInfo, IngestStatus, Reader, Writer
from cradled.core.events import Envelope
from cradled.core.images import Image
from cradled.core.scope import Scope
from cradled.core.values import AnyValue, Descriptor
from cradled.events import topics
from cradled.events.exchange import Exchange
from cradled.gc.scheduler import Scheduler
from cradled.metadata.db import Database

SPEC = AnyValue("types.containerd.io/opencontainers/runtime-spec/1/Spec", b"{" + b" " * 3000 + b"}")
LABELS = {"io.containerd.image.config.stop-signal": "SIGTERM", "purpose": "bench"}


class NoContent:
    """A content backend with nothing in it: what is measured is the metadata."""

    async def info(self, digest: str, /) -> ContentInfo:
        raise NotImplementedError

    async def update(self, info: ContentInfo, fieldpaths: Sequence[str] = (), /) -> ContentInfo:
        raise NotImplementedError

    async def walk(self, filters: Sequence[str] = (), /) -> AsyncIterator[ContentInfo]:
        return
        yield

    async def delete(self, digest: str, /) -> None:
        return

    async def open(self, digest: str, /) -> Reader:
        raise NotImplementedError

    async def writer(self, ref: str, /, *, total: int = 0, expected: str = "") -> Writer:
        raise NotImplementedError

    async def status(self, ref: str, /) -> IngestStatus:
        raise NotImplementedError

    async def list_statuses(self, filters: Sequence[str] = (), /) -> list[IngestStatus]:
        return []

    async def abort(self, ref: str, /) -> None:
        return


def report(name: str, value: float, unit: str, target: str = "") -> None:
    print(f"{name:<44}{value:>10.1f} {unit:<8}{target}", flush=True)


async def median(action: Callable[[int], Awaitable[object]], count: int) -> float:
    """Median microseconds of one call."""
    times = []
    for index in range(count):
        start = time.perf_counter()
        await action(index)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


async def writes(db: Database) -> None:
    containers = db.scoped(Scope("default")).containers

    def made(name: str) -> Container:
        return Container(name, LABELS, "image", Runtime("io.containerd.runc.v2"), SPEC)

    await median(lambda i: containers.create(made(f"warm{i}")), 100)
    one = await median(lambda i: containers.create(made(f"one{i}")), 500)
    report("durable create, c=1", one, "us", "<= 300")
    for clients in (16, 64):
        count = 6000 // clients

        async def client(number: int, count: int = count, clients: int = clients) -> None:
            for index in range(count):
                await containers.create(made(f"c{clients}-{number}-{index}"))

        start = time.perf_counter()
        await asyncio.gather(*map(client, range(clients)))
        rate = clients * count / (time.perf_counter() - start)
        report(f"durable create, c={clients}", rate, "/s", ">= 5000")


async def reads(db: Database) -> None:
    containers = db.scoped(Scope("listed")).containers
    for index in range(100):
        await containers.create(
            Container(f"n{index:03}", LABELS, "image", Runtime("io.containerd.runc.v2"), SPEC)
        )
    report("get (record)", await median(lambda _: containers.get_record("n050"), 2000), "us")
    report("get (object)", await median(lambda _: containers.get("n050"), 2000), "us")
    report("list of 100 (records)", await median(lambda _: containers.list_records(), 200), "us")
    filters = ["labels.purpose==bench,id~=/^n0/"]
    listed = await median(lambda _: containers.list_records(filters), 100)
    report("list of 100, filtered", listed, "us")


async def fan_out() -> None:
    exchange = Exchange()
    topic, event = topics.container_deleted("c1")
    envelope = Envelope(time.time_ns(), "default", topic, event)
    for count in (0, 1, 100):
        held = [exchange.subscribe(['topic~="^/containers/"']) for _ in range(count)]
        report(
            f"publish to {count} subscribers",
            await median(lambda _: _publish(exchange, envelope), 2000),
            "us",
        )
        del held


async def _publish(exchange: Exchange, envelope: Envelope) -> None:
    exchange.publish((envelope,))


async def collection(db: Database, images: int) -> None:
    """Images of a manifest, a config and three layers; one in ten has no image any more."""
    ns = db.scoped(Scope("collected"))
    await db.engine.run(lambda tx: tx.executemany(_CONTENT, list(_blobs(images))))
    target = "application/vnd.oci.image.manifest.v1+json"
    todo = [
        ns.images.create(Image(f"image{i}", Descriptor(target, _digest(i, 0), 1)))
        for i in range(images)
        if i % 10
    ]
    await asyncio.gather(*todo)
    scheduler = Scheduler(db)
    lag = [0.0]
    watch = asyncio.create_task(_lag(lag))
    first = await scheduler.collect()
    report(f"collection, {images} images, {sum(first.removed.values())} to go",
           first.seconds * 1e3, "ms")  # fmt: skip
    report("  longest hold of the loop", lag[0] * 1e3, "ms", "<= 5")
    lag[0] = 0.0
    second = await scheduler.collect()
    report(f"collection, {images} images, nothing to go", second.seconds * 1e3, "ms", "< 150")
    report("  longest hold of the loop", lag[0] * 1e3, "ms", "<= 5")
    watch.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watch
    await scheduler.aclose()


_CONTENT = "INSERT INTO content VALUES ('collected', ?, 1, 1, 1, ?, ?)"


def _digest(image: int, part: int) -> str:
    return f"sha256:{image:032x}{part:032x}"


def _blobs(images: int) -> list[tuple[str, str, str | None]]:
    rows: list[tuple[str, str, str | None]] = []
    for i in range(images):
        refs = {"containerd.io/gc.ref.content.config": _digest(i, 1)}
        refs |= {f"containerd.io/gc.ref.content.l.{n}": _digest(i, 2 + n) for n in range(3)}
        rows.append((_digest(i, 0), json.dumps(refs), json.dumps(refs)))
        snapshot = {"containerd.io/gc.ref.snapshot.overlayfs": f"chain{i}"}
        rows.append((_digest(i, 1), json.dumps(snapshot), json.dumps(snapshot)))
        rows += [(_digest(i, 2 + n), "{}", None) for n in range(3)]
    return rows


async def _lag(longest: list[float]) -> None:
    """How late the loop is for a timer of 1 ms, at most."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + 0.001
        await asyncio.sleep(0.001)
        longest[0] = max(longest[0], loop.time() - due)


async def main(directory: str, images: int) -> None:
    with tempfile.TemporaryDirectory(dir=directory) as root:
        path = os.path.join(root, "meta.db")
        exchange = Exchange()
        db = await Database.open(path, content=NoContent(), snapshotters={}, publisher=exchange)
        try:
            await writes(db)
            await reads(db)
            await fan_out()
            await collection(db, images)
        finally:
            await db.aclose()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", default=None)
    parser.add_argument("--images", type=int, default=5000)
    arguments = parser.parse_args()
    try:
        import uvloop

        uvloop.run(main(arguments.directory, arguments.images))
    except ImportError:
        asyncio.run(main(arguments.directory, arguments.images))
