"""Pure. The sandbox record: what groups of containers share, such as a pod."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cradled.core.containers import Runtime
from cradled.core.values import AnyValue, Labels


@dataclass(frozen=True, slots=True)
class Sandbox:
    """Times are nanoseconds since the epoch; ``sandboxer`` names the controller that runs it."""

    id: str
    runtime: Runtime
    spec: AnyValue | None = None
    labels: Labels = field(default_factory=dict)
    created_at: int = 0
    updated_at: int = 0
    extensions: Mapping[str, AnyValue] = field(default_factory=dict)
    sandboxer: str = ""
