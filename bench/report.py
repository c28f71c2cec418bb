"""Samples by figure and daemon, and the table made of them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path


class Report:
    """Collects samples; ``ours`` is compared with ``theirs`` where both have the figure."""

    def __init__(self, ours: str = "cradled", theirs: str = "containerd") -> None:
        self.ours, self.theirs = ours, theirs
        self.samples: dict[str, dict[str, list[float]]] = {}
        self.units: dict[str, str] = {}

    def add(self, figure: str, unit: str, daemon: str, *values: float) -> None:
        self.samples.setdefault(figure, {}).setdefault(daemon, []).extend(values)
        self.units[figure] = unit

    def median(self, figure: str, daemon: str) -> float | None:
        values = self.samples.get(figure, {}).get(daemon)
        return statistics.median(values) if values else None

    def ratio(self, figure: str, daemon: str) -> float | None:
        """Median over rounds of a daemon's sample against that of ``theirs``."""
        mine, other = (self.samples.get(figure, {}).get(n) for n in (daemon, self.theirs))
        if not mine or not other or daemon == self.theirs:
            return None
        pairs = [(a, b) for a, b in zip(mine, other, strict=False) if b]
        return statistics.median(a / b for a, b in pairs) if pairs else None

    def daemons(self) -> list[str]:
        names = {name for by_daemon in self.samples.values() for name in by_daemon}
        return sorted(names, key=lambda n: (n != self.theirs, n != self.ours, n))

    def table(self) -> str:
        """Markdown: a row a figure, a column a daemon; spread is the interquartile range."""
        daemons = self.daemons()
        lines = [
            "| figure | unit | " + " | ".join(daemons) + " |",
            "|---" * (len(daemons) + 2) + "|",
        ]
        for figure in self.samples:
            cells = [self._cell(figure, daemon) for daemon in daemons]
            lines.append(f"| {figure} | {self.units[figure]} | " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def _cell(self, figure: str, daemon: str) -> str:
        values = self.samples[figure].get(daemon)
        if not values:
            return ""
        text = number(statistics.median(values))
        if len(values) > 3:
            low, _, high = statistics.quantiles(values, n=4)
            text += f" ({(high - low) / (statistics.median(values) or 1):.0%})"
        ratio = self.ratio(figure, daemon)
        return text + (f" **x{ratio:.2f}**" if ratio is not None else "")

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"units": self.units, "samples": self.samples}, indent=1))


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def percentile(values: Iterable[float], percent: int) -> float:
    """The smallest value that so many percent do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def interleaved(items: Iterable[str], rounds: int) -> Iterable[tuple[int, str]]:
    """(round, item): A B, B A, ...; rounds below 0 are for warming up."""
    names = list(items)
    for number_ in range(-1, rounds):
        for name in names if number_ % 2 == 0 else reversed(names):
            yield number_, name
