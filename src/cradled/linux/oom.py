"""Blocking. The kernel's out-of-memory killer: a process's score, news from a cgroup.

Used by the shim: imports only ``os`` and ``linux.cgroup``.
"""

from __future__ import annotations

import os

from cradled.linux import cgroup

MAX_SCORE = 1000


def score(pid: int | str = "self") -> int:
    """The ``oom_score_adj`` of a process, -1000 to 1000."""
    return int(cgroup.read(f"/proc/{pid}/oom_score_adj"))


def set_score(value: int, pid: int | str = "self") -> None:
    """Set ``oom_score_adj``. Raises OSError: lowering may not be allowed."""
    cgroup.write(f"/proc/{pid}/oom_score_adj", str(value))


def open_legacy_events(directory: str) -> int:
    """An eventfd that counts when a legacy memory cgroup runs out of memory, or is removed.

    Raises OSError where the host does not offer it.
    """
    control = os.open(f"{directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
    try:
        events = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            cgroup.write(f"{directory}/cgroup.event_control", f"{events} {control}")
        except BaseException:
            os.close(events)
            raise
    finally:
        os.close(control)
    return events


def open_events(directory: str) -> int:
    """A descriptor on ``memory.events``: POLLPRI says that it has changed since it was read."""
    return os.open(f"{directory}/memory.events", os.O_RDONLY | os.O_CLOEXEC)


def kills(events: int) -> int:
    """How many processes the killer has ended. Raises OSError once the cgroup is gone."""
    for line in os.pread(events, 4096, 0).decode().split("\n"):
        key, _, value = line.partition(" ")
        if key == "oom_kill":
            return int(value)
    return 0
