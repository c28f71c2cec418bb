"""Plugins of other processes: what those who call them get when they are away or stand still."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cradled.api import snapshots_pb2 as pb
from cradled.api.wellknown_pb2 import Empty
from cradled.core.scope import Scope
from cradled.core.snapshots import Kind
from cradled.errors import DeadlineExceeded, NotFound, Unavailable
from cradled.proxies import plugin
from cradled.proxies.plugin import Breaker, PluginChannel
from cradled.proxies.snapshots import ProxySnapshotter
from cradled.rpc.call import Call
from cradled.rpc.grpc_server import GrpcServer
from cradled.rpc.service import Router


class Plugin:
    """A snapshotter of a few answers, on a socket; ``hangs`` waits for ever in every Stat."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._server: GrpcServer | None = None
        self.namespaces: list[str] = []
        self.hangs = False
        self.asked = asyncio.Event()

    async def start(self) -> None:
        router = Router()
        router.add(pb.Snapshots, self)
        self._path.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(self._path))
        sock.listen()
        self._server = GrpcServer(router)
        await self._server.serve(sock)

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
            self._server = None
        self._path.unlink(missing_ok=True)

    async def stat(self, call: Call, request: pb.StatSnapshotRequest) -> pb.StatSnapshotResponse:
        self.namespaces.append(call.metadata.get("containerd-namespace", ""))
        self.asked.set()
        if self.hangs:
            await asyncio.Event().wait()
        if request.key == "missing":
            raise NotFound("snapshot missing")
        return pb.StatSnapshotResponse(info=pb.Info(name=request.key, kind=pb.COMMITTED))

    async def remove(self, call: Call, request: pb.RemoveSnapshotRequest) -> Empty:
        raise Unavailable("busy")


@pytest.fixture
async def far(tmp_path: Path) -> AsyncIterator[Plugin]:
    far = Plugin(tmp_path / "far.sock")
    await far.start()
    yield far
    await far.stop()


@pytest.fixture
async def channel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PluginChannel]:
    times = {"_PROBE": 0.05, "_SIGN": 0.1, "_SIGN_AGAIN": 0.1, "_DIAL": 1.0, "_FIRST_PAUSE": 0.1}
    for name, value in times.items():
        monkeypatch.setattr(plugin, name, value)
    async with PluginChannel("far", str(tmp_path / "far.sock"), limit=0.3) as channel:
        yield channel


@pytest.fixture
def snapshotter(channel: PluginChannel) -> ProxySnapshotter:
    return ProxySnapshotter(channel, Scope(""), "far")


def test_a_breaker_pauses_ever_longer() -> None:
    breaker = Breaker()
    assert not breaker.failing
    assert breaker.left(7) == 0
    pauses = []
    for _ in range(8):
        breaker.failed("why", 100.0)
        pauses.append(breaker.left(100.0))
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert breaker.failing
    assert breaker.left(131) == 0
    breaker.answered()
    assert not breaker.failing
    assert breaker.left(0) == 0


async def test_it_is_told_whom_a_call_is_for(far: Plugin, snapshotter: ProxySnapshotter) -> None:
    assert (await snapshotter.stat("a")).kind is Kind.COMMITTED
    await snapshotter.bind(Scope("ns", "its lease")).stat("a")
    assert far.namespaces == ["", "ns"]


async def test_its_own_errors_are_passed_on(far: Plugin, snapshotter: ProxySnapshotter) -> None:
    with pytest.raises(NotFound, match="snapshot missing"):
        await snapshotter.stat("missing")
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"^busy"):
            await snapshotter.remove("a")
    await snapshotter.stat("a")


async def test_one_that_is_away_and_comes(
    tmp_path: Path, channel: PluginChannel, snapshotter: ProxySnapshotter
) -> None:
    with pytest.raises(Unavailable, match=r'^plugin "far": dial unix .*: no such file'):
        await snapshotter.stat("a")
    with pytest.raises(Unavailable, match=r'^plugin "far": dial .*, tried again in 0\.\d s'):
        await snapshotter.stat("a")
    far = Plugin(tmp_path / "far.sock")
    await far.start()
    await _until(snapshotter)
    await far.stop()


async def test_one_that_goes_during_a_call(far: Plugin, snapshotter: ProxySnapshotter) -> None:
    far.hangs = True
    call = asyncio.create_task(snapshotter.stat("a"))
    await far.asked.wait()
    await far.stop()
    with pytest.raises(Unavailable):
        await call
    far.hangs = False
    await far.start()
    await _until(snapshotter)


async def test_a_call_that_takes_too_long(far: Plugin, snapshotter: ProxySnapshotter) -> None:
    far.hangs = True
    with pytest.raises(DeadlineExceeded, match=r'plugin "far" has not answered Stat in 0\.3 s'):
        await snapshotter.stat("a")
    far.hangs = False
    await snapshotter.stat("a")  # it lives: nobody has to wait


async def test_one_that_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channel: PluginChannel
) -> None:
    channel._limit = None  # a call of any length
    snapshotter = ProxySnapshotter(channel, Scope(""), "far")
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "far.sock"))
        silent.listen()
        calls: list[Any] = [snapshotter.stat(str(i)) for i in range(3)]
        for error in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(error, Unavailable)
            assert error.what == 'plugin "far": no sign of life in 0.1 s'
        with pytest.raises(Unavailable, match=r"no sign of life in 0\.1 s, tried again in"):
            await snapshotter.stat("a")
        # Then it is asked for a sign of life before anybody waits for anything else.
        assert await _error(snapshotter) == 'plugin "far": no sign of life in 0.1 s'
    far = Plugin(tmp_path / "far.sock")
    await far.start()
    await _until(snapshotter)
    await far.stop()


async def _error(snapshotter: ProxySnapshotter) -> str:
    """What is told once the plugin is tried again."""
    for _ in range(100):
        with pytest.raises(Unavailable) as caught:
            await snapshotter.stat("a")
        if "tried again" not in caught.value.what:
            return caught.value.what
        await asyncio.sleep(0.05)
    raise AssertionError("it is never tried again")


async def _until(snapshotter: ProxySnapshotter) -> None:
    """Until it answers."""
    for _ in range(100):
        try:
            await snapshotter.stat("a")
            return
        except Unavailable:
            await asyncio.sleep(0.05)
    raise AssertionError("it does not answer any more")
