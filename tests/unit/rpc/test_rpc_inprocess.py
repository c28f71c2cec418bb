"""The in-process transport, the router and the stub, with one service of each kind of call."""

import asyncio

import pytest

from cradled import errors
from cradled.api.pool import Method, Service
from cradled.api.version_pb2 import VersionResponse
from cradled.rpc.inprocess import InProcess
from cradled.rpc.service import Encoded, Router, snake_case
from cradled.rpc.stub import Stub


def method(name: str, client: bool, server: bool) -> Method:
    return Method(name, f"/test.Echo/{name}", VersionResponse, VersionResponse, client, server)


ECHO = Service(
    "test.Echo",
    {
        "Say": method("Say", False, False),
        "Count": method("Count", False, True),
        "Join": method("Join", True, False),
        "Chat": method("Chat", True, True),
        "Absent": method("Absent", False, False),
    },
)


class EchoService:
    def __init__(self):
        self.cancelled = asyncio.Event()

    async def say(self, call, request):
        if request.version == "encoded":
            return Encoded(request.SerializeToString())
        if request.version == "fail":
            raise errors.NotFound("it")
        if request.version == "bug":
            raise ZeroDivisionError("oops")
        if request.version == "hang":
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()
        return VersionResponse(version=call.scope().namespace + "/" + request.version)

    async def count(self, call, request):
        for i in range(int(request.version)):
            yield VersionResponse(version=str(i))
        if request.revision:
            raise errors.Conflict(request.revision)

    async def join(self, call, requests):
        return VersionResponse(version=",".join([r.version async for r in requests]))

    async def chat(self, call, requests):
        async for request in requests:
            yield request
            if request.version == "end":
                return


@pytest.fixture
def service():
    return EchoService()


@pytest.fixture
def stub(service):
    router = Router()
    router.add(ECHO, service)
    return Stub(InProcess(router), ECHO, [("containerd-namespace", "n1")])


def message(text: str, revision: str = "") -> VersionResponse:
    return VersionResponse(version=text, revision=revision)


@pytest.mark.parametrize(
    ("name", "snake"),
    [
        ("Get", "get"),
        ("ListStream", "list_stream"),
        ("CloseIO", "close_io"),
        ("UpdateV2", "update_v2"),
    ],
)
def test_snake_case(name, snake):
    assert snake_case(name) == snake


async def test_unary(stub):
    assert (await stub.say(message("hi"))).version == "n1/hi"
    assert (await stub.say(message("encoded"))).version == "encoded"


async def test_errors_keep_their_class(stub):
    with pytest.raises(errors.NotFound, match=r"^it: not found$"):
        await stub.say(message("fail"))
    with pytest.raises(errors.Error, match="oops") as caught:
        await stub.say(message("bug"))
    assert type(caught.value) is errors.Error
    with pytest.raises(errors.Unimplemented, match="method Absent not implemented"):
        await stub.absent(message(""))


async def test_deadline(stub, service):
    with pytest.raises(errors.DeadlineExceeded):
        await stub.say(message("hang"), timeout=0.01)
    assert service.cancelled.is_set()


async def test_server_streaming(stub):
    assert [r.version async for r in stub.count(message("3"))] == ["0", "1", "2"]
    responses = stub.count(message("2", "busy"))
    assert [(await anext(responses)).version for _ in range(2)] == ["0", "1"]
    with pytest.raises(errors.Conflict, match=r"^busy: conflict$"):
        await anext(responses)


async def test_client_streaming(stub):
    async with stub.join() as stream:
        await stream.send(message("a"))
        await stream.send(message("b"))
        await stream.done()
        assert (await stream.recv()).version == "a,b"
        assert await stream.recv() is None
        assert await stream.recv() is None


async def test_both_ways(stub):
    async with stub.chat() as stream:
        for word in ("a", "b", "end"):
            await stream.send(message(word))
            assert (await stream.recv()).version == word
        assert await stream.recv() is None
        with pytest.raises(errors.Error):
            await stream.send(message("late"))


async def test_cancel_before_the_handler_ran(stub):
    stream = stub.chat()
    stream.cancel()
    with pytest.raises(errors.Cancelled):
        await stream.recv()
