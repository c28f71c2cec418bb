"""The doors through which each suite asks its service.

| door | how the stub's calls reach the service |
|---|---|
| ``inprocess`` | the router itself |
| ``grpc`` | our client, a unix socket, our server |
| ``ttrpc`` | as ``grpc``; of the daemon's services only the events service of shims is served so, \
the others are there to be asked when a suite wants to |
| ``proxy`` | in process to a second set of services, which ask the first over gRPC: records, \
content and snapshots through ``cradled.proxies``, every other service through a relay that hands \
calls on |

A suite is asked through all but ``ttrpc``, unless it says ``@pytest.mark.doors("grpc", ...)``
(``pytestmark`` for a whole file). ``@pytest.mark.stores("native", "overlayfs", isolated=True)``
chooses the snapshotters (only ``native`` by default) and the sharing of content. The fixture
``extra`` may be overridden in a test file: services that it gives, made over ``world``, are served
too.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from harness.contract import Door, Served, World, record_services, router
from harness.relays import ProxyDatabase, Relay

from cradled.aio import threads
from cradled.rpc import grpc_client, ttrpc_client
from cradled.rpc.grpc_server import GrpcServer
from cradled.rpc.inprocess import InProcess
from cradled.rpc.stub import Transport
from cradled.rpc.ttrpc_server import TtrpcServer

DOORS = ("inprocess", "grpc", "proxy")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "doors(*names): the ways a contract is asked through")
    config.addinivalue_line("markers", "stores(*snapshotters, isolated): what a world is made of")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "door" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("doors")
        metafunc.parametrize("door", mark.args if mark else DOORS, indirect=True)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[str]:
    """In memory where the system has such a place: every row of every table makes a world."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if Path(memory).is_dir() else tmp_path) as made:
        yield made


@pytest.fixture
async def world(request: pytest.FixtureRequest, directory: str) -> AsyncIterator[World]:
    mark = request.node.get_closest_marker("stores")
    names = mark.args if mark and mark.args else ("native",)
    isolated = bool(mark and mark.kwargs.get("isolated"))
    async with AsyncExitStack() as stack:
        yield await World.open(directory, stack, names, isolated)
    threads.close()


@pytest.fixture
def extra(world: World) -> Sequence[Served]:
    return ()


@pytest.fixture
async def door(
    request: pytest.FixtureRequest, world: World, extra: Sequence[Served], directory: str
) -> AsyncIterator[Door]:
    name: str = request.param
    served = [*world.services(), *extra]
    if name == "inprocess":
        yield Door(name, world, InProcess(router(served)))
        return
    async with AsyncExitStack() as stack:
        if name == "ttrpc":
            served += world.ttrpc_services()
        transport = await _connected(name, served, f"{directory}/{name}.sock", stack)
        if name == "proxy":
            transport = InProcess(router(_proxied(transport, served)))
        yield Door(name, world, transport)


async def _connected(
    name: str, served: Sequence[Served], path: str, stack: AsyncExitStack
) -> Transport:
    """A channel to a server of these services on a socket of its own."""
    sock = stack.enter_context(socket.socket(socket.AF_UNIX))
    sock.bind(path)
    sock.listen()
    made = router(served)
    server = TtrpcServer(made) if name == "ttrpc" else GrpcServer(made)
    await server.serve(sock)
    stack.push_async_callback(server.stop, 0)
    channel = await (ttrpc_client if name == "ttrpc" else grpc_client).connect(path)
    stack.push_async_callback(channel.aclose)
    return channel


def _proxied(behind: Transport, served: Sequence[Served]) -> list[Served]:
    """The same services before another server: over proxies where there are some."""
    db = ProxyDatabase(behind)
    proxied = record_services(db, db)
    names = {service.name for service, _ in proxied}
    relayed = [service for service, _ in served if service.name not in names]
    return [*proxied, *((service, Relay(behind, service)) for service in relayed)]
