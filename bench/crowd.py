"""Many containers: a thousand that idle, a hundred that are probed, two hundred that start at once.

``thousand`` goes as far as a daemon goes without an error, and measures what that many cost it.
The column ``grouped`` is cradled with one shim for all of a namespace.
"""

from __future__ import annotations

import asyncio
import time

from bench.bare import spread
from bench.container import Life
from bench.report import interleaved
from bench.subjects import Daemon, ended
from bench.targets import Target
from bench.workloads import Bench, runtimes
from cradled.api import tasks_pb2
from cradled.errors import Error

AT_ONCE = 4
GROUPED = "grouped"


async def thousand(bench: Bench) -> None:
    """Start containers until there are a thousand, look at what they cost, and end them."""
    count, seconds = (40, 5) if bench.small else (1000, 20)
    for name in [*bench.names, *([GROUPED] if "cradled" in bench.names else [])]:
        grouping = "namespace" if name == GROUPED else ""
        target = Target("cradled" if grouping else name, bench.work, grouping=grouping)
        await bench.add(name, target)
        daemon, report = Daemon(target, bench.chains[name]), bench.report
        idle = target.pss()
        began = time.perf_counter()
        lives, errors = await crowd(daemon, count)
        report.add("thousand: running", "containers", name, len(lives))
        report.add("thousand: errors", "", name, errors)
        took = time.perf_counter() - began
        report.add("thousand: starts", "containers/s", name, len(lives) / took)
        await asyncio.sleep(2)
        inside = {life.pid for life in lives}
        grown = target.pss(inside) - idle
        report.add("thousand: memory each", "KiB", name, grown * 1024 / len(lives))
        helpers = len(set(target.processes()) - inside)
        report.add("thousand: processes", "", name, helpers)
        before = target.cpu()
        await asyncio.sleep(seconds)
        used = (target.cpu() - before) / seconds / len(lives)
        report.add("thousand: idle, CPU each", "us/s", name, used * 1e6)
        began = time.perf_counter()
        listed = await target.stub(tasks_pb2.Tasks).list(tasks_pb2.ListTasksRequest())
        report.add("thousand: Tasks.List", "ms", name, (time.perf_counter() - began) * 1e3)
        assert len(listed.tasks) == len(lives)
        began = time.perf_counter()
        await ended(lives)
        took = time.perf_counter() - began
        report.add("thousand: ends", "containers/s", name, len(lives) / took)
        await bench.down()


async def crowd(daemon: Daemon, count: int) -> tuple[list[Life], int]:
    """So many running containers, or as many as there were before the first error."""
    lives: list[Life] = []
    errors: list[Error] = []
    waiting = iter(range(count))

    async def worker() -> None:
        for _ in waiting:
            if errors:
                return
            try:
                lives.append(await daemon.started())
            except Error as error:
                errors.append(error)

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    return lives, len(errors)


async def probes(bench: Bench) -> None:
    """Containers with a health check each: an exec a second in every one of them."""
    count, seconds = (10, 5) if bench.small else (100, 10)
    for runtime in runtimes():
        async with bench.subjects(runtime) as subjects:
            for number, name in interleaved(subjects, max(1, bench.rounds // 20)):
                if number < 0:
                    continue
                times, elapsed, used = await subjects[name].probes(count, seconds)
                what = f"probes, {runtime}, {count} containers"
                middle, worst = spread(times)
                bench.report.add(f"{what}: p50", "ms", name, middle)
                bench.report.add(f"{what}: p99", "ms", name, worst)
                bench.report.add(f"{what}: execs", "1/s", name, len(times) / elapsed)
                bench.report.add(f"{what}: CPU each", "ms", name, used / len(times) * 1e3)


async def burst(bench: Bench) -> None:
    """Containers that all are to start at the same moment."""
    count = 20 if bench.small else 200
    for runtime in runtimes():
        async with bench.subjects(runtime) as subjects:
            for number, name in interleaved(subjects, max(1, bench.rounds // 10)):
                if number < 0:
                    continue
                times, errors = await subjects[name].burst(count)
                middle, worst = spread(times)
                what = f"burst, {runtime}, {count} starts"
                bench.report.add(f"{what}: p50", "ms", name, middle)
                bench.report.add(f"{what}: p99", "ms", name, worst)
                bench.report.add(f"{what}: p99 / p50", "", name, worst / middle)
                bench.report.add(f"{what}: errors", "", name, errors)
