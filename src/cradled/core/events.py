"""Pure. Events: what happened, told to whoever listens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cradled.core.values import AnyValue


@dataclass(frozen=True, slots=True)
class Envelope:
    """``timestamp`` in nanoseconds since the epoch."""

    timestamp: int
    namespace: str
    topic: str
    event: AnyValue


class Publisher(Protocol):
    def publish(self, envelopes: Sequence[Envelope], /) -> None:
        """Hand events to all subscribers, in order, without blocking."""
        ...
