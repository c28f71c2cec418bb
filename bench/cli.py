"""The command lines side by side, from exec to exit."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from bench.container import small_layout
from bench.report import interleaved
from bench.targets import NAMESPACE, Target
from bench.workloads import Bench

CRADLE = str(Path(sys.executable).parent / "cradle")
_names = iter(range(1 << 30))


async def cli(bench: Bench) -> None:
    """``version``, a list, and a whole container by ``run --rm``, ours beside ctr's."""
    await bench.up()
    layout = small_layout(bench.work / "small.tar")
    for number, name in interleaved(bench.targets, bench.rounds):
        target = bench.targets[name]
        for figure, command in _commands(target, layout.name).items():
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            if number >= 0:
                bench.report.add(figure, "ms", name, (time.perf_counter() - began) * 1e3)


def _commands(target: Target, image: str) -> dict[str, list[str]]:
    container = f"cli-{next(_names)}"
    if target.name == "containerd":
        ctr = ["ctr", "-a", str(target.socket), "-n", NAMESPACE]
        return {
            "cli: version": [*ctr, "version"],
            "cli: list containers": [*ctr, "containers", "ls"],
            "cli: run --rm": [*ctr, "run", "--rm", image, container, "true"],
        }
    cradle = [CRADLE, "--address", str(target.socket), "--namespace", NAMESPACE]
    return {
        "cli: version": [*cradle, "version"],
        "cli: list containers": [*cradle, "ps", "-a"],
        "cli: run --rm": [*cradle, "run", "--rm", "--name", container, image, "true"],
    }
