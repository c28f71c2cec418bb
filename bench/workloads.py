"""The workloads of ``python -m bench``; each adds its samples to the report."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench.container import PHASES, Layout, Life, import_image, small_layout, whole_life
from bench.report import Report, interleaved
from bench.targets import NAMESPACE, Target, pss_of
from cradled.api import namespaces_pb2, tasks_pb2
from cradled.errors import AlreadyExists, Error


@dataclass
class Bench:
    """What a workload needs: where to work, which daemons, where samples go."""

    work: Path
    names: list[str]
    report: Report
    rounds: int = 20
    image: Path | None = None
    targets: dict[str, Target] = field(default_factory=dict)
    chains: dict[str, str] = field(default_factory=dict)

    async def up(self, image: bool = True) -> None:
        """Start every daemon afresh, with or without the small image in it."""
        self.targets = {name: Target(name, self.work) for name in self.names}
        for name, target in self.targets.items():
            await target.start()
            await ensure_namespace(target)
            if image:
                layout = small_layout(self.work / "small.tar")
                self.chains[name] = await import_image(target, layout)

    async def down(self) -> None:
        for target in self.targets.values():
            await target.destroy()
        self.targets = {}


async def ensure_namespace(target: Target) -> None:
    request = namespaces_pb2.CreateNamespaceRequest(
        namespace=namespaces_pb2.Namespace(name=NAMESPACE)
    )
    try:
        await target.stub(namespaces_pb2.Namespaces).create(request)
    except AlreadyExists:
        pass


async def life(bench: Bench) -> None:
    """One container at a time, by phase, with the CPU time of daemon and helpers."""
    await bench.up()
    for number, name in interleaved(bench.targets, bench.rounds):
        target = bench.targets[name]
        cpu = target.cpu()
        phases = await whole_life(target, bench.chains[name])
        used = (target.cpu() - cpu) * 1e3
        if number < 0:
            continue
        for phase in PHASES:
            bench.report.add(f"life: {phase}", "ms", name, phases[phase])
        bench.report.add("life: total", "ms", name, sum(phases.values()))
        bench.report.add("life: CPU", "ms", name, used)


async def rate(bench: Bench) -> None:
    """Whole lives per second at several concurrencies, with each OCI runtime there is."""
    await bench.up()
    for concurrency in (1, 4, 16):
        for number, name in interleaved(bench.targets, max(2, bench.rounds // 8)):
            target, chain = bench.targets[name], bench.chains[name]
            count, cpu, began = (
                concurrency * (8 if concurrency > 1 else 20),
                target.cpu(),
                time.perf_counter(),
            )
            waiting = iter(range(count))

            async def worker(
                target: Target = target, chain: str = chain, waiting: object = waiting
            ) -> None:
                for _ in waiting:  # type: ignore[attr-defined]
                    await whole_life(target, chain)

            await asyncio.gather(*(worker() for _ in range(concurrency)))
            if number >= 0:
                seconds = time.perf_counter() - began
                label = f"rate: c={concurrency}"
                bench.report.add(label, "containers/s", name, count / seconds)
                bench.report.add(
                    f"{label}, CPU each", "ms", name, (target.cpu() - cpu) * 1e3 / count
                )


async def memory(bench: Bench) -> None:
    """Idle, and per running container, containers' own processes left out."""
    await bench.up()
    for name, target in bench.targets.items():
        await asyncio.sleep(1)
        idle = target.pss()
        bench.report.add("memory: idle", "MiB", name, idle)
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
