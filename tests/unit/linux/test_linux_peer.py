"""Who is at the other end of a unix socket."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cradled.linux import peer

PROGRAM = """
import os, socket, sys
if sys.argv[2]:
    os.setgroups([int(group) for group in sys.argv[2].split(",")])
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
sys.stdin.read()
"""


@contextmanager
def connected(
    tmp_path: Path, python: str = sys.executable, groups: str = ""
) -> Iterator[tuple[socket.socket, subprocess.Popen[bytes]]]:
    """Our end of a connection, and the process at the other."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        command = [python, "-I", "-S", "-c", PROGRAM, str(path), groups]
        process = subprocess.Popen(command, stdin=subprocess.PIPE)
        sock, _ = listener.accept()
    with process, sock:
        yield sock, process


def real(path: str) -> str:
    return os.path.realpath(path)


def test_the_program_is_found(tmp_path: Path) -> None:
    with connected(tmp_path) as (sock, _):
        assert peer.executable(sock) == real(sys.executable)


def test_the_program_is_found_on_an_older_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "_SO_PEERPIDFD", 9999)
    with connected(tmp_path) as (sock, _):
        assert peer.executable(sock) == real(sys.executable)


def test_a_program_that_was_replaced_is_not_certain(tmp_path: Path) -> None:
    copy, moved = tmp_path / "python", tmp_path / "moved"
    shutil.copy(real(sys.executable), copy)
    with connected(tmp_path, str(copy)) as (sock, _):
        assert peer.executable(sock) == str(copy)
        copy.rename(moved)
        shutil.copy("/bin/true", copy)
        assert peer.executable(sock) == str(moved)
        moved.unlink()
        assert peer.executable(sock) == ""
        shutil.copy("/bin/true", tmp_path / "moved (deleted)")
        assert peer.executable(sock) == ""


@pytest.mark.parametrize("option", [peer._SO_PEERPIDFD, 9999])
def test_a_peer_that_is_gone_has_no_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: int
) -> None:
    monkeypatch.setattr(peer, "_SO_PEERPIDFD", option)
    with connected(tmp_path) as (sock, process):
        process.kill()
        process.wait()
        assert peer.executable(sock) == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("count", [1, 3, 64, 65, 1000])
def test_groups(tmp_path: Path, count: int) -> None:
    wanted = range(5000, 5000 + count)
    with connected(tmp_path, groups=",".join(map(str, wanted))) as (sock, _):
        assert peer.groups(sock) == frozenset(wanted)
