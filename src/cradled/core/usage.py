"""Pure. What a container uses, as its control groups count it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """``time`` is when it was measured and ``cpu`` the processor time since the start, both in
    nanoseconds; memory is in bytes, without what the kernel could give up at once, and so is what
    was read from and written to devices. A limit of 0 is none.
    """

    time: int
    cpu: int = 0
    memory: int = 0
    memory_limit: int = 0
    pids: int = 0
    pids_limit: int = 0
    read: int = 0
    written: int = 0
