"""How servers end: who is still answered, who is told what is left, who is cut off."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from harness.echo import ECHO, EchoService, message

from cradled import errors
from cradled.daemon import upgrade
from cradled.daemon.app import App
from cradled.daemon.servers import Servers
from cradled.events.exchange import Parting
from cradled.rpc.grpc_client import connect
from cradled.rpc.grpc_server import GrpcServer
from cradled.rpc.service import Router
from cradled.rpc.stub import Stub


class Making:
    """Stands for the app: a container is being made, and ``release`` finishes it."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.release = asyncio.Event()
        self.busy = False

    def drain(self) -> None:
        self.steps.append("drain")

    async def deafen(self, grace: float) -> None:
        self.steps.append("deafen")

    async def settle(self, seconds: float) -> bool:
        self.steps.append("settle")
        self.release.set()
        return self.busy

    async def part(self, seconds: float) -> Parting:
        self.steps.append("part")
        return Parting(7, [(1, ("topic==x",))])


class Service(EchoService):
    def __init__(self, app: Making) -> None:
        super().__init__()
        self._app = app

    async def say(self, call: Any, request: Any) -> Any:
        if request.version != "make":
            return await super().say(call, request)
        self._app.busy = True
        self.started.set()
        await self._app.release.wait()
        return message("made")


@pytest.fixture
async def app() -> Making:
    return Making()


@pytest.fixture
async def service(app: Making) -> Service:
    return Service(app)


@pytest.fixture
async def servers(app: Making, service: Service, tmp_path: Path) -> AsyncIterator[Servers]:
    router = Router()
    router.add(ECHO, service)
    server = GrpcServer(router)
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "s"))
    sock.listen()
    await server.serve(sock)
    servers = Servers(cast("App", app))
    servers.grpc.append(server)
    yield servers
    await servers.stop()


@pytest.fixture
async def stub(servers: Servers, tmp_path: Path) -> AsyncIterator[Stub]:
    async with await connect(str(tmp_path / "s")) as channel:
        yield Stub(channel, ECHO)


async def test_who_has_something_made_is_answered(
    servers: Servers, stub: Stub, service: Service, app: Making, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upgrade, "GRACE", 0.0)
    making = asyncio.ensure_future(stub.say(message("make")))
    await service.started.wait()
    leave = await servers.make_way()
    assert (await making).version == "made"
    assert leave[1:] == (7, [(1, ("topic==x",))])
    assert app.steps == ["drain", "deafen", "settle", "part"]


async def test_who_waits_for_something_else_is_cut_off(
    servers: Servers, stub: Stub, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upgrade, "GRACE", 0.01)
    hanging = asyncio.ensure_future(stub.say(message("hang")))
    await service.started.wait()
    await servers.make_way()
    with pytest.raises(errors.Unavailable, match="stopping"):
        await hanging
