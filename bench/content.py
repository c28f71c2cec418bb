"""``python -m bench.content``: blobs in and out, beside Debian's containerd in the same run.

A big blob goes in and out by our client, a MiB a message: each waits for the reply to the one
before, as in Go clients, or up to four are on their way. ``ctr content ingest`` and ``get`` do the
same with the Go client, which takes most of the time itself: that is the same for both daemons and
left in. Small blobs are written by our client, one after the other and 16 at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path

import uvloop

from bench.container import write_blob
from bench.report import Report, interleaved
from bench.targets import NAMESPACE, Target
from bench.workloads import ensure_namespace
from cradled.api import content_pb2, leases_pb2
from cradled.digest import of
from cradled.linux import memory

LEASE = "content"
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


async def write(target: Target, ref: str, pieces: list[bytes], ahead: int) -> None:
    """Write a blob with at most ``ahead`` messages on their way."""
    request = content_pb2.WriteContentRequest
    size = sum(map(len, pieces))
    async with target.stub(content_pb2.Content, LEASE).write() as stream:
        offset = 0
        for number, piece in enumerate(pieces):
            await stream.send(
                request(action=content_pb2.WRITE, ref=ref, total=size, offset=offset, data=piece)
            )
            offset += len(piece)
            if number >= ahead - 1:
                await stream.recv()
        await stream.send(request(action=content_pb2.COMMIT, ref=ref, total=size, offset=size))
        await stream.done()
        while await stream.recv() is not None:
            pass


async def read(target: Target, digest: str) -> int:
    request = content_pb2.ReadContentRequest(digest=digest)
    stream = target.stub(content_pb2.Content).read(request)
    return sum([len(response.data) async for response in stream])


async def timed(step: Awaitable[object]) -> float:
    began = time.perf_counter()
    await step
    return time.perf_counter() - began


async def big(target: Target, source: Path, report: Report | None) -> None:
    """One blob in and out again, each way three times."""
    data = source.read_bytes()
    size, digest = len(data), of(data)
    pieces = [data[at : at + MESSAGE] for at in range(0, size, MESSAGE)]
    del data
    contents = target.stub(content_pb2.Content)
    gone = content_pb2.DeleteContentRequest(digest=digest)
    seconds: dict[str, float] = {}
    for ahead in (1, 4):
        os.sync()
        cpu = target.cpu()
        seconds[f"write, {ahead} ahead"] = await timed(write(target, f"r{ahead}", pieces, ahead))
        if report is not None:
            figure = f"write, {ahead} ahead, CPU each GB"
            report.add(figure, "s", target.name, (target.cpu() - cpu) / size * 1e9)
        if ahead == 1:
            await contents.delete(gone)
    seconds["read"] = await timed(read(target, digest))
    seconds["read by ctr"] = await timed(ctr(target, "content", "get", digest))
    await contents.delete(gone)
    os.sync()
    seconds["write by ctr"] = await ctr(target, "content", "ingest", "big", data=source)
    await contents.delete(gone)
    if report is not None:
        for name, value in seconds.items():
            report.add(name, "MB/s", target.name, size / value / 1e6)


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
            report.add(f"write 4 KiB, c={clients}", "blobs/s", target.name, rate)


async def run(args: argparse.Namespace, work: Path) -> Report:
    report = Report()
    source = work / "source"
    with open(source, "wb") as file:
        for _ in range(args.size):
            file.write(os.urandom(1 << 20))
    targets = {name: Target(name, work) for name in args.only.split(",")}
    try:
        for target in targets.values():
            await target.start()
            await ensure_namespace(target)
            leases = target.stub(leases_pb2.Leases)
            await leases.create(leases_pb2.CreateRequest(id=LEASE))
        for number, name in interleaved(targets, args.rounds):
            kept = report if number >= 0 else None
            await small(targets[name], kept)
            await big(targets[name], source, kept)
    finally:
        for target in targets.values():
            await target.destroy()
    return report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.content")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=256, help="MiB of the big blob")
    parser.add_argument("--only", default="containerd,cradled", help="daemons, comma list")
    parser.add_argument("--work", default="/var/tmp", help="scratch, not on tmpfs")
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="cradled-bench-", dir=args.work))
    memory.own_process()
    memory.reuse_buffers()
    try:
        print(uvloop.run(run(args, work)).table())
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
