"""``python -m bench.content``: blobs in and out, beside Debian's containerd in the same run.

A big blob goes in by ``ctr content ingest`` and comes out by ``ctr content get``: the Go client
sends 1 MiB messages and waits for the reply to each. What the client itself costs is the same for
both daemons and left in. Small blobs are written by our client, one after the other and 16 at once.
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
from pathlib import Path

from bench.container import write_blob
from bench.report import Report, interleaved
from bench.targets import NAMESPACE, Target
from bench.workloads import ensure_namespace
from cradled.api import content_pb2, leases_pb2
from cradled.digest import of

LEASE = "content"
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


async def big(target: Target, source: Path, report: Report | None) -> None:
    """One blob in, out three times, and gone again."""
    size = source.stat().st_size
    digest = of(source.read_bytes())
    os.sync()
    seconds = await ctr(target, "content", "ingest", "big", data=source)
    reads = [await ctr(target, "content", "get", digest) for _ in range(3)]
    if report is not None:
        report.add("write 256 MB", "MB/s", target.name, size / seconds / 1e6)
        report.add("read 256 MB", "MB/s", target.name, *(size / s / 1e6 for s in reads))
    contents = target.stub(content_pb2.Content)
    await contents.delete(content_pb2.DeleteContentRequest(digest=digest))


async def small(target: Target, report: Report | None) -> None:
    """Many blobs of random bytes, each durable before its reply."""
    for clients in (1, 16):
        blobs = iter([os.urandom(SMALL) for _ in range(SMALL_BLOBS)])

        async def write(blobs: object = blobs) -> None:
            for blob in blobs:  # type: ignore[attr-defined]
                await write_blob(target, LEASE, blob)

        began = time.perf_counter()
        await asyncio.gather(*(write() for _ in range(clients)))
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
    try:
        print(asyncio.run(run(args, work)).table())
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
