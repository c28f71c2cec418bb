"""Async. What the runtime did, step by step, and how long it took."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cradled.core.values import AnyValue
from cradled.proxies.introspection import ProxyIntrospection

_PLUGIN = ("io.cradled.tracing.v1", "ring")
_QUERY = "io.cradled.tracing.v1.Query"


@dataclass(frozen=True, slots=True)
class Span:
    """A step; times in nanoseconds since the epoch, ``parent`` empty for an outermost one."""

    id: str
    parent: str
    name: str
    start: int
    end: int
    attributes: Mapping[str, Any]
    error: str

    @property
    def seconds(self) -> float:
        return (self.end - self.start) / 1e9


@dataclass(frozen=True, slots=True)
class Trace:
    """A call with its steps, in the order in which they began; ``dropped`` are too many to keep.

    Calls with one caller's ``traceparent`` are one trace.
    """

    id: str
    spans: Sequence[Span]
    dropped: int

    @property
    def start(self) -> int:
        return min(one.start for one in self.spans)

    @property
    def seconds(self) -> float:
        return (max(one.end for one in self.spans) - self.start) / 1e9


async def fetch(
    introspection: ProxyIntrospection, last: int, *, slowest: bool, single: bool
) -> list[Trace]:
    """Raises NotFound where the runtime is another that keeps no traces."""
    query = {"last": last, "slowest": slowest, "single": single}
    options = AnyValue(_QUERY, json.dumps(query).encode())
    extra = await introspection.plugin_info(*_PLUGIN, options)
    return [
        Trace(trace["id"], [Span(**one) for one in trace["spans"]], trace["dropped"])
        for trace in json.loads(extra.value)["traces"]
    ]
