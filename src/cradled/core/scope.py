"""Pure. On whose behalf something is done."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scope:
    """A namespace and, optionally, the lease that objects made by the call shall join."""

    namespace: str
    lease: str = ""
