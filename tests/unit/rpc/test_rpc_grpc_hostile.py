"""A server among bad clients, over real sockets: what they get, and that others feel nothing."""

import asyncio
import socket

import pytest
from harness.echo import ECHO, EchoService, message

from cradled import errors
from cradled.http2 import frames, hpack, limits
from cradled.http2.connection import Connection
from cradled.http2.frames import DATA, END_STREAM, ErrorCode, frame
from cradled.http2.streams import DataReceived, GoneAway, HeadersReceived, StreamReset
from cradled.rpc import grpc_connection, grpc_server, grpc_wire
from cradled.rpc.grpc_client import connect
from cradled.rpc.grpc_server import GrpcServer
from cradled.rpc.grpc_wire import PREFIX, ResponseHead
from cradled.rpc.service import Router
from cradled.rpc.stub import Stub

KIB, MIB = 1 << 10, 1 << 20
HELLO = frames.PREFACE + frames.settings([])
PING = frame(frames.PING, 0, 0, bytes(8))


class Stubborn(EchoService):
    """Also ends calls only when it is allowed to, whoever gave them up."""

    def __init__(self):
        super().__init__()
        self.allowed = asyncio.Event()
        self.begun = self.ended = self.most = 0

    async def join(self, call, requests):
        self.begun += 1
        self.most = max(self.most, self.begun - self.ended)
        try:
            await asyncio.Event().wait()
        finally:
            await self.allowed.wait()
            self.ended += 1


@pytest.fixture
async def service():
    return Stubborn()


@pytest.fixture
async def server(service, tmp_path):
    router = Router()
    router.add(ECHO, service)
    server = GrpcServer(router)
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "sock"))
    sock.listen(2000)
    await server.serve(sock)
    yield server
    service.allowed.set()
    await server.stop(0)


@pytest.fixture
async def stub(server, tmp_path):
    async with await connect(f"{tmp_path}/sock") as channel:
        yield Stub(channel, ECHO)


@pytest.fixture
async def open_raw(server, tmp_path):
    """Makes clients that send what they like, and read only when asked to."""
    raws = []

    async def open_one(hello=HELLO):
        before = set(server._connections)
        raw = Raw(*await asyncio.open_unix_connection(tmp_path / "sock", limit=1))
        raws.append(raw)
        await until(lambda: len(server._connections) > len(before))
        (raw.connection,) = server._connections - before
        raw.write(hello)
        return raw

    yield open_one
    for raw in raws:
        raw.writer.transport.abort()


class Raw:
    """A client; ``connection`` is the server's side of it."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.http2 = Connection(server=False, interpret=ResponseHead)
        self.http2.take(1)
        self.http2._patience.left = 1 << 40

    def write(self, data):
        self.writer.write(data)

    async def read(self, until=None):
        """All events until one pleases, or the server hangs up."""
        events = []
        while data := await self.reader.read(MIB):
            self.http2.outbox.take(1 << 30)
            events += self.http2.receive(data)
            while self.http2.more:
                events += self.http2.receive(b"")
            if until is not None and any(map(until, events)):
                break
        return events

    def knows(self, *stream_ids):
        """Let it take answers on streams that were opened by hand."""
        for stream_id in stream_ids:
            self.http2._next_id = stream_id
            self.http2.open(b"")


def head(stream_id, method="Say", metadata=(), timeout=None, end=False):
    block = grpc_wire.request_block(f"/test.Echo/{method}", "x", metadata, timeout)
    return frames.header_frames(stream_id, block, end, 1 << 14)


def data(stream_id, text, revision="", end=True):
    body = message(text, revision).SerializeToString()
    flags = END_STREAM if end else 0
    return frame(DATA, flags, stream_id, PREFIX.pack(0, len(body)) + body)


async def turns(count=50):
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition):
    while not condition():
        await turns(5)


async def gone(server, count):
    """Wait until the server has no more than that many connections."""
    await until(lambda: server.connections <= count)


def away(events):
    (event,) = [e for e in events if isinstance(e, GoneAway)]
    return ErrorCode(event.code), event.text


# What they get


async def test_a_flood_ends_with_its_reason_and_costs_others_nothing(stub, open_raw, monkeypatch):
    monkeypatch.setattr(limits, "PATIENCE", 5000)
    raw = await open_raw()
    raw.write(PING * 100_000)
    for i in range(20):
        assert (await stub.say(message(str(i)))).version == str(i)
    assert away(await raw.read()) == (ErrorCode.ENHANCE_YOUR_CALM, "too many pings")
    assert (await stub.say(message("still there"))).version == "still there"


async def test_calls_that_are_reset_at_once(stub, service, server, open_raw, monkeypatch):
    monkeypatch.setattr(limits, "PATIENCE", 2000)
    monkeypatch.setattr(grpc_connection, "LAST_WORDS", 0.1)
    raw = await open_raw()
    raw.write(
        b"".join(
            head(i) + data(i, "hang") + frames.rst_stream(i, ErrorCode.CANCEL)
            for i in range(1, 8001, 2)
        )
    )
    assert (await stub.say(message("a"))).version == "a"
    code, text = away(await raw.read())
    assert (code, text) == (ErrorCode.ENHANCE_YOUR_CALM, "too many streams broken off")
    await gone(server, 1)
    assert len(service.calls) < 600
    assert (await stub.say(message("b"))).version == "b"


async def test_handlers_that_outlive_their_calls_are_limited(stub, service, open_raw, monkeypatch):
    """A client cannot have more work done at a time by giving it up."""
    monkeypatch.setattr(grpc_server, "_ABANDONED", 20)
    raw = await open_raw()
    for at in range(1, 2001, 50):
        raw.write(b"".join(head(i, "Join") for i in range(at, at + 50, 2)))
        await turns(5)
        raw.write(b"".join(frames.rst_stream(i, ErrorCode.CANCEL) for i in range(at, at + 50, 2)))
        await turns(5)
    await turns()
    assert 20 < service.begun <= 50
    begun = service.begun
    assert (await stub.say(message("a"))).version == "a"
    await turns()
    assert service.begun == begun
    service.allowed.set()
    raw.knows(2001)
    raw.write(head(2001) + data(2001, "b"))
    await raw.read(lambda e: isinstance(e, HeadersReceived) and e.head.code == 0)


async def test_a_client_that_never_reads(stub, server, open_raw, monkeypatch):
    """What we answer it is limited, and then it is not listened to."""
    monkeypatch.setattr(limits, "PER_CALL", 1000)
    monkeypatch.setattr(grpc_connection, "_CONTROL_LIMIT", 600 * KIB)
    raw = await open_raw()
    connection = raw.connection
    for i in range(1, 400_001, 2):
        raw.write(PING * 20 + head(i) + data(i, "x" * 50))
        if i % 1000 == 1:
            await turns(2)
            if connection._held & grpc_connection.UNREAD:
                break
    await turns(200)
    unread = connection.transport.get_write_buffer_size()
    assert connection._held & grpc_connection.UNREAD
    assert unread < MIB
    assert len(connection.http2.outbox._frames) < 2000
    assert (await stub.say(message("a"))).version == "a"
    opened = connection.http2._opened
    await turns(200)
    assert connection.http2._opened == opened
    # Once it reads, it is served again.
    reading = asyncio.ensure_future(raw.read())
    await until(lambda: connection.http2._opened > opened)
    reading.cancel()


async def test_a_client_that_does_not_read_why_it_is_hung_up_on(server, open_raw, monkeypatch):
    monkeypatch.setattr(grpc_connection, "LAST_WORDS", 0.01)
    raw = await open_raw()
    await turns()
    connection = raw.connection
    big = "y" * (4 * MIB)
    raw.write(frames.settings([(4, frames.MAX_WINDOW)]) + frames.window_update(0, 1 << 30))
    raw.write(head(1) + data(1, "big", str(15 * MIB)) + frame(DATA, 0, 99, b"idle") + big.encode())
    await connection.gone.wait()
    assert server.connections == 0


async def test_a_client_that_says_nothing(server, open_raw, monkeypatch):
    monkeypatch.setattr(grpc_server, "_PREFACE", 0.01)
    silent, slow = await open_raw(b""), await open_raw(frames.PREFACE[:10])
    assert await silent.read() == await slow.read() == []
    await gone(server, 0)


async def test_a_client_that_has_said_hello_may_be_silent(server, open_raw, monkeypatch):
    monkeypatch.setattr(grpc_server, "_PREFACE", 0.01)
    raw = await open_raw()
    await turns()
    await asyncio.sleep(0.02)
    raw.knows(1)
    raw.write(head(1) + data(1, "a"))
    await raw.read(lambda e: isinstance(e, HeadersReceived) and e.head.code == 0)


async def test_a_call_without_its_request_runs_out_of_time(service, open_raw):
    raw = await open_raw()
    raw.knows(1, 3)
    raw.write(head(1, timeout=0.01) + head(3, timeout=0.01) + data(3, "abc")[:12])
    ends = {}
    while len(ends) < 2:
        for event in await raw.read(lambda e: isinstance(e, HeadersReceived)):
            if isinstance(event, HeadersReceived):
                ends[event.stream.id] = event.head.code
    assert ends == {1: 4, 3: 4}
    assert service.calls == []


@pytest.mark.parametrize(
    ("block", "http_status", "code"),
    [
        ([(b":method", b"GET"), (b":path", b"/"), (b"content-type", b"application/grpc")], 405, 13),
        ([(b":method", b"POST"), (b":path", b"/"), (b"content-type", b"text/html")], 415, 3),
        ([], 415, 3),
        ([(b":path", b"nothing"), *grpc_wire.request_fields("x", "x", ())[4:5]], 405, 13),
    ],
)
async def test_what_is_no_grpc(open_raw, block, http_status, code):
    raw = await open_raw()
    raw.knows(1)
    raw.write(frames.header_frames(1, hpack.encode(block), True, 1 << 14))
    events = await raw.read(lambda e: isinstance(e, HeadersReceived))
    (event,) = [e for e in events if isinstance(e, HeadersReceived)]
    assert (event.head.http_status, event.head.code, event.ended) == (str(http_status), code, True)


async def test_what_http2_forbids_resets_the_stream(open_raw):
    raw = await open_raw()
    raw.knows(1, 3)
    bad = [*grpc_wire.request_fields("/test.Echo/Say", "x", ()), (b"Upper", b"x")]
    raw.write(frames.header_frames(1, hpack.encode(bad), False, 1 << 14))
    raw.write(head(3) + data(3, "a"))
    events = await raw.read(lambda e: isinstance(e, HeadersReceived) and e.ended)
    (reset,) = [e for e in events if isinstance(e, StreamReset)]
    assert (reset.stream.id, reset.code) == (1, ErrorCode.PROTOCOL_ERROR)


@pytest.mark.parametrize("length", ["0", "1", "99999", "-1", "x"])
async def test_content_lengths_are_not_believed(open_raw, length):
    raw = await open_raw()
    raw.knows(1)
    raw.write(head(1, metadata=[("content-length", length)]) + data(1, "abc"))
    events = await raw.read(lambda e: isinstance(e, HeadersReceived) and e.ended)
    assert events[-1].head.code == 0


async def test_trailers_of_a_request_and_then_more(open_raw):
    """Trailers end a request; what comes behind them ends the stream, not the connection."""
    raw = await open_raw()
    raw.knows(1, 3)
    trailers = frames.header_frames(1, hpack.encode([(b"a", b"b")]), True, 1 << 14)
    raw.write(head(1, "Chat") + data(1, "hang", end=False) + trailers + trailers)
    raw.write(head(3) + data(3, "a"))
    events = await raw.read(lambda e: isinstance(e, HeadersReceived) and e.head.code == 0)
    assert not raw.http2.closed
    assert any(isinstance(e, HeadersReceived) for e in events)


async def test_the_response_names_the_content_type_of_its_request(open_raw):
    raw = await open_raw()
    raw.knows(1, 3)
    for i, path in ((1, "/test.Echo/Say"), (3, "/none/x")):
        fields = [
            (name, b"application/grpc+proto" if name == b"content-type" else value)
            for name, value in grpc_wire.request_fields(path, "x", ())
        ]
        raw.write(frames.header_frames(i, hpack.encode(fields), False, 1 << 14) + data(i, "a"))
    events, ended = [], 0
    while ended < 2:
        events += await raw.read(lambda e: isinstance(e, HeadersReceived))
        ended = sum(isinstance(e, HeadersReceived) and e.ended for e in events)
    heads = [e.head for e in events if isinstance(e, HeadersReceived) and e.head.http_status]
    assert [h.metadata["content-type"] for h in heads] == ["application/grpc+proto"] * 2


@pytest.mark.parametrize("text", ["x" * 100_000, "\u6f22" * 3000, "%" * 1500])
async def test_a_client_that_takes_short_headers_only(open_raw, text):
    """It gets the code, and of the text what has room."""
    raw = await open_raw(frames.PREFACE + frames.settings([(6, 4000)]))
    raw.knows(1)
    raw.write(head(1) + data(1, "fail", text))
    events = await raw.read(lambda e: isinstance(e, HeadersReceived) and e.ended)
    ended = events[-1].head
    assert ended.code == 5
    assert 1000 < len(ended.text.encode()) < 4000
    assert text.startswith(ended.text)
    assert len(grpc_wire.status_fields(5, ended.text)[1][1]) < 4000 - 200


# What they can make us hold


async def test_windows_that_never_open(stub, server, open_raw, monkeypatch):
    """Unary answers wait in memory; when it is too much, there are no more."""
    monkeypatch.setattr(grpc_server, "_UNREAD", 20 * MIB)
    raw = await open_raw(frames.PREFACE + frames.settings([(4, 0)]))
    ids = range(1, 201, 2)
    raw.knows(*ids)
    for i in ids:
        raw.write(head(i) + data(i, "big", str(MIB)))
    refused = 0
    while refused < 81:
        for event in await raw.read(lambda e: isinstance(e, HeadersReceived) and e.ended):
            if isinstance(event, HeadersReceived) and event.ended:
                assert event.head.code == 8
                assert event.head.text.startswith("grpc: too many responses wait to be read")
                refused += 1
    connection = raw.connection
    assert refused == 81
    assert 19 * MIB < connection.http2.outbox.queued <= 20 * MIB
    assert (await stub.say(message("a"))).version == "a"
    raw.write(b"".join(frames.rst_stream(i, 8) for i in ids))
    await until(lambda: not connection.http2.outbox.queued)
    raw.knows(201)
    raw.write(head(201) + data(201, "big", "10"))
    await turns()
    assert 10 < connection.http2.outbox.queued < 100


async def test_streams_that_are_not_read_stop_their_handlers(service, open_raw):
    """Whatever the client lets through, each handler is ahead by one message."""
    raw = await open_raw(frames.PREFACE + frames.settings([(4, 1000)]))
    for i in range(1, 41, 2):
        raw.write(head(i, "Count") + data(i, "1000", str(100 * KIB)))
    await until(lambda: len(raw.connection._running) == 20)
    await turns(200)
    assert service.sent == 0  # all are at their first message
    assert raw.connection.http2.outbox.queued < 20 * 101 * KIB


async def test_tiny_requests_to_a_handler_that_is_slow(server, service, open_raw):
    """They wait as bytes, as many as the window lets through."""
    raw = await open_raw()
    raw.write(head(1, "Join"))
    await turns()
    tiny = PREFIX.pack(0, 25) + message("x" * 23).SerializeToString()
    await until(lambda: service.begun)
    connection = raw.connection
    (exchange,) = connection._running
    raw.write(frame(DATA, 0, 1, tiny * 500) * (4 * MIB // 15_000))
    seen = -1
    while seen != len(exchange.requests._queue) or not seen:
        seen = len(exchange.requests._queue)
        await turns()
    assert set(map(type, exchange.requests._queue)) == {bytes}
    assert seen <= 4 * MIB // 30
    assert connection.http2._unread >= 3 * MIB
    service.allowed.set()


async def test_calls_that_wait_for_the_rest_of_a_message(server, open_raw):
    """Announcing 16 MiB takes no memory by itself, and what has come is counted until it ends."""
    raw = await open_raw()
    for i in range(1, 2001, 2):
        raw.write(head(i) + frame(DATA, 0, i, PREFIX.pack(0, 16 * MIB) + b"x"))
    await turns(200)
    connection = raw.connection
    await until(lambda: connection.http2._opened == 1000)
    assert connection.account.used < 100 * MIB
    raw.write(b"".join(frames.rst_stream(i, 8) for i in range(1, 2001, 2)))
    await until(lambda: not connection.http2.streams)
    assert connection.account.used == 0


# Many


async def test_ten_thousand_streams(server, service, open_raw, stub):
    """One connection, a call that waits on each: as dockerd does for its containers."""
    raw = await open_raw()
    ids = range(1, 20_001, 2)
    for at in range(0, len(ids), 500):
        raw.write(b"".join(head(i) + data(i, "hang") for i in ids[at : at + 500]))
        await raw.writer.drain()
    await until(lambda: len(service.calls) == len(ids))
    connection = raw.connection
    assert len(connection.http2.streams) == len(connection._running) == 10_000
    raw.knows(20_001)
    raw.write(head(20_001) + data(20_001, "one more"))
    await raw.read(lambda e: isinstance(e, HeadersReceived) and e.head.code == 0)
    assert (await stub.say(message("and another"))).version == "and another"
    raw.writer.transport.abort()
    await connection.gone.wait()
    assert service.cancelled.is_set()
    assert not connection._running


async def test_a_thousand_connections(server, service, open_raw):
    raws = [await open_raw() for _ in range(1000)]
    for raw in raws:
        raw.knows(1)
        raw.write(head(1) + data(1, "hi"))
    for raw in raws:
        events = await raw.read(lambda e: isinstance(e, HeadersReceived) and e.ended)
        assert any(isinstance(e, DataReceived) for e in events)
    assert server.connections == 1000
    assert len(service.calls) == 1000
    for raw in raws:
        raw.writer.transport.abort()
    await gone(server, 0)


async def test_errors_of_a_channel_whose_server_calls_for_calm(stub, server):
    """Our own client says why."""
    task = asyncio.ensure_future(stub.say(message("hang")))
    await turns()
    (connection,) = server._connections
    while not connection.http2.streams:
        await turns()
    (stream,) = connection.http2.streams.values()
    connection.http2.reset(stream, ErrorCode.ENHANCE_YOUR_CALM)
    connection.flush()
    with pytest.raises(errors.ResourceExhausted):
        await task


@pytest.mark.parametrize(("text", "told"), [("too many pings", "too many pings"), ("", "code 11")])
async def test_a_channel_says_why_it_was_hung_up_on(stub, server, service, text, told):
    task = asyncio.ensure_future(stub.say(message("hang")))
    await service.started.wait()
    (connection,) = server._connections
    connection.http2.close(ErrorCode.ENHANCE_YOUR_CALM, text)
    connection.flush()
    connection.hang_up()
    with pytest.raises(errors.Unavailable, match=f"the connection was lost: .*{told}"):
        await task
