from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cradled.daemon import notify


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"{tmp_path}/n")
        sock.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/n")
        yield sock


def test_states_are_lines(supervisor: socket.socket) -> None:
    notify.notify("READY=1", "STATUS=so")
    assert supervisor.recv(100) == b"READY=1\nSTATUS=so"
    before = time.monotonic_ns() // 1000
    notify.reloading()
    first, _, usec = supervisor.recv(100).decode().partition("\nMONOTONIC_USEC=")
    assert first == "RELOADING=1"
    assert before <= int(usec) <= time.monotonic_ns() // 1000


def test_abstract_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"cradled-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{name}")
        sock.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        notify.notify("READY=1")
        assert sock.recv(100) == b"READY=1"


def test_nobody_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/none")
    notify.notify("READY=1")


async def test_heartbeat(supervisor: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    heart = notify.Heartbeat()
    heart.start()
    for _ in range(3):
        assert await asyncio.to_thread(supervisor.recv, 100) == b"WATCHDOG=1"
    heart.stop()


@pytest.mark.parametrize(
    ("usec", "pid"), [("", ""), ("soon", ""), ("20000", "1"), ("-5", str(os.getpid()))]
)
async def test_no_heartbeat_where_nobody_asks(
    supervisor: socket.socket, monkeypatch: pytest.MonkeyPatch, usec: str, pid: str
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", pid)
    heart = notify.Heartbeat()
    heart.start()
    supervisor.setblocking(False)
    with pytest.raises(BlockingIOError):
        supervisor.recv(100)
    heart.stop()


def test_a_supervisor_that_does_not_read(
    supervisor: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "_PATIENCE", 0.001)
    queue = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
    for number in range(queue + 5):
        notify.notify(f"STATUS={number}")
    assert supervisor.recv(100) == b"STATUS=0"
