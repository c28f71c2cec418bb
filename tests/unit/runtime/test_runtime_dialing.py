"""Every address of a shim, and what becomes of those who do not let us in."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness.fake_shim import FakeShim

from cradled import errors
from cradled.rpc.ttrpc_client import ConnectionLost
from cradled.runtime import dialing
from cradled.runtime.bootstrap import Bootstrap
from cradled.runtime.shim_client import ShimClient

PROTOCOLS = ("ttrpc", "grpc")


@pytest.fixture(params=PROTOCOLS)
async def shim(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[FakeShim]:
    shim = FakeShim(str(tmp_path / "s"), 3, request.param)
    await shim.serve()
    yield shim
    await shim.die()


def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.node.callspec.params["shim"])


async def answers(bootstrap: Bootstrap) -> bool:
    client = await ShimClient.connect(bootstrap, "ns", timeout=10)
    try:
        return await client.pids_of("none") == (1, 0)
    finally:
        await client.aclose()


@pytest.mark.parametrize("form", ["unix://{}", "{}"])
async def test_paths(shim: FakeShim, form: str, request: pytest.FixtureRequest) -> None:
    assert await answers(Bootstrap(3, form.format(shim.path), protocol(request)))
    assert shim.namespaces == {"ns"}


@pytest.mark.parametrize("kind", PROTOCOLS)
async def test_an_abstract_socket(kind: str) -> None:
    name = f"cradled-test-{os.getpid()}"
    shim = FakeShim(f"\0{name}", 3, kind)
    await shim.serve()
    assert await answers(Bootstrap(3, name, kind))
    await shim.stop()


async def test_a_socket_of_a_virtual_machine(
    shim: FakeShim, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    asked: list[bytes] = []

    async def monitor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.write(b"OK 1073741824\n")
        inner, outer = await asyncio.open_unix_connection(shim.path)
        async with asyncio.TaskGroup() as group:
            group.create_task(pass_on(reader, outer))
            group.create_task(pass_on(inner, writer))

    async with await asyncio.start_unix_server(monitor, str(tmp_path / "vm:1")):
        address = f"hvsock://{tmp_path}/vm:1:1024"
        assert await answers(Bootstrap(3, address, protocol(request)))
    assert asked == [b"CONNECT 1024\n"]


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


@pytest.mark.parametrize("answer", [b"", b"ERR no such port\n", b"OK" * 1000])
async def test_a_monitor_that_refuses(tmp_path: Path, answer: bytes) -> None:
    async def monitor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        writer.close()

    async with await asyncio.start_unix_server(monitor, str(tmp_path / "vm")):
        with pytest.raises(ConnectionRefusedError):
            await dialing.dial(f"hvsock://{tmp_path}/vm:7")


@pytest.mark.parametrize(
    "address", ["tcp://1.2.3.4:5", "vsock://x:y", "vsock://3", "hvsock:///a", "http://x"]
)
async def test_what_is_no_address(address: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="shim address"):
        await dialing.dial(address)


async def test_nobody_there(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with pytest.raises(FileNotFoundError):
        await dialing.connect(Bootstrap(3, path))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
    with pytest.raises(ConnectionRefusedError):  # whoever was there is dead: no reason to wait
        await dialing.connect(Bootstrap(3, path), late=1000)


@pytest.mark.parametrize("kind", PROTOCOLS)
async def test_a_shim_that_is_late(tmp_path: Path, kind: str) -> None:
    shim = FakeShim(str(tmp_path / "s"), 3, kind)
    connecting = asyncio.create_task(dialing.connect(Bootstrap(3, shim.path, kind), late=1000))
    await asyncio.sleep(0)
    await shim.serve()
    channel = await connecting
    await channel.aclose()
    await shim.die()


async def test_a_full_queue_is_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        listener.setblocking(False)
        first = await dialing.dial(path)
        second = asyncio.create_task(dialing.dial(path))
        await asyncio.sleep(0)
        assert not second.done()
        listener.accept()[0].close()
        (await second).close()
        first.close()


@pytest.mark.parametrize("kind", PROTOCOLS)
async def test_one_that_never_says_a_word(tmp_path: Path, kind: str) -> None:
    """Of gRPC the first word is the server's: that is waited for."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        connecting = dialing.connect(Bootstrap(3, path, kind), timeout=0.05)
        if kind == "grpc":
            with pytest.raises(TimeoutError):
                await connecting
        else:
            await (await connecting).aclose()


async def test_one_that_hangs_up(tmp_path: Path) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_unix_server(hang_up, str(tmp_path / "s")):
        with pytest.raises(errors.Unavailable):
            await dialing.connect(Bootstrap(3, f"{tmp_path}/s", "grpc"), timeout=10)


async def test_a_death_is_noticed(shim: FakeShim, request: pytest.FixtureRequest) -> None:
    client = await ShimClient.connect(Bootstrap(3, shim.path, protocol(request)), "ns")
    gone = asyncio.Event()
    client.on_close(gone.set)
    entered = asyncio.Event()

    async def hang() -> None:
        entered.set()
        await asyncio.Event().wait()

    shim.script["connect"] = hang
    asking = asyncio.create_task(client.pids_of("x"))
    await entered.wait()
    await shim.die()
    with pytest.raises(ConnectionLost, match=r"^ttrpc: closed$"):
        await asking
    async with asyncio.timeout(10):
        await gone.wait()
    with pytest.raises(ConnectionLost, match=r"^ttrpc: closed$"):
        await client.pids_of("x")
    await client.aclose()
