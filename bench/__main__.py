"""``python -m bench``: the workloads on both daemons, one run, a table at the end."""

from __future__ import annotations

import argparse
import asyncio
import compileall
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path

import cradled
from bench import crowd, lives, workloads
from bench.cli import cli
from bench.content import content
from bench.events import events
from bench.lists import lists
from bench.mixed import mixed
from bench.report import Report
from bench.stdio import stdio
from bench.targets import forget_containers
from bench.workloads import Bench
from cradled.linux import memory

WORKLOADS = {
    "life": lives.life,
    "rate": lives.rate,
    "cli": cli,
    "boot": workloads.boot,
    "memory": workloads.memory,
    "content": content,
    "lists": lists,
    "events": events,
    "mixed": mixed,
    "stdio": stdio,
    "probes": crowd.probes,
    "burst": crowd.burst,
    "thousand": crowd.thousand,
    "unpack": workloads.unpack,
}


async def run(args: argparse.Namespace) -> Report:
    report = Report()
    work = Path(tempfile.mkdtemp(prefix="cradled-bench-", dir=args.work))
    try:
        for name in args.workloads.split(","):
            print(f"{time.strftime('%H:%M:%S')} {name} ...", file=sys.stderr, flush=True)
            bench = Bench(work, args.only.split(","), report, args.rounds, args.image, args.small)
            try:
                await WORKLOADS[name](bench)
            finally:
                await bench.down()
            report.save(args.out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        forget_containers()
    return report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").strip())
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="comma list")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", default="containerd,cradled", help="daemons, comma list")
    parser.add_argument(
        "--image", type=Path, help="OCI layout tar for the workloads unpack and mixed"
    )
    parser.add_argument("--small", action="store_true", help="few containers where there are many")
    parser.add_argument("--work", default="/var/tmp", help="scratch, not on tmpfs")
    parser.add_argument("--out", type=Path, default=Path("bench/results/latest.json"))
    args = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("containers need root")
    # As an installed package is, also where the environment says that nothing is to be written.
    compileall.compile_dir(Path(cradled.__file__).parent, quiet=1)
    memory.own_process()
    memory.reuse_buffers()
    try:
        import uvloop
    except ImportError:
        report = asyncio.run(run(args))
    else:
        report = uvloop.run(run(args))
    print(
        f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}\n"
    )
    print(report.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
