"""The workloads of ``python -m bench``; each adds its samples to the report."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.bare import Bare
from bench.container import Layout, Life, import_image, small_layout
from bench.report import Report, interleaved
from bench.subjects import BareRuntime, Daemon, Subject
from bench.targets import NAMESPACE, Target, pss_of
from cradled.api import namespaces_pb2, tasks_pb2
from cradled.errors import AlreadyExists, Error

WORKERS_STAY = 12.0
"""Seconds after which no process that unpacked is kept for the next image."""


@dataclass
class Bench:
    """What a workload needs: where to work, which daemons, where samples go.

    ``small`` asks for the small size of workloads that are large.
    """

    work: Path
    names: list[str]
    report: Report
    rounds: int = 20
    image: Path | None = None
    small: bool = False
    targets: dict[str, Target] = field(default_factory=dict)
    chains: dict[str, str] = field(default_factory=dict)

    async def up(self, image: bool = True, runtime: str = "runc") -> None:
        """Start every daemon afresh, with or without the small image in it."""
        for name in self.names:
            await self.add(name, Target(name, self.work, runtime), image)

    async def add(self, name: str, target: Target, image: bool = True) -> None:
        """Start one more daemon."""
        self.targets[name] = target
        await target.start()
        await ensure_namespace(target)
        if image:
            await self.load(name)

    async def load(self, name: str) -> None:
        """Give a daemon the small image."""
        self.chains[name] = await import_image(self.targets[name], self._layout())

    @contextlib.asynccontextmanager
    async def subjects(self, runtime: str) -> AsyncIterator[dict[str, Subject]]:
        """Every daemon with this OCI runtime, and the runtime alone; for the block."""
        await self.up(runtime=runtime)
        subjects: dict[str, Daemon | BareRuntime] = {
            name: Daemon(target, self.chains[name]) for name, target in self.targets.items()
        }
        bare = Bare(runtime, self.work, self._layout().layer())
        try:
            await bare.start()
            subjects[BareRuntime.name] = BareRuntime(bare)
            yield dict(subjects)
            for subject in subjects.values():
                await subject.aclose()
        finally:
            await bare.destroy()
            await self.down()

    async def down(self) -> None:
        for target in self.targets.values():
            await target.destroy()
        self.targets = {}

    def _layout(self) -> Layout:
        return small_layout(self.work / "small.tar")


def runtimes() -> list[str]:
    """The OCI runtimes that are installed."""
    return [name for name in ("runc", "crun") if shutil.which(name)]


async def ensure_namespace(target: Target) -> None:
    request = namespaces_pb2.CreateNamespaceRequest(
        namespace=namespaces_pb2.Namespace(name=NAMESPACE)
    )
    try:
        await target.stub(namespaces_pb2.Namespaces).create(request)
    except AlreadyExists:
        pass


async def memory(bench: Bench) -> None:
    """After the start, after an import, and per running container without its own processes."""
    await bench.up(image=False)
    await asyncio.sleep(1)
    for name, target in bench.targets.items():
        bench.report.add("memory: idle after boot", "MiB", name, target.pss())
        await bench.load(name)
    await asyncio.sleep(WORKERS_STAY)
    for name, target in bench.targets.items():
        idle = target.pss()
        bench.report.add("memory: idle after an import", "MiB", name, idle)
        lives: list[Life] = []
        for count in (20, 100):
            while len(lives) < count:
                lives.append(Life(target, bench.chains[name], ["sleep", "100000"]))
                await lives[-1].start()
            await asyncio.sleep(1)
            inside = {life.pid for life in lives}
            each = (target.pss(inside) - idle) / count
            bench.report.add(f"memory: each of {count}", "MiB", name, each)
            daemon = target.process.pid if target.process else 0
            bench.report.add(f"memory: daemon alone at {count}", "MiB", name, pss_of(daemon) / 1024)
        began = time.perf_counter()
        listed = await target.stub(tasks_pb2.Tasks).list(tasks_pb2.ListTasksRequest())
        bench.report.add("Tasks.List of 100", "ms", name, (time.perf_counter() - began) * 1e3)
        assert len(listed.tasks) == 100
        await asyncio.gather(*(life.kill() for life in lives))


async def boot(bench: Bench) -> None:
    """From exec to the first answer, warm; and kill -9 with 50 running, to all states known."""
    for number, name in interleaved(bench.names, max(4, bench.rounds // 2)):
        target = Target(name, bench.work)
        seconds = await target.start()
        if number >= 0:
            bench.report.add("boot: to first answer", "ms", name, seconds * 1e3)
        await target.destroy()
    await bench.up()
    lives = {
        name: [Life(t, bench.chains[name], ["sleep", "100000"]) for _ in range(50)]
        for name, t in bench.targets.items()
    }
    for started in lives.values():
        for each in started:
            await each.start()
    for number, name in interleaved(bench.targets, max(3, bench.rounds // 4)):
        target = bench.targets[name]
        await target.kill()
        began = time.perf_counter()
        await target.start()
        await all_running(target, 50)
        if number >= 0:
            label = "restart: 50 running, to all states known"
            bench.report.add(label, "ms", name, (time.perf_counter() - began) * 1e3)
    for name, started in lives.items():
        for old in started:
            await Life(bench.targets[name], bench.chains[name], [], old.name).kill()


async def all_running(target: Target, count: int) -> None:
    while True:
        try:
            listed = await target.stub(tasks_pb2.Tasks).list(tasks_pb2.ListTasksRequest())
        except Error:
            continue
        if sum(task.status == 2 for task in listed.tasks) == count:
            return
        await asyncio.sleep(0.001)


async def unpack(bench: Bench) -> None:
    """Import and unpack a large image, by Debian's ctr and by each daemon's own client.

    Every import is one of a daemon's first, in directories of its own, and nothing is removed
    before the end: for minutes ext4 passes over the inodes that were freed, one by one.
    """
    if bench.image is None:
        return
    raw = raw_bytes(Layout.open(bench.image))
    for number, name in interleaved(bench.names, max(2, bench.rounds // 8)):
        for client in ("ctr", "own client"):
            target = Target(name, bench.work)
            bench.targets[target.mark] = target
            await target.start()
            await ensure_namespace(target)
            cpu = target.cpu()
            seconds = timed_command(import_command(target, bench.image, client))
            used = target.cpu() - cpu
            if number >= 0:
                bench.report.add(f"unpack: {client}", "MB/s raw", name, raw / seconds / 1e6)
                bench.report.add(f"unpack: {client}, CPU each GB", "s", name, used / raw * 1e9)
            await target.kill()


def import_command(target: Target, image: Path, client: str) -> list[str]:
    if client == "ctr" or target.name == "containerd":
        return ["ctr", "-a", str(target.socket), "-n", NAMESPACE, "images", "import", str(image)]
    cradle = str(Path(sys.executable).parent / "cradle")
    return [cradle, "--address", str(target.socket), "--namespace", NAMESPACE, "import", str(image)]


def timed_command(command: list[str]) -> float:
    drop_caches()
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def raw_bytes(layout: Layout) -> int:
    import zlib

    total = 0
    for layer in layout.manifest["layers"]:
        unpacker = zlib.decompressobj(31)
        total += len(unpacker.decompress(layout.blob(layer["digest"])))
    return total


def drop_caches() -> None:
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("3")
