"""The shim's entry in a forked process: what it does before it serves."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from cradled.linux import libc
from cradled.shim import log, serve


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []
    monkeypatch.setattr(serve, "run", lambda *args, **more: calls.append((args, more)))
    return calls


def _forked(bundle: Path, monkeypatch: pytest.MonkeyPatch, **more: object) -> int:
    monkeypatch.chdir(bundle)  # which is undone
    params = {"namespace": "ns", "bundle": str(bundle), "ttrpc_address": "/d.ttrpc", **more}
    with socket.socket(socket.AF_UNIX) as listener:
        fd = os.dup(listener.fileno())
        serve.forked(params, [fd])
    return fd


def test_what_it_is_told(
    served: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libc, "own_core", lambda: pytest.fail("nobody has asked for it"))
    _forked(tmp_path, monkeypatch, runtime_limit=7.0)
    ((args, more),) = served
    args[0].close()
    assert args[1:] == ("ns", str(tmp_path), "/d.ttrpc")
    assert more == {"limit": 7.0}


def test_without_the_cores_it_was_promised_it_does_not_serve(
    served: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def own_core() -> None:
        raise OSError(22, "enable sched core support: nothing")

    lines: list[str] = []
    monkeypatch.setattr(libc, "own_core", own_core)
    monkeypatch.setattr(log, "to_daemon", lines.append)
    monkeypatch.setattr(log, "line", lines.append)
    os.close(_forked(tmp_path, monkeypatch, sched_core=True))
    assert served == []
    assert lines == [str(tmp_path), "[Errno 22] enable sched core support: nothing"]
    monkeypatch.setattr(libc, "own_core", lambda: None)
    _forked(tmp_path, monkeypatch, sched_core=True)
    assert len(served) == 1
    served[0][0][0].close()
