"""Pure. Restart policies: the labels by which a container asks for one, and what they ask for.

The labels are those of the original, whose clients set them; ``PENDING`` is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import NamedTuple

from cradled.core.tasks import Process, Status
from cradled.errors import InvalidArgument

STATUS = "containerd.io/restart.status"
"""What the container's task shall be: ``running`` or ``stopped``. Without it nobody looks after
the container."""

POLICY = "containerd.io/restart.policy"
COUNT = "containerd.io/restart.count"
"""How often it was restarted."""

LOG_URI = "containerd.io/restart.loguri"
"""Where the output of a restarted task goes; without it nowhere."""

EXPLICITLY_STOPPED = "containerd.io/restart.explicitly-stopped"

PENDING = "io.cradled.restart/pending"
"""Set while a container is restarted: whoever finds it finishes what was begun."""

RUNNING, STOPPED = "running", "stopped"

NAMES = ("no", "always", "on-failure", "unless-stopped")

_TRUE = ("1", "t", "T", "true", "True", "TRUE")


class Policy(NamedTuple):
    """``retries`` limits those of ``on-failure``; 0: no limit."""

    name: str
    retries: int = 0

    @classmethod
    def parse(cls, text: str) -> Policy:
        """``always``, ``on-failure:3`` and so on; empty is ``always``. Raises InvalidArgument."""
        name, colon, count = text.partition(":")
        if name not in ("", *NAMES):
            raise InvalidArgument(f'restart policy "{text}"')
        if not colon:
            return cls(name or "always")
        if name != "on-failure":
            raise InvalidArgument(f'restart policy "{text}": only on-failure has a limit')
        if not (count.isascii() and count.isdigit()):
            raise InvalidArgument(f'restart policy "{text}": no number of retries')
        return cls(name, int(count))

    def __str__(self) -> str:
        return f"{self.name}:{self.retries}" if self.retries else self.name


class Verdict(Enum):
    """What has to be done to a container."""

    NOTHING = auto()
    START = auto()
    STOP = auto()


def restarts(labels: Mapping[str, str]) -> int:
    """How often a container was restarted."""
    text = labels.get(COUNT, "")
    return int(text) if text.isascii() and text.isdigit() else 0


def judge(labels: Mapping[str, str], task: Process | None) -> Verdict:
    """What a container's labels want to be done, its task being in this state or not there.

    A task that a client has made and not started yet is the client's. Raises InvalidArgument for a
    policy that nobody knows.
    """
    desired = labels.get(STATUS)
    alive = task is not None and task.status != Status.STOPPED
    if desired == STOPPED:
        return Verdict.STOP if alive else Verdict.NOTHING
    if desired != RUNNING:
        return Verdict.NOTHING
    pending = PENDING in labels
    if task is not None and alive and not (pending and task.status == Status.CREATED):
        return Verdict.NOTHING
    failed = pending if task is None or alive else task.exit_status != 0
    return Verdict.START if _wanted(labels, failed=failed) else Verdict.NOTHING


def _wanted(labels: Mapping[str, str], *, failed: bool) -> bool:
    policy = Policy.parse(labels.get(POLICY, ""))
    if policy.name == "on-failure":
        return failed and not 0 < policy.retries <= restarts(labels)
    if policy.name == "unless-stopped":
        return labels.get(EXPLICITLY_STOPPED) not in _TRUE
    return policy.name == "always"
