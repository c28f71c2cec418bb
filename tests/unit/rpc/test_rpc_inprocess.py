"""The in-process transport, the router and the stub."""

import pytest
from harness.echo import ECHO, EchoService, message

from cradled import errors
from cradled.rpc.inprocess import InProcess
from cradled.rpc.service import Encoded, Router, snake_case
from cradled.rpc.stub import Stub


@pytest.fixture
def service():
    return EchoService()


@pytest.fixture
def stub(service):
    router = Router()
    router.add(ECHO, service)
    return Stub(InProcess(router), ECHO, [("containerd-namespace", "n1")])


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


def test_a_service_is_added_once():
    router = Router()
    router.add(ECHO, object())
    with pytest.raises(ValueError, match=r"test\.Echo"):
        router.add(ECHO, object())
    assert [service.name for service in router.services()] == ["test.Echo"]


def test_texts_of_what_is_missing():
    router = Router()
    router.add(ECHO, object())
    assert router.missing("/a.B/C") == "unknown service a.B"
    assert router.missing("/test.Echo/C") == "unknown method C for service test.Echo"
    assert router.missing("/test.Echo/Say") == "method Say not implemented"
    assert router.missing("") == "unknown service "


def test_a_stub_has_only_its_methods(stub):
    with pytest.raises(AttributeError, match="shout"):
        _ = stub.shout


async def test_unary(stub, service):
    assert (await stub.say(message("hi"))).version == "hi"
    assert (await stub.say(message("encoded"))).version == "enco"
    assert service.calls[0].scope().namespace == "n1"
    assert service.calls[0].transport == "inprocess"


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
    responses = stub.count(message("2", "0"))
    assert [(await anext(responses)).version for _ in range(2)] == ["0", "1"]
    with pytest.raises(errors.Conflict, match=r"^busy: conflict$"):
        await anext(responses)


async def test_requests_that_are_serialised_already(stub):
    assert (await stub.say(Encoded(b"\n\x02", b"hi"))).version == "hi"
    async with stub.join() as stream:
        await stream.send(Encoded(b"\n\x01", memoryview(b"a")))
        await stream.send(message("b"))
        await stream.done()
        assert (await stream.recv()).version == "a,b"


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
