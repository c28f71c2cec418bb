"""Our gRPC client on our gRPC server, over a unix socket."""

import asyncio
import os
import socket

import pytest
from harness.echo import ECHO, EchoService, message

from cradled import errors
from cradled.http2 import frames
from cradled.http2.connection import Connection
from cradled.rpc import grpc_server, grpc_wire
from cradled.rpc.grpc_client import connect
from cradled.rpc.grpc_server import GrpcServer
from cradled.rpc.service import Encoded, Router
from cradled.rpc.stub import Stub

MIB = 1 << 20


def listening(path):
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen(100)
    return sock


@pytest.fixture
async def service():
    return EchoService()


@pytest.fixture
async def server(service, tmp_path):
    router = Router()
    router.add(ECHO, service)
    server = GrpcServer(router)
    await server.serve(listening(tmp_path / "sock"))
    yield server
    await server.stop(0)


@pytest.fixture
async def channel(server, tmp_path):
    async with await connect(f"unix://{tmp_path}/sock") as channel:
        yield channel


@pytest.fixture
async def stub(channel):
    return Stub(channel, ECHO, [("containerd-namespace", "n1")])


@pytest.fixture(autouse=True)
async def settled():
    """Neither side leaves a task behind."""
    before = asyncio.all_tasks()
    yield
    assert asyncio.all_tasks() - before <= {asyncio.current_task()}


async def test_unary(stub, service):
    assert (await stub.say(message("hi"))).version == "hi"
    assert (await stub.say(message("slow"))).version == "slow"
    assert (await stub.say(message("encoded"))).version == "enco"
    (call, *_) = service.calls
    assert call.scope().namespace == "n1"
    assert call.transport == "grpc"
    assert call.deadline is None
    assert call.peer == (os.getpid(), os.getuid(), os.getgid())


async def test_requests_that_are_serialised_already(stub, channel):
    assert (await stub.say(Encoded(b"\n\x02", b"hi"))).version == "hi"
    async with channel.open(ECHO.methods["Join"]) as stream:
        await stream.send(Encoded(b"\n\xc0\xc4\x07", memoryview(b"a" * 123456)))
        await stream.send(message("b"))
        await stream.done()
        assert (await stream.recv()).version == "a" * 123456 + ",b"


async def test_errors_keep_their_class_and_text(stub, caplog):
    with pytest.raises(errors.NotFound, match=r"^it: not found$"):
        await stub.say(message("fail"))
    strange = "100% \n\x00\x7f é 漢 %41"
    with pytest.raises(errors.NotFound) as caught:
        await stub.say(message("fail", strange))
    assert caught.value.what == strange
    with pytest.raises(errors.Error, match=r"^oops$") as caught:
        await stub.say(message("bug"))
    assert type(caught.value) is errors.Error
    assert "ZeroDivisionError" in caplog.text


async def test_unknown(stub, channel):
    with pytest.raises(errors.Unimplemented, match="method Absent not implemented"):
        await stub.absent(message(""))
    other = ECHO.methods["Say"]._replace(path="/other.Service/Say")
    with pytest.raises(errors.Unimplemented, match=r"unknown service other\.Service"):
        await channel.call(other, message(""))


async def test_a_handler_has_a_current_task_from_its_first_step(stub):
    """``asyncio.timeout`` needs one; the handler's own TimeoutError is not a deadline of ours."""
    with pytest.raises(errors.DeadlineExceeded):
        await stub.say(message("timeout"))


async def test_deadline_on_both_sides(stub, service):
    with pytest.raises(errors.DeadlineExceeded):
        await stub.say(message("hang"), timeout=0.02)
    await service.cancelled.wait()
    assert service.calls[0].deadline is not None


async def test_a_deadline_in_eleven_thousand_years(stub, service):
    assert (await stub.say(message("slow"), timeout=1e12)).version == "slow"
    assert service.calls[0].deadline > 3e11


async def test_expired_deadline_is_not_served(stub, service):
    with pytest.raises(errors.DeadlineExceeded):
        await stub.say(message("hi"), timeout=-1)
    assert (await stub.say(message("next"))).version == "next"
    assert len(service.calls) == 1


async def test_metadata(stub, service):
    metadata = [("key", "value"), ("key", "second"), ("raw-bin", "AP8")]
    await stub.say(message("hi"), metadata=metadata)
    (call,) = service.calls
    assert call.metadata["key"] == "value"
    assert call.metadata["containerd-namespace"] == "n1"
    assert call.binary == {"raw-bin": b"\x00\xff"}
    assert not any(key.startswith((":", "grpc-")) for key in call.metadata)


async def test_malformed_metadata_is_refused(stub, service):
    with pytest.raises(errors.Internal, match='malformed binary metadata "!" in header "a-bin"'):
        await stub.say(message("hi"), metadata=[("a-bin", "!")])
    assert service.calls == []


async def test_details_of_errors(stub):
    details = (("type.googleapis.com/x.Y", b"\x00\xff"), ("z", b""))
    with pytest.raises(errors.NotFound, match=r"^it: not found$") as caught:
        await stub.say(message("details"))
    assert caught.value.details == details


async def test_what_calls_share_is_sent_once(stub, channel, service, monkeypatch):
    """The heads of a client's calls go through its connection's table, others' values do not."""
    blocks = []
    send = Connection.send_headers

    def send_headers(self, stream, block, end=False):
        if not self.server:
            blocks.append(block)
        send(self, stream, block, end)

    monkeypatch.setattr(Connection, "send_headers", send_headers)
    for i in range(3):
        metadata = [("key", "v" * 100), ("traceparent", f"00-{i}")]
        await stub.say(message("hi"), metadata=metadata, timeout=5)
        assert service.calls[i].metadata["traceparent"] == f"00-{i}"
        assert service.calls[i].metadata["key"] == "v" * 100
        assert service.calls[i].deadline is not None
    first, *others = map(len, blocks)
    assert first > 150
    assert max(others) < 50


async def test_metadata_of_responses(channel, service):
    async with channel.open(ECHO.methods["Count"]) as stream:
        await stream.send_only(message("1"))
        assert [r.version async for r in stream] == ["0"]
        assert stream.initial_metadata["from"] == "zero"
        assert stream.trailing_binary == {"to-bin": b"\x00\xff"}


async def test_server_streaming(stub):
    assert [r.version async for r in stub.count(message("3"))] == ["0", "1", "2"]
    assert [r async for r in stub.count(message("0", "1"))] == []
    responses = stub.count(message("2", "0"))
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


async def test_a_call_without_requests(stub):
    async with stub.join() as stream:
        await stream.done()
        assert (await stream.recv()).version == ""


async def test_concurrent_send_and_recv_open_one_stream(stub, channel):
    async with stub.chat() as stream:
        _, first = await asyncio.gather(stream.send(message("a")), stream.recv())
        assert first.version == "a"


async def test_big_messages(stub):
    text = "y" * (16 * MIB - 100)
    async with stub.chat() as stream:
        await asyncio.gather(stream.send(message(text)), asyncio.sleep(0))
        assert (await stream.recv()).version == text
    assert len((await stub.say(message("big", str(15 * MIB)))).version) == 15 * MIB


async def test_too_big_messages(stub):
    with pytest.raises(errors.ResourceExhausted, match="trying to send message larger than max"):
        await stub.say(message("big", str(17 * MIB)))
    with pytest.raises(errors.ResourceExhausted, match="trying to send message larger than max"):
        await stub.say(message("z" * 17 * MIB))
    assert (await stub.say(message("hi"))).version == "hi"


async def test_cancel_reaches_the_handler(stub, service):
    async with stub.chat() as stream:
        await stream.send(message("a"))
        await stream.recv()
    await service.cancelled.wait()
    with pytest.raises(errors.Cancelled):
        await stream.recv()


async def test_cancelling_the_caller_cancels_the_handler(stub, service):
    task = asyncio.ensure_future(stub.say(message("hang")))
    await service.started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await service.cancelled.wait()


async def test_a_lost_connection_cancels_handlers_and_calls(stub, service, channel):
    task = asyncio.ensure_future(stub.say(message("hang")))
    await service.started.wait()
    channel._connection.transport.abort()
    with pytest.raises(errors.Unavailable):
        await task
    await service.cancelled.wait()
    assert (await stub.say(message("again"))).version == "again"


async def test_a_slow_reader_stops_the_handler(stub, service, channel):
    """The handler gets no further than the windows and buffers between the two reach."""
    async with channel.open(ECHO.methods["Count"]) as stream:
        await stream.send_only(message("200", str(MIB)))
        await stream.recv()
        sent = -1
        while sent != service.sent:
            sent = service.sent
            for _ in range(100):
                await asyncio.sleep(0)
        assert sent < 20
        rest = [r async for r in stream]
        assert len(rest) == 199
        assert service.sent == 200


async def test_streams_share_a_connection_fairly(stub, service):
    """Small calls go through while a large message is under way."""
    large = asyncio.ensure_future(stub.say(message("big", str(15 * MIB))))
    small = [await stub.say(message(str(i))) for i in range(20)]
    assert [r.version for r in small] == [str(i) for i in range(20)]
    assert len((await large).version) == 15 * MIB


async def test_a_thousand_calls_at_once(stub, service):
    responses = await asyncio.gather(*(stub.say(message("slow")) for _ in range(1000)))
    assert len(responses) == 1000


async def test_a_thousand_streams_at_once(stub):
    async def chat(i):
        async with stub.chat() as stream:
            await stream.send(message(str(i)))
            assert (await stream.recv()).version == str(i)
            await barrier.wait()
            await stream.done()
            assert await stream.recv() is None

    barrier = asyncio.Barrier(1000)
    await asyncio.gather(*(chat(i) for i in range(1000)))


async def test_nobody_listens(tmp_path):
    with pytest.raises(errors.Unavailable, match="no such file"):
        await connect(f"{tmp_path}/none")


async def test_stop_waits_for_calls_under_way(stub, server):
    async with stub.chat() as stream:
        await stream.send(message("a"))
        await stream.recv()
        stopping = asyncio.ensure_future(server.stop(60))
        await stream.send(message("b"))
        assert (await stream.recv()).version == "b"
        await stream.done()
        assert await stream.recv() is None
        await stopping
    with pytest.raises(errors.Unavailable):
        await stub.say(message("hi"))


async def test_stop_loses_no_call_that_the_client_began(stub, server, service, channel):
    """Its request is on the way, or its answer waits to be read."""
    async with channel.open(ECHO.methods["Say"]) as half, channel.open(ECHO.methods["Say"]) as big:
        await half._open()
        await big.send_only(message("big", str(8 * MIB)))
        stopping = asyncio.ensure_future(server.stop(60))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not stopping.done()
        await half.send_only(message("in time"))
        assert (await half.recv()).version == "in time"
        assert len((await big.recv()).version) == 8 * MIB
        await stopping


async def test_stop_does_not_wait_for_a_client_that_does_not_answer(server, tmp_path, monkeypatch):
    monkeypatch.setattr(grpc_server, "_LAST_CALL", 0.01)
    reader, writer = await asyncio.open_unix_connection(tmp_path / "sock")
    writer.write(frames.PREFACE + frames.settings([]))
    await reader.readuntil(frames.frame(frames.SETTINGS, frames.ACK, 0))
    await server.stop(60)
    writer.transport.abort()


async def test_who_was_accepted_in_the_last_moment_is_sent_away(tmp_path, monkeypatch):
    """The loop may make a connection known when the server has gone through all it has."""
    made, real = [], grpc_server.listening.serve

    async def serve(protocol, sock):
        made.append(protocol)
        return await real(protocol, sock)

    monkeypatch.setattr(grpc_server.listening, "serve", serve)
    server = GrpcServer(Router())
    await server.serve(listening(tmp_path / "sock"))
    await server.stop(0)
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.connect_accepted_socket(made[0], theirs)
    reader, writer = await asyncio.open_connection(sock=ours)
    assert frames.goaway(0, frames.ErrorCode.NO_ERROR) in await reader.read()
    writer.close()


async def test_settling_waits_for_calls_that_have_just_begun(stub, server):
    async with stub.chat() as stream:
        await stream.send(message("a"))
        await stream.recv()
        settling = asyncio.ensure_future(server.settle(60))
        await stream.send(message("b"))
        assert (await stream.recv()).version == "b"
        await stream.done()
        assert await stream.recv() is None
        await settling
    await server.stop(0)


async def test_settling_waits_no_longer_than_told(stub, server, service):
    task = asyncio.ensure_future(stub.say(message("hang")))
    await service.started.wait()
    await server.settle(0.01)
    assert not task.done()
    await server.stop(0)
    with pytest.raises(errors.Unavailable, match="stopping"):
        await task


async def test_stop_cancels_what_takes_too_long(stub, server, service):
    task = asyncio.ensure_future(stub.say(message("hang")))
    await service.started.wait()
    await server.stop(0.01)
    with pytest.raises(errors.Unavailable, match="stopping"):
        await task
    assert service.cancelled.is_set()


async def test_close_cancels_calls(stub, channel, service):
    task = asyncio.ensure_future(stub.say(message("hang")))
    await service.started.wait()
    await channel.aclose()
    with pytest.raises(errors.Error):
        await task
    with pytest.raises(errors.Cancelled):
        await stub.say(message("hi"))
    await service.cancelled.wait()


async def test_a_handler_that_never_waits_is_stopped_by_the_socket(server, service, tmp_path):
    """Small messages to a client whose windows are endless, but who does not read."""
    hello = frames.PREFACE + frames.settings([(4, frames.MAX_WINDOW)])
    hello += frames.window_update(0, frames.MAX_WINDOW - frames.DEFAULT_WINDOW)
    block = grpc_wire.request_block("/test.Echo/Count", "x", (), None)
    request = message("1000000", "1000").SerializeToString()
    data = grpc_wire.PREFIX.pack(0, len(request)) + request
    _, writer = await asyncio.open_unix_connection(tmp_path / "sock", limit=1)
    writer.write(hello + frames.header_frames(1, block, False, 1 << 14))
    writer.write(frames.frame(frames.DATA, frames.END_STREAM, 1, data))
    sent = -1
    while sent != service.sent or not sent:
        sent = service.sent
        for _ in range(200):
            await asyncio.sleep(0)
    assert 0 < sent * 1000 < 4 * MIB
    writer.transport.abort()
    await service.cancelled.wait()


@pytest.mark.parametrize("frame", [0, 16 << 10])
async def test_connections_do_not_mix_what_they_receive(server, tmp_path, frame):
    """They share a buffer to read into; long frames are read past it."""

    async def chat(number: int) -> None:
        async with await connect(f"{tmp_path}/sock") as channel:
            if frame:
                (await channel.connected()).http2.outbox.frame_size = frame
            async with Stub(channel, ECHO).chat() as stream:
                for size in (70_000, 3 * MIB + number, 9, MIB - number, 300_000, 16_400):
                    text = f"{number}:{size} ".ljust(17, "_") * (size // 17)
                    await stream.send(message(text))
                    assert (await stream.recv()).version == text

    await asyncio.gather(*map(chat, range(4)))
