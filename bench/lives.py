"""A container's life and an exec by phase, and how many lives a second there may be.

With each OCI runtime there is; the column ``bare`` is the runtime alone, the floor of it all.
"""

from __future__ import annotations

from bench.container import PHASES
from bench.report import Report, interleaved
from bench.subjects import Subject
from bench.workloads import Bench, runtimes

EXEC_PHASES = ("start", "exit seen", "delete")


async def life(bench: Bench) -> None:
    """One container at a time, then one exec at a time, with the CPU time of daemon and helpers."""
    for runtime in runtimes():
        async with bench.subjects(runtime) as subjects:
            for number, name in interleaved(subjects, bench.rounds):
                subject, report = subjects[name], bench.report if number >= 0 else Report()
                before = subject.cpu()
                phases = await subject.life()
                used = subject.cpu() - before
                add(report, f"life, {runtime}", subject, used, phases, PHASES)
                before = subject.cpu()
                phases = await subject.exec()
                used = subject.cpu() - before
                add(report, f"exec, {runtime}", subject, used, phases, EXEC_PHASES)


def add(
    report: Report,
    what: str,
    subject: Subject,
    used: float,
    phases: dict[str, float],
    order: tuple[str, ...],
) -> None:
    for phase in order:
        if phase in phases:
            report.add(f"{what}: {phase}", "ms", subject.name, phases[phase])
    report.add(f"{what}: total", "ms", subject.name, sum(phases.values()))
    report.add(f"{what}: CPU", "ms", subject.name, used * 1e3)


async def rate(bench: Bench) -> None:
    """Whole lives per second at several concurrencies."""
    for runtime in runtimes():
        async with bench.subjects(runtime) as subjects:
            for concurrency in (1, 4, 16):
                count = 20 if concurrency == 1 else 8 * concurrency
                count //= 4 if bench.small else 1
                for number, name in interleaved(subjects, max(2, bench.rounds // 8)):
                    subject = subjects[name]
                    before = subject.cpu()
                    seconds = await subject.many(concurrency, count)
                    used = (subject.cpu() - before) * 1e3 / count
                    if number >= 0:
                        label = f"rate, {runtime}: c={concurrency}"
                        bench.report.add(label, "containers/s", name, count / seconds)
                        bench.report.add(f"{label}, CPU each", "ms", name, used)
