"""The daemon as a program that somebody starts by hand."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness import leaks
from harness.daemon import wait_until
from harness.upgrades import Stranger

PROGRAM = str(Path(sys.executable).parent / "cradled")


class Program:
    """One daemon started by hand in a directory, with its notifications."""

    def __init__(
        self,
        directory: Path,
        *flags: str,
        env: dict[str, str] | None = None,
        program: str = PROGRAM,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.socket = directory / "d.sock"
        self.log = directory / "log"
        self.notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify = str(directory / "notify")
        with open(self.log, "ab") as log:
            self.notified.bind(notify)
            self.notified.settimeout(20)
            self.process: subprocess.Popen[bytes] | Stranger = subprocess.Popen(
                [program, *places(directory), *flags],
                env={**os.environ, "NOTIFY_SOCKET": notify, **(env or {})},
                pass_fds=pass_fds,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._notify = notify
        self.ready: list[str] = []

    def told(self) -> list[str]:
        """The next notification, line by line."""
        return self.notified.recv(1000).decode().split("\n")

    def stop(self) -> int:
        """End it as a supervisor does; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.notified.close()
        os.unlink(self._notify)


def places(directory: Path) -> list[str]:
    """Flags that have a daemon keep all it has in a directory."""
    return [
        f"--root={directory}/root",
        f"--state={directory}/state",
        f"--address={directory}/d.sock",
    ]


@contextmanager
def started(
    directory: Path,
    *flags: str,
    env: dict[str, str] | None = None,
    program: str = PROGRAM,
    pass_fds: Sequence[int] = (),
) -> Iterator[Program]:
    """A daemon that is ready; nothing of it is left behind."""
    daemon = Program(directory, *flags, env=env, program=program, pass_fds=pass_fds)
    try:
        daemon.ready = daemon.told()
        assert daemon.ready[0] == "READY=1", daemon.log.read_text()
        yield daemon
    finally:
        daemon.close()
        wait_until(
            lambda: not leaks.processes_with(str(directory)), "nothing of the daemon is left"
        )


def call(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    return subprocess.run(
        [PROGRAM, *words], capture_output=True, text=True, timeout=30, check=False, cwd=directory
    )
