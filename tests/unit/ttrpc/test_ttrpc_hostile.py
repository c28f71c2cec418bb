"""Peers that break ttrpc's rules, or keep them and mean no good: the daemon's server, the shim's,
and both clients. What such a peer can make us hold is bounded, and nobody else notices."""

from __future__ import annotations

import asyncio
import gc
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop

from cradled import errors
from cradled.api.pool import Method, Service
from cradled.api.task_v3_pb2 import StateRequest as Word
from cradled.linux.coroutines import Future, Loop
from cradled.rpc.service import Router
from cradled.rpc.ttrpc_client import TtrpcChannel, attach, connect
from cradled.rpc.ttrpc_server import TtrpcServer
from cradled.shim import log, messages
from cradled.shim.server import Server as ShimServer
from cradled.ttrpc import aio, blocking, frames
from cradled.ttrpc.connection import (
    INVALID_ARGUMENT,
    MAX_OPEN,
    MAX_OPEN_BYTES,
    RESOURCE_EXHAUSTED,
    SERVER,
    Connection,
    LocalError,
    RequestReceived,
)
from cradled.ttrpc.envelope import Request, Response, decode_response, encode_request
from cradled.ttrpc.frames import DATA, HEADER, MAX_DATA, NO_DATA, REMOTE_OPEN, REQUEST, frame

MIB = 1 << 20
NAME = "test.Words"
PATIENCE = 30.0
BOUND = 16 * MIB
"""More than a server ever has to hold for one client here, less than a flood would make it hold."""


def method(name: str, client: bool = False, server: bool = False) -> Method:
    return Method(name, f"/{NAME}/{name}", Word, Word, client, server)


WORDS = Service(NAME, {"Say": method("Say"), "Join": method("Join", client=True)})


# Servers, each on a thread of its own


class AsyncWords:
    def __init__(self) -> None:
        self.hanging = 0
        self.ended = threading.Semaphore(0)
        self._release = asyncio.Event()

    async def say(self, call: Any, request: Any) -> Any:
        word, _, size = request.id.partition(" ")
        if word == "hang":
            self.hanging += 1
            try:
                await self._release.wait()
            finally:
                self.hanging -= 1
        if word == "release":
            self._release.set()
        if word == "count":
            return Word(id=str(self.hanging))
        return Word(id="." * int(size)) if word == "big" else request

    async def join(self, call: Any, requests: Any) -> Any:
        await self._release.wait()
        return Word(id=str(len([request async for request in requests])))


class AsyncServed:
    """The daemon's server."""

    def __init__(self, path: Path, new_loop: Callable[[], Any]) -> None:
        self.path = path
        self._new_loop = new_loop
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._ready.wait(PATIENCE)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=self._new_loop) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        router = Router()
        router.add(WORDS, AsyncWords())
        server = TtrpcServer(router)
        await server.serve(listening(self.path))
        self._ready.set()
        await self._stop.wait()
        await server.stop(0)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()


class ShimWords:
    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._hanging = 0
        self._release = Future()

    async def say(self, request: Any) -> Any:
        word, _, size = request.id.partition(" ")
        if word == "hang":
            self._hanging += 1
            await self._release
            self._hanging -= 1
        if word == "release":
            self._release.set()
        if word == "count":
            return messages.StateRequest(id=str(self._hanging))
        if word == "stop":
            self._loop.stop()
        return messages.StateRequest(id="." * int(size)) if word == "big" else request


class ShimServed:
    """The shim's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = listening(path)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        loop = Loop(log.trace)
        methods = {NAME: {"Say": ("say", messages.StateRequest)}}
        server = ShimServer(
            loop, self._listener, methods, ShimWords(loop), lambda: None, lambda: None
        )
        loop.spawn(server.serve())
        loop.run()

    def stop(self) -> None:
        with Peer(self.path) as peer:
            peer.request("stop")
            self._thread.join()
        self._listener.close()


def listening(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen(4096)
    return sock


@pytest.fixture(params=["asyncio", "uvloop", "shim"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AsyncServed | ShimServed]:
    path = tmp_path / "s"
    if request.param == "shim":
        server: AsyncServed | ShimServed = ShimServed(path)
    else:
        loops = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
        server = AsyncServed(path, loops[request.param])
    yield server
    server.stop()


class Peer:
    """A client that sends what it likes."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        try:
            self.sock.connect(str(path))
        except OSError:
            self.sock.close()
            raise
        self._reader = frames.FrameReader()
        self._got: list[frames.Frame] = []
        self._id = -1

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def request(self, text: str, name: str = "Say", flags: int = 0) -> int:
        self._id += 2
        self.send(request(self._id, text, name, flags))
        return self._id

    def requests(self, text: str, count: int) -> list[int]:
        """Many at once."""
        numbers = list(range(self._id + 2, self._id + 2 + 2 * count, 2))
        self._id = numbers[-1]
        self.send(b"".join(request(number, text) for number in numbers))
        return numbers

    def next(self) -> tuple[int, Response]:
        """The next response and its stream."""
        while not self._got:
            data = self.sock.recv(1 << 20)
            assert data, "the server hung up"
            self._got += self._reader.feed(data)
        got = self._got.pop(0)
        assert got.data is not None
        return got.stream_id, decode_response(got.data)

    def say(self, text: str) -> str:
        """A call, answered before all others."""
        number = self.request(text)
        stream, response = self.next()
        assert (stream, response.code) == (number, 0)
        return Word.FromString(response.payload).id

    def flood(self, data: bytes, most: int) -> int:
        """Send that again and again until the server takes no more: how many bytes it took."""
        sent, whole = 0, data * (MIB // len(data) + 1)
        while sent < most and select.select([], [self.sock], [], 0.2)[1]:
            sent += self.sock.send(whole[sent % len(data) :], socket.MSG_DONTWAIT)
        return sent


def request(number: int, text: str, name: str = "Say", flags: int = 0) -> bytes:
    payload = Word(id=text).SerializeToString()
    return frame(number, REQUEST, flags, encode_request(Request(NAME, name, payload)))


def held() -> int:
    """Bytes that servers of this process hold to be sent, in their cores and their sockets."""
    total = 0
    for thing in gc.get_objects():
        if type(thing) is Connection:
            total += sum(map(len, thing._out))
        elif isinstance(thing, aio.ServerConnection) and thing.transport is not None:
            total += thing.transport.get_write_buffer_size()
    return total


Served = AsyncServed | ShimServed


def test_who_never_reads_is_not_read_from(served: Served) -> None:
    """Requests are small and answers large: a bounded number of them are made."""
    with Peer(served.path) as flooder, Peer(served.path) as other:
        count = 0
        flooder.sock.setblocking(False)
        try:
            while count < 2000:
                flooder.request(f"big {MIB // 2}")
                count += 1
        except BlockingIOError:
            pass
        flooder.sock.settimeout(PATIENCE)
        for _ in range(20):
            assert other.say("hi") == "hi"
        assert held() < BOUND
        for _ in range(count):
            _, response = flooder.next()
            assert len(response.payload) > MIB // 2
        assert other.say("hi") == "hi"


@pytest.mark.parametrize(
    "data",
    [
        frame(2, REQUEST, 0, b""),
        frame(9, DATA, 0, b""),
        HEADER.pack(0, 1, 77, 0xFF),
        request(1, "again"),
    ],
    ids=["even streams", "data of no stream", "unknown types", "a stream used again"],
)
def test_floods_of_wrong_frames(served: Served, data: bytes) -> None:
    with Peer(served.path) as flooder, Peer(served.path) as other:
        assert flooder.say("first") == "first"
        answered = HEADER.unpack_from(data)[2] != 77
        most = 4 * MIB if answered else MIB // 2
        taken = flooder.flood(data, most)
        assert taken < 3 * MIB
        assert held() < BOUND
        assert other.say("hi") == "hi"


def test_each_wrong_frame_is_answered(served: Served) -> None:
    texts = {
        2: (INVALID_ARGUMENT, "StreamID must be odd for client initiated streams"),
        5: (INVALID_ARGUMENT, "StreamID is no longer active"),
        1: (INVALID_ARGUMENT, "StreamID cannot be re-used and must increment"),
        7: (RESOURCE_EXHAUSTED, f"message length {MAX_DATA + 1} exceed maximum message size of"),
        9: (INVALID_ARGUMENT, "unmarshal request error: "),
        11: (INVALID_ARGUMENT, "unmarshal request error: "),
    }
    bad_payload = encode_request(Request(NAME, "Say", b"\xff\xff"))
    with Peer(served.path) as peer:
        assert peer.say("hi") == "hi"
        peer.send(frame(2, REQUEST, 0) + frame(5, DATA, 0, b"x") + request(1, "again"))
        peer.send(HEADER.pack(MAX_DATA + 1, 7, REQUEST, 0) + bytes(MAX_DATA + 1))
        peer.send(frame(9, REQUEST, 0, b"\x0a\xff") + frame(11, REQUEST, 0, bad_payload))
        peer.send(HEADER.pack(3, 13, 200, 0xFF) + b"abc")
        got = {}
        for _ in texts:
            stream, response = peer.next()
            got[stream] = (response.code, response.message[: len(texts[stream][1])])
        assert got == texts
        peer._id = 13
        assert peer.say("still here") == "still here"


def test_half_open_connections(served: Served) -> None:
    with ExitStack() as stack:
        for start in (b"", HEADER.pack(100, 1, REQUEST, 0)[:7], request(1, "hi")[:-1]):
            for _ in range(50):
                stack.enter_context(Peer(served.path)).send(start)
        huge = stack.enter_context(Peer(served.path))
        huge.send(HEADER.pack(0xFFFFFFFF, 1, REQUEST, 0))
        stream, response = huge.next()
        assert (stream, response.code) == (1, RESOURCE_EXHAUSTED)
        with Peer(served.path) as other:
            assert other.say("hi") == "hi"
    with Peer(served.path) as other:
        assert other.say("hi") == "hi"


def test_a_thousand_connections(served: Served) -> None:
    with ExitStack() as stack:
        peers = [stack.enter_context(Peer(served.path)) for _ in range(1000)]
        for number, peer in enumerate(peers):
            peer.request(str(number))
        for number, peer in enumerate(peers):
            _, response = peer.next()
            assert Word.FromString(response.payload).id == str(number)
        assert peers[0].say("hi") == "hi"


def test_ten_thousand_streams(served: Served) -> None:
    with Peer(served.path) as peer, Peer(served.path) as other:
        numbers = peer.requests("hang", 10_000)
        assert peer.say("count") == "10000"
        assert other.say("release") == "release"
        ended = [peer.next() for _ in numbers]
        assert sorted(stream for stream, _ in ended) == numbers
        assert all(response.code == 0 for _, response in ended)
        assert peer.say("count") == "0"


def test_more_calls_than_may_be_open(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_OPEN > 12_000  # a container has a Wait or two
    most = 200
    monkeypatch.setattr("cradled.ttrpc.connection.MAX_OPEN", most)
    with Peer(served.path) as peer, Peer(served.path) as other:
        numbers = peer.requests("hang", most + 10)
        refused = [peer.next() for _ in range(10)]
        assert [stream for stream, _ in refused] == numbers[most:]
        told = {(response.code, response.message) for _, response in refused}
        assert told == {(RESOURCE_EXHAUSTED, "too many calls at once")}
        assert other.say("release") == "release"
        for _ in range(most):
            peer.next()
        assert peer.say("hi") == "hi"


def test_more_bytes_than_open_calls_may_hold(served: Served) -> None:
    """Others have their own share."""
    text = "hang " + "x" * (4 * MIB - 100)
    fit = MAX_OPEN_BYTES // len(text)
    with Peer(served.path) as peer, Peer(served.path) as other:
        for _ in range(fit + 1):
            peer.request(text)
        stream, response = peer.next()
        assert (stream, response.code) == (2 * fit + 1, RESOURCE_EXHAUSTED)
        assert other.say("release") == "release"
        for _ in range(fit):
            peer.next()
        assert len(peer.say("x" * MIB)) == MIB


@pytest.mark.parametrize("served", ["asyncio", "uvloop"], indirect=True)
@pytest.mark.parametrize("size", [0, 100, 100_000])
def test_streamed_messages_that_nobody_takes(served: Served, size: int) -> None:
    with Peer(served.path) as peer, Peer(served.path) as other:
        number = peer.request("", "Join", REMOTE_OPEN)
        data = frame(number, DATA, 0, Word(id="x" * size).SerializeToString())
        taken = peer.flood(data, 12 * MIB)
        assert taken < 4 * MIB
        assert other.say("release") == "release"
        rest = len(data) - taken % len(data)  # finish what is in the air
        peer.send(data[len(data) - rest :] + frame(number, DATA, NO_DATA | 1))
        stream, response = peer.next()
        assert stream == number
        # The first message came with the request, and was empty: it does not count.
        assert Word.FromString(response.payload).id == str(taken // len(data) + 1)


def test_open_calls_are_counted_by_bytes() -> None:
    """What has ended counts no more, whichever way it ended."""
    server = Connection(SERVER)
    body = encode_request(Request(NAME, "Say", bytes(MAX_DATA - 100)))
    number = 1
    for end in ("response", "data", "violation", "response"):
        opened = []
        while True:
            (event, *_) = server.receive_data(frame(number, REQUEST, REMOTE_OPEN, body)) or [None]
            if event is None:
                break
            assert isinstance(event, RequestReceived)
            opened.append(number)
            number += 2
        number += 2
        assert len(opened) == MAX_OPEN_BYTES // len(body)
        for stream in opened:
            if end == "response":
                server.send_response(stream)
            elif end == "data":
                server.send_data(stream, b"", end=True)
            else:
                server.receive_data(HEADER.pack(MAX_DATA + 1, stream, DATA, 0))
                server.receive_data(bytes(MAX_DATA + 1))
        server.data_to_send()
        assert server.open_streams == 0


# Clients, and servers that are no better


async def test_both_sides_have_much_to_say(tmp_path: Path) -> None:
    """Neither waits for the other to read first."""
    router = Router()
    router.add(WORDS, AsyncWords())
    server = TtrpcServer(router)
    await server.serve(listening(tmp_path / "s"))
    channel = await connect(f"{tmp_path}/s")
    calls = [channel.call(method("Say"), Word(id="x" * MIB)) for _ in range(30)]
    async with asyncio.timeout(PATIENCE):
        answers = await asyncio.gather(*calls)
    assert [len(answer.id) for answer in answers] == [MIB] * 30
    await channel.aclose()
    await server.stop(0)


async def against(
    behaviour: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any],
) -> tuple[TtrpcChannel, asyncio.Task[None]]:
    """A channel to a server that behaves that way."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=theirs)

    async def run() -> None:
        try:
            await behaviour(reader, writer)
        except ConnectionError:
            pass  # we have heard enough
        finally:
            writer.close()

    return await attach(ours), asyncio.ensure_future(run())


BAD_ANSWERS = {
    "oversized": HEADER.pack(MAX_DATA + 1, 1, 2, 0) + bytes(MAX_DATA + 1),
    "damaged": frame(1, 2, 0, b"\x0a\xff"),
    "wrong message": frame(1, 2, 0, b"\x12\x02\xff\xff"),
    "data": frame(1, DATA, 0, b"x"),
    "cut short": frame(1, 2, 0, b"\x12\x02")[:-1],
}


@pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=BAD_ANSWERS)
async def test_bad_answers(answer: bytes) -> None:
    noise = frame(77, 2, 0, b"") + frame(4, DATA, 0, b"x") + HEADER.pack(1, 1, 99, 0) + b"z"

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(10)
        writer.write(noise + answer)
        await writer.drain()

    channel, task = await against(behave)
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(errors.Error) as caught:
            await channel.call(method("Say"), Word(id="hi"))
    assert type(caught.value) in (errors.ResourceExhausted, errors.Internal) or "ttrpc: " in str(
        caught.value
    )
    await channel.aclose()
    await task


@pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_bad_answers_to_the_blocking_client(answer: bytes) -> None:
    ours, theirs = socket.socketpair()

    def behave() -> None:
        with theirs, suppress(ConnectionError):
            theirs.recv(100)
            theirs.sendall(answer)

    sender = threading.Thread(target=behave)
    sender.start()
    with blocking.Client(ours) as client:
        if answer in (BAD_ANSWERS["data"], BAD_ANSWERS["cut short"]):
            with pytest.raises(ConnectionError, match=r"^ttrpc: "):
                client.call(NAME, "Say", b"x", timeout=PATIENCE)
        else:
            response = client.call(NAME, "Say", b"x", timeout=PATIENCE)
            known = answer == BAD_ANSWERS["wrong message"]  # the caller finds out
            assert (response.code == 0) == known
    sender.join()


async def test_a_server_that_never_reads() -> None:
    """Calls wait before they are sent, and end in time."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    channel, task = await against(behave)
    word = Word(id="x" * MIB)
    calls = [
        asyncio.ensure_future(channel.call(method("Say"), word, timeout=0.5)) for _ in range(50)
    ]
    await asyncio.sleep(0)
    transport = channel._client.transport
    assert transport is not None
    assert transport.get_write_buffer_size() < 3 * MIB
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(result) for result in results} == {errors.DeadlineExceeded}
    assert transport.get_write_buffer_size() < 3 * MIB
    await channel.aclose()
    task.cancel()
    await asyncio.wait([task])


def test_a_server_that_never_reads_the_blocking_client() -> None:
    ours, theirs = socket.socketpair()
    with theirs, blocking.Client(ours) as client, pytest.raises(TimeoutError):
        client.call(NAME, "Say", bytes(3 * MIB), timeout=0.2)


async def test_a_stream_that_nobody_reads_stops_the_server() -> None:
    """Empty messages too."""
    sent = 0

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readexactly(10)
        piece = frame(1, DATA, 0) * 1000
        while sent < 20 * MIB:
            writer.write(piece)
            sent += len(piece)
            await writer.drain()

    channel, task = await against(behave)
    async with channel.open(method("Count", server=True)) as stream:
        await stream.send(Word(id="go"))
        done, _ = await asyncio.wait([task], timeout=1)
        assert not done
        assert sent < 8 * MIB
        assert await stream.recv() == Word()
    task.cancel()
    await asyncio.wait([task])
    await channel.aclose()


async def test_a_closed_stream_lets_others_go_on() -> None:
    """What waited on it was all that stopped the reading."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(10)
        writer.write(frame(1, DATA, 0, bytes(MIB)) * 8)
        writer.write(frame(3, 2, 0))
        await writer.drain()
        await asyncio.Event().wait()

    channel, task = await against(behave)
    stream = channel.open(method("Count", server=True))
    await stream.send(Word(id="go"))
    call = asyncio.ensure_future(channel.call(method("Say"), Word(id="hi")))
    done, _ = await asyncio.wait([call], timeout=0.5)
    assert not done
    stream.cancel()
    async with asyncio.timeout(PATIENCE):
        assert await call == Word()
    task.cancel()
    await asyncio.wait([task])
    await channel.aclose()


def test_requests_over_the_limit_are_not_sent() -> None:
    ours, theirs = socket.socketpair()
    with theirs, blocking.Client(ours) as client:
        with pytest.raises(LocalError, match="exceed maximum message size"):
            client.call(NAME, "Say", bytes(MAX_DATA))
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
