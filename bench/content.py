"""Blobs in and out.

A big blob goes in and out by a client that costs next to nothing (``bench.bulk``), a MiB a message:
each waits for the reply to the one before, as in Go clients, or up to four are on their way.
``ctr content ingest`` and ``get`` do the same with the Go client, which takes most of the time
itself: that is the same for both daemons and left in. Small blobs are written by our ordinary
client, one after the other and 16 at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

from bench.bulk import BulkClient
from bench.container import write_blob
from bench.report import Report, interleaved
from bench.targets import NAMESPACE, Target
from bench.workloads import Bench
from cradled.api import content_pb2, leases_pb2
from cradled.digest import of

P = ParamSpec("P")

LEASE = "content"
SIZE = 256  # MiB of the big blob
MESSAGE = 1 << 20
SMALL = 4 << 10
SMALL_BLOBS = 200


async def ctr(target: Target, *words: str, data: Path | None = None) -> float:
    """Run the Go client; returns seconds."""
    command = ["ctr", "-a", str(target.socket), "-n", NAMESPACE, *words]
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(open(data, "rb")) if data else subprocess.DEVNULL
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            *command, stdin=source, stdout=subprocess.DEVNULL
        )
        if await process.wait():
            raise RuntimeError(f"{' '.join(command)} failed")
        return time.perf_counter() - began


async def timed(function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> float:
    """Call a blocking function in a thread; returns seconds."""
    began = time.perf_counter()
    await asyncio.to_thread(function, *args, **kwargs)
    return time.perf_counter() - began


async def big(target: Target, data: memoryview, source: Path, report: Report | None) -> None:
    """One blob in and out again."""
    size, digest = len(data), of(bytes(data))
    contents = target.stub(content_pb2.Content)
    gone = content_pb2.DeleteContentRequest(digest=digest)
    pieces = [data[at : at + MESSAGE] for at in range(0, size, MESSAGE)]
    seconds: dict[str, float] = {}
    for ahead in (1, 4):
        os.sync()
        cpu = target.cpu()
        with BulkClient(str(target.socket), NAMESPACE, LEASE) as client:
            seconds[f"write, {ahead} ahead"] = await timed(client.write, f"r{ahead}", pieces, ahead)
        used = (target.cpu() - cpu) / size * 1e9
        if report is not None:
            report.add(f"content: write, {ahead} ahead, CPU each GB", "s", target.name, used)
        if ahead == 1:
            await contents.delete(gone)
    with BulkClient(str(target.socket), NAMESPACE) as client:
        seconds["read"] = await timed(client.read, digest)
    seconds["read by ctr"] = await ctr(target, "content", "get", digest)
    await contents.delete(gone)
    os.sync()
    seconds["write by ctr"] = await ctr(target, "content", "ingest", "big", data=source)
    await contents.delete(gone)
    if report is not None:
        for name, value in seconds.items():
            report.add(f"content: {name}", "MB/s", target.name, size / value / 1e6)


async def small(target: Target, report: Report | None) -> None:
    """Many blobs of random bytes, each durable before its reply."""
    for clients in (1, 16):
        blobs = iter([os.urandom(SMALL) for _ in range(SMALL_BLOBS)])

        async def write_all(blobs: object = blobs) -> None:
            for blob in blobs:  # type: ignore[attr-defined]
                await write_blob(target, LEASE, blob)

        began = time.perf_counter()
        await asyncio.gather(*(write_all() for _ in range(clients)))
        rate = SMALL_BLOBS / (time.perf_counter() - began)
        if report is not None:
            report.add(f"content: write 4 KiB, c={clients}", "blobs/s", target.name, rate)


async def content(bench: Bench) -> None:
    """Blobs in and out."""
    source = bench.work / "source"
    with open(source, "wb") as file:
        for _ in range(SIZE):
            file.write(os.urandom(MESSAGE))
    data = memoryview(source.read_bytes())
    await bench.up(image=False)
    for target in bench.targets.values():
        await target.stub(leases_pb2.Leases).create(leases_pb2.CreateRequest(id=LEASE))
    for number, name in interleaved(bench.targets, max(3, bench.rounds // 4)):
        kept = bench.report if number >= 0 else None
        await small(bench.targets[name], kept)
        await big(bench.targets[name], data, source, kept)
