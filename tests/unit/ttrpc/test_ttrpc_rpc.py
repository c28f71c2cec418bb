"""Services over ttrpc on real unix sockets: all kinds of calls, errors, deadlines, lost peers."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cradled import errors
from cradled.api import content_pb2
from cradled.api.pool import Method, Service
from cradled.rpc.call import Call
from cradled.rpc.service import Encoded, Router
from cradled.rpc.stub import Stub
from cradled.rpc.ttrpc_client import ConnectionLost, TtrpcChannel, attach, connect, socket_path
from cradled.rpc.ttrpc_server import TtrpcServer
from cradled.ttrpc import aio, frames
from cradled.ttrpc.connection import CLIENT, Connection, ResponseReceived


def _method(name: str, client: bool, server: bool) -> Method:
    message = content_pb2.InfoRequest  # any message with one string will do
    return Method(name, f"/test.Echo/{name}", message, message, client, server)


ECHO = Service(
    "test.Echo",
    {
        method.name: method
        for method in (
            _method("Say", False, False),
            _method("Count", False, True),
            _method("Join", True, False),
            _method("Talk", True, True),
            _method("Missing", False, False),
        )
    },
)


def word(text: str) -> Any:
    return content_pb2.InfoRequest(digest=text)


class Echo:
    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.cancelled = asyncio.Event()
        self.entered = asyncio.Event()

    async def say(self, call: Call, request: Any) -> Any:
        self.calls.append(call)
        if request.digest == "nothing":
            raise errors.NotFound('thing "x"')
        if request.digest == "hang":
            self.entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()
        if request.digest == "long":
            return word("x" * frames.MAX_DATA)
        return Encoded(word(request.digest + "!").SerializeToString())

    async def count(self, call: Call, request: Any) -> AsyncIterator[Any]:
        for number in range(int(request.digest)):
            yield word(str(number))
        if call.metadata.get("then") == "fail":
            raise errors.FailedPrecondition("enough")

    async def join(self, call: Call, requests: AsyncIterator[Any]) -> Any:
        return word("+".join([request.digest async for request in requests]))

    async def talk(self, call: Call, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            yield word(request.digest.upper())


class Running:
    def __init__(self, path: Path) -> None:
        self.path = str(path / "s")
        self.echo = Echo()
        router = Router()
        router.add(ECHO, self.echo)
        self.server = TtrpcServer(router)

    async def __aenter__(self) -> "Running":
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(self.path)
        sock.listen()
        await self.server.serve(sock)
        self.channel: TtrpcChannel = await connect(f"unix://{self.path}")
        self.stub = Stub(self.channel, ECHO, [("containerd-namespace-ttrpc", "ns")])
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.channel.aclose()
        await self.server.stop(0)


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with Running(tmp_path) as running:
        yield running


async def test_unary(running: Running) -> None:
    results = await asyncio.gather(*(running.stub.say(word(str(n))) for n in range(50)))
    assert [r.digest for r in results] == [f"{n}!" for n in range(50)]
    call = running.echo.calls[0]
    assert call.transport == "ttrpc"
    assert call.scope().namespace == "ns"
    assert call.peer is not None
    assert call.peer.pid == os.getpid()
    assert call.deadline is None


async def test_an_error_keeps_class_and_text(running: Running) -> None:
    with pytest.raises(errors.NotFound) as caught:
        await running.stub.say(word("nothing"))
    assert str(caught.value) == 'thing "x": not found'
    assert (await running.stub.say(word("still there"))).digest == "still there!"


async def test_unknown_methods_and_services(running: Running) -> None:
    with pytest.raises(errors.Unimplemented, match="method Missing"):
        await running.stub.missing(word(""))
    other = Method("A", "/b.C/A", content_pb2.InfoRequest, content_pb2.InfoRequest, False, False)
    with pytest.raises(errors.Unimplemented, match=r"service b\.C"):
        await running.channel.call(other, word(""))


async def test_messages_over_the_limit(running: Running) -> None:
    with pytest.raises(errors.ResourceExhausted, match="exceed maximum message size"):
        await running.stub.say(word("x" * frames.MAX_DATA))
    with pytest.raises(errors.ResourceExhausted, match="exceed maximum message size"):
        await running.stub.say(word("long"))
    assert (await running.stub.say(word("a"))).digest == "a!"


async def test_server_streaming(running: Running) -> None:
    assert [r.digest async for r in running.stub.count(word("3"))] == ["0", "1", "2"]
    assert [r.digest async for r in running.stub.count(word("0"))] == []
    responses = running.stub.count(word("2"), metadata=[("then", "fail")])
    assert [(await anext(responses)).digest for _ in range(2)] == ["0", "1"]
    with pytest.raises(errors.FailedPrecondition, match="enough"):
        await anext(responses)


async def test_a_slow_reader_stops_the_writer(running: Running) -> None:
    count = 100_000
    received = 0
    async for _ in running.stub.count(word(str(count))):
        received += 1
        if received == 1:
            await asyncio.sleep(0)
    assert received == count


async def test_client_streaming_and_both_ways(running: Running) -> None:
    async with running.stub.join() as stream:
        for text in ("a", "b"):
            await stream.send(word(text))
        await stream.done()
        assert (await stream.recv()).digest == "a+b"
        assert await stream.recv() is None
    async with running.stub.talk() as stream:
        await stream.send(word("x"))
        assert (await stream.recv()).digest == "X"
        await stream.done()
        assert await stream.recv() is None


async def test_a_deadline_ends_the_call_on_both_sides(running: Running) -> None:
    with pytest.raises(errors.DeadlineExceeded):
        await running.stub.say(word("hang"), timeout=0.05)
    await running.echo.cancelled.wait()
    assert running.echo.calls[-1].deadline is not None


async def test_a_lost_client_cancels_its_calls(running: Running) -> None:
    call = asyncio.create_task(running.stub.say(word("hang")))
    await running.echo.entered.wait()
    await running.channel.aclose()
    with pytest.raises(ConnectionLost, match=r"^ttrpc: closed$"):
        await call
    await running.echo.cancelled.wait()
    with pytest.raises(ConnectionLost):
        await running.stub.say(word("a"))
    with pytest.raises(ConnectionLost):
        await running.stub.talk().send(word("a"))


async def test_stopping_waits_for_calls_then_closes(running: Running) -> None:
    lost = asyncio.Event()
    running.channel.on_close(lost.set)
    call = asyncio.create_task(running.stub.say(word("hang")))
    await running.echo.entered.wait()
    await running.server.stop(0.01)
    await lost.wait()
    with pytest.raises(ConnectionLost):
        await call
    assert running.channel.is_closed


async def test_a_bad_message_is_answered(running: Running) -> None:
    reader, writer = await asyncio.open_unix_connection(running.path)
    client = Connection(CLIENT)
    client.send_request("test.Echo", "Say", b"\xff\xff")
    writer.write(client.data_to_send())
    (event,) = client.receive_data(await reader.read(1000))
    assert isinstance(event, ResponseReceived)
    assert event.code == 3
    assert event.message.startswith("unmarshal request error: ")
    writer.close()
    await writer.wait_closed()


async def test_calls_over_a_socketpair() -> None:
    ours, theirs = socket.socketpair()
    channel = await attach(ours)

    async def answer(call: aio.ServerCall) -> None:
        call.respond(word(call.request.method).SerializeToString())

    loop = asyncio.get_running_loop()
    _, server = await loop.create_unix_connection(lambda: aio.ServerConnection(answer), sock=theirs)
    assert (await Stub(channel, ECHO).missing(word(""))).digest == "Missing"
    await server.aclose()
    await channel.aclose()


@pytest.mark.parametrize(
    ("address", "path"),
    [("unix:///a/b", "/a/b"), ("/a/b", "/a/b"), ("containerd-shim/x", "\0containerd-shim/x")],
)
def test_addresses(address: str, path: str) -> None:
    assert socket_path(address) == path
    with pytest.raises(errors.Unimplemented):
        socket_path("vsock://3:10")
