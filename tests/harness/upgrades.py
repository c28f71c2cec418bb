"""Daemons that upgrade in place, and the process that is left then."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

CRADLE = str(Path(sys.executable).parent / "cradle")


class Stranger:
    """A process that is not our child, with what tests use of ``subprocess.Popen``.

    ``wait`` gives 0 whatever its status is, which only its parent is told.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._pidfd, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        if self._ended(timeout) is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return 0

    def _ended(self, timeout: float | None) -> int | None:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return 0 if poll.poll(None if timeout is None else timeout * 1000) else None

    def __del__(self) -> None:
        os.close(self._pidfd)


class Upgrade(NamedTuple):
    """What ``cradle daemon upgrade`` says; ``pause_ms`` in milliseconds."""

    old: str
    new: str
    pid: int
    pause_ms: float


def cradle(socket: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [CRADLE, "--address", str(socket), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def upgrade(socket: Path) -> Upgrade:
    """Have the daemon behind a socket upgrade, which must succeed."""
    done = cradle(socket, "--json", "daemon", "upgrade")
    assert done.returncode == 0, done.stderr
    return Upgrade(**json.loads(done.stdout))
