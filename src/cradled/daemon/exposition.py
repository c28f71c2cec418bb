"""Pure. Prometheus' text format, version 0.0.4.

The client library for it costs 10 MiB and 150 ms of the loop to import, for the sake of this page.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cradled.measures import Histogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Number = int | float


class Family:
    """One metric: samples that differ in their labels."""

    def __init__(self, kind: str, help: str) -> None:
        self._kind = kind
        self._help = help
        self._samples: list[str] = []

    def add(self, name: str, value: Number, labels: Mapping[str, str]) -> None:
        self._samples.append(f"{name}{_labels(labels)} {_number(value)}")

    def text(self, name: str) -> str:
        help = self._help.replace("\\", r"\\").replace("\n", r"\n")
        lines = [f"# HELP {name} {help}", f"# TYPE {name} {self._kind}", *self._samples]
        return "\n".join(lines) + "\n"


class Page:
    """All metrics of one answer; each ``help`` is that of the name's first sample."""

    def __init__(self) -> None:
        self._families: dict[str, Family] = {}

    def counter(self, name: str, help: str, value: Number, /, **labels: str) -> None:
        self._family(name, "counter", help).add(name, value, labels)

    def gauge(self, name: str, help: str, value: Number, /, **labels: str) -> None:
        self._family(name, "gauge", help).add(name, value, labels)

    def histogram(self, name: str, help: str, values: Histogram, /, **labels: str) -> None:
        family = self._family(name, "histogram", help)
        total = 0
        bounds: Iterable[str] = (*map(_number, values.bounds), "+Inf")
        for bound, count in zip(bounds, values.counts, strict=True):
            total += count
            family.add(f"{name}_bucket", total, {**labels, "le": bound})
        family.add(f"{name}_sum", values.total, labels)
        family.add(f"{name}_count", total, labels)

    def text(self) -> str:
        """The page, by name."""
        return "".join(self._families[name].text(name) for name in sorted(self._families))

    def _family(self, name: str, kind: str, help: str) -> Family:
        family = self._families.get(name)
        if family is None:
            family = self._families[name] = Family(kind, help)
        return family


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    pairs = (f'{key}="{_escaped(labels[key])}"' for key in sorted(labels))
    return "{" + ",".join(pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: Number) -> str:
    return str(value) if isinstance(value, int) else f"{value:.12g}"
