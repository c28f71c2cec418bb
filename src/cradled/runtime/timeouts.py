"""Pure. How long shims may take (``[timeouts]`` of the configuration)."""

from __future__ import annotations

from typing import NamedTuple


class Timeouts(NamedTuple):
    """Seconds; None is no limit.

    ``start``: for a shim's program to say where it serves. ``runtime``: for a command of the OCI
    runtime under our own shim. ``load``: to answer a daemon that comes back. ``cleanup``: to clean
    up after a shim that died. ``shutdown``: to take a container apart and go. ``state`` and
    ``stats``: to answer.
    """

    start: float | None = 60.0
    runtime: float | None = 120.0
    load: float | None = 5.0
    cleanup: float | None = 5.0
    shutdown: float | None = 3.0
    state: float | None = 2.0
    stats: float | None = 2.0


DEFAULT = Timeouts()
