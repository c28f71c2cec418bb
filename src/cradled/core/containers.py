"""Pure. The container record: what shall run, not a running thing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cradled.core.values import AnyValue, Labels


@dataclass(frozen=True, slots=True)
class Runtime:
    """Which runtime runs it; ``options`` are the runtime's own."""

    name: str
    options: AnyValue | None = None


@dataclass(frozen=True, slots=True)
class Container:
    """Times are nanoseconds since the epoch. ``spec`` is kept byte for byte."""

    id: str
    labels: Labels = field(default_factory=dict)
    image: str = ""
    runtime: Runtime = Runtime("")
    spec: AnyValue | None = None
    snapshotter: str = ""
    snapshot_key: str = ""
    created_at: int = 0
    updated_at: int = 0
    extensions: Mapping[str, AnyValue] = field(default_factory=dict)
    sandbox: str = ""
