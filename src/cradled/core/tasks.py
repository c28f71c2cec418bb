"""Pure. Tasks: the running side of a container."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from cradled.core.mount import Mount
from cradled.core.values import AnyValue, Descriptor


class Status(IntEnum):
    """Numbers are those of the wire."""

    UNKNOWN = 0
    CREATED = 1
    RUNNING = 2
    STOPPED = 3
    PAUSED = 4
    PAUSING = 5


@dataclass(frozen=True, slots=True)
class Stdio:
    """Paths or URIs of the streams; empty: none."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


@dataclass(frozen=True, slots=True)
class CreateTask:
    """What is needed to make a task of a container."""

    id: str
    rootfs: Sequence[Mount] = ()
    stdio: Stdio = Stdio()
    checkpoint: Descriptor | None = None
    options: AnyValue | None = None
    runtime: str = ""
    task_api_address: str = ""
    task_api_version: int = 0


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: 0..255, 128 + signal, 255 unknown; time in nanoseconds."""

    pid: int
    status: int
    exited_at: int


@dataclass(frozen=True, slots=True)
class Process:
    """The state of a task or of an exec in it; ``exited_at`` 0 while it has not exited."""

    container_id: str
    id: str
    pid: int
    status: Status
    stdio: Stdio = Stdio()
    exit_status: int = 0
    exited_at: int = 0
