"""What a shim costs: the memory of its own, which it does not share with the zygote."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness.shims import Shim

from cradled.zygote.client import Zygote

SERVING, RUNNING = 1150, 1950
"""Budgets in KiB, a fifth above what CPython 3.11 needs."""


class ForkedShim(Shim):
    """A shim that a zygote has forked, as the daemon has it done."""

    def __init__(self, directory: Path, zygote: Zygote, loop: asyncio.AbstractEventLoop) -> None:
        self._zygote, self._loop = zygote, loop
        super().__init__(directory)

    def _fork(self, bundle: Path) -> int:
        params = {"namespace": self.mark, "bundle": str(bundle), "ttrpc_address": self.ear.path}
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.path)
            listener.listen()
            forking = self._zygote.fork("cradled.shim.serve:forked", params, [listener.fileno()])
            pid, pidfd = asyncio.run_coroutine_threadsafe(forking, self._loop).result(20)
        socket.close(pidfd)
        return pid


def own(pid: int) -> int:
    """KiB that a process shares with nobody."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:"))


@pytest.fixture
async def shim(tmp_path: Path) -> AsyncIterator[Shim]:
    zygote = Zygote()
    loop = asyncio.get_running_loop()
    shim = await asyncio.to_thread(ForkedShim, tmp_path, zygote, loop)
    yield shim
    await asyncio.to_thread(shim.destroy)
    await zygote.aclose()


async def test_a_shim_is_small(shim: Shim) -> None:
    assert own(shim.pid) < SERVING
    await asyncio.to_thread(shim.create, "c", "/bin/sleep", "1000")
    await asyncio.to_thread(shim.call, "Start", id="c")
    assert own(shim.pid) < RUNNING
