"""Async. Tell systemd how far the daemon is, and that it lives (sd_notify's datagram protocol)."""

from __future__ import annotations

import asyncio
import os
import socket
import time

_PATIENCE = 0.5  # seconds for a supervisor to make room for what it is told


def notify(*states: str) -> None:
    """Send ``READY=1`` or the like; silent where nobody asked to be told."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address[0] == "@":
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(_PATIENCE)
        try:
            sock.sendto("\n".join(states).encode(), address)
        except OSError:  # a supervisor that is gone, or does not read, must not stop the daemon
            return


def reloading() -> None:
    """Say that the configuration is being read again; ``READY=1`` ends it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


class Heartbeat:
    """Tells the supervisor's watchdog twice in its time that the loop turns, if it asked to be."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._seconds = _watchdog_seconds() / 2
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        if self._seconds:
            notify("WATCHDOG=1")
            self._timer = self._loop.call_later(self._seconds, self.start)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def _watchdog_seconds() -> float:
    """How long the supervisor waits for a sign of life; 0 when it does not."""
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not usec.isdecimal() or (pid and pid != str(os.getpid())):
        return 0.0
    return int(usec) / 1e6
