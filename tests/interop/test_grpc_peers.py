"""Our gRPC against the implementations that others wrote: grpcio as client and as server, Go's
client in ``ctr``, and Go's server in containerd."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import uvloop
from harness.daemon import Daemon
from harness.echo import ECHO, EchoService, message

from cradled import errors
from cradled.api import content_pb2, introspection_pb2, namespaces_pb2, version_pb2, wellknown_pb2
from cradled.api.version_pb2 import VersionResponse
from cradled.rpc.grpc_client import connect
from cradled.rpc.grpc_server import GrpcServer
from cradled.rpc.service import Router
from cradled.rpc.stub import Stub

MIB = 1 << 20
LIMITS = [
    ("grpc.max_receive_message_length", 16 * MIB),
    ("grpc.max_send_message_length", 32 * MIB),
]


# Our server, others' clients


class VersionService:
    async def version(self, call, request):
        return VersionResponse(version="v2.3.4+cradled.test", revision="r")


class IntrospectionService:
    async def server(self, call, request):
        return introspection_pb2.ServerResponse(uuid="11111111-2222", pid=os.getpid())


class Served:
    """Our server on a thread with a loop of its own, as clients here block."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.service: EchoService
        self._ready = threading.Event()
        self._thread = threading.Thread(target=uvloop.run, args=(self._main(),))
        self._thread.start()
        assert self._ready.wait(20)

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self.service = EchoService()
        router = Router()
        router.add(ECHO, self.service)
        router.add(version_pb2.Version, VersionService())
        router.add(introspection_pb2.Introspection, IntrospectionService())
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(self.path))
            sock.listen(100)
            server = GrpcServer(router)
            await server.serve(sock)
            self._ready.set()
            await self._stop.wait()
            await server.stop(1)

    def wait(self, event: asyncio.Event) -> None:
        """Wait for something that happens on the server's loop."""
        asyncio.run_coroutine_threadsafe(event.wait(), self._loop).result(20)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path / "s.sock")
    yield served
    served.stop()


class Client:
    """grpcio's synchronous client of the echo service."""

    def __init__(self, path: Path, **options: object) -> None:
        self.channel = grpc.insecure_channel(f"unix:{path}", options=LIMITS, **options)
        self.say = self._bind("unary_unary", "Say")
        self.count = self._bind("unary_stream", "Count")
        self.join = self._bind("stream_unary", "Join")
        self.chat = self._bind("stream_stream", "Chat")

    def _bind(self, kind: str, name: str):
        return getattr(self.channel, kind)(
            f"/test.Echo/{name}",
            request_serializer=VersionResponse.SerializeToString,
            response_deserializer=VersionResponse.FromString,
        )


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    client = Client(served.path)
    with client.channel:
        yield client


def test_grpcio_client_makes_all_kinds_of_calls(client: Client) -> None:
    assert client.say(message("hi")).version == "hi"
    assert [r.version for r in client.count(message("3"))] == ["0", "1", "2"]
    assert client.join(iter([message("a"), message("b")])).version == "a,b"
    words = ["a", "b", "c"]
    assert [r.version for r in client.chat(message(w) for w in words)] == words
    assert [r.version for r in client.chat(iter(()))] == []


def test_grpcio_client_sees_metadata(client: Client, served: Served) -> None:
    call = client.count(message("1"), metadata=[("key", "v"), ("raw-bin", b"\x00\xff")])
    assert len(list(call)) == 1
    assert dict(call.initial_metadata())["from"] == "zero"
    assert dict(call.trailing_metadata())["to-bin"] == b"\x00\xff"
    (seen,) = served.service.calls
    assert seen.metadata["key"] == "v"
    assert seen.binary["raw-bin"] == b"\x00\xff"
    assert seen.peer.pid == os.getpid()


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        (message("fail"), grpc.StatusCode.NOT_FOUND, "it: not found"),
        (message("fail", "漢 %\n"), grpc.StatusCode.NOT_FOUND, "漢 %\n: not found"),
        (message("bug"), grpc.StatusCode.UNKNOWN, "oops"),
    ],
)
def test_grpcio_client_sees_errors(client: Client, request_, code, text) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        client.say(request_)
    assert (caught.value.code(), caught.value.details()) == (code, text)


def test_grpcio_client_sees_what_is_missing(client: Client) -> None:
    for path, text in (
        ("/no.Such/Thing", "unknown service no.Such"),
        ("/test.Echo/Thing", "unknown method Thing for service test.Echo"),
        ("/test.Echo/Absent", "method Absent not implemented"),
    ):
        call = client.channel.unary_unary(path)
        with pytest.raises(grpc.RpcError) as caught:
            call(b"")
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
        assert caught.value.details() == text


def test_grpcio_client_sends_garbage(client: Client) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        client.channel.unary_unary("/test.Echo/Say")(b"\xff\xff\xff")
    assert caught.value.code() == grpc.StatusCode.INTERNAL


def test_grpcio_client_has_deadlines(client: Client, served: Served) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        client.say(message("hang"), timeout=0.2)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    served.wait(served.service.cancelled)
    assert client.say(message("hi"), timeout=60).version == "hi"


def test_grpcio_client_cancels_midway(client: Client, served: Served) -> None:
    requests = iter([message("a")])
    hold = threading.Event()

    def produce():
        yield from requests
        hold.wait(20)

    call = client.chat(produce())
    assert next(call).version == "a"
    call.cancel()
    served.wait(served.service.cancelled)
    hold.set()
    with pytest.raises(grpc.RpcError):
        list(call)
    assert client.say(message("hi")).version == "hi"


def test_grpcio_client_hears_early_ends(client: Client) -> None:
    """The handler ends while the client still sends."""
    hold = threading.Event()

    def produce():
        yield message("end")
        hold.wait(20)

    assert [r.version for r in client.chat(produce())] == ["end"]
    hold.set()


def test_grpcio_client_moves_large_messages(client: Client) -> None:
    text = "x" * (16 * MIB - 64)
    assert client.say(message(text)).version == text
    assert [len(r.version) for r in client.chat(iter([message(text)] * 3))] == [len(text)] * 3
    with pytest.raises(grpc.RpcError) as caught:
        client.say(message("x" * (16 * MIB + 1)))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(grpc.RpcError) as caught:
        client.say(message("big", str(17 * MIB)))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_grpcio_client_compresses(served: Served) -> None:
    client = Client(served.path, compression=grpc.Compression.Gzip)
    with client.channel:
        assert client.say(message("a" * 100_000)).version == "a" * 100_000
        assert client.join(iter([message("b" * 5000)] * 3)).version.count("b") == 15_000
    client = Client(served.path, compression=grpc.Compression.Deflate)
    with client.channel:
        with pytest.raises(grpc.RpcError) as caught:
            client.say(message("a" * 100_000))
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_grpcio_client_reads_slowly(client: Client, served: Served) -> None:
    call = client.count(message("64", str(MIB)))
    assert len(next(call).version) == MIB
    assert served.service.sent < 64  # its windows end well before
    assert len(list(call)) == 63


def test_grpcio_client_opens_a_thousand_streams(client: Client) -> None:
    futures = [client.say.future(message("slow")) for _ in range(1000)]
    assert all(future.result().version == "slow" for future in futures)


def test_grpcio_client_holds_a_thousand_streams(served: Served) -> None:
    async def chats() -> None:
        async with grpc.aio.insecure_channel(f"unix:{served.path}") as channel:
            chat = channel.stream_stream(
                "/test.Echo/Chat",
                request_serializer=VersionResponse.SerializeToString,
                response_deserializer=VersionResponse.FromString,
            )
            calls = [chat() for _ in range(1000)]
            for i, call in enumerate(calls):
                await call.write(message(str(i)))
            for i, call in enumerate(calls):
                assert (await call.read()).version == str(i)
            for call in calls:
                await call.done_writing()
            for call in calls:
                assert await call.read() is grpc.aio.EOF

    asyncio.run(chats())


def test_ctr_asks_for_the_version(served: Served) -> None:
    done = subprocess.run(
        ["ctr", "-a", str(served.path), "version"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    _, server = done.stdout.split("Server:")
    assert "v2.3.4+cradled.test" in server
    assert "11111111-2222" in server


def test_ctr_sees_our_errors(served: Served) -> None:
    done = subprocess.run(
        ["ctr", "-a", str(served.path), "namespaces", "ls"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr == (
        "ctr: unknown service containerd.services.namespaces.v1.Namespaces: not implemented\n"
    )


# Our client, others' servers


class GrpcioServer:
    """The echo service, in grpcio's words."""

    def __init__(self, path: Path) -> None:
        self.metadata: dict[str, str | bytes] = {}
        self.started = threading.Event()
        self.cancelled = threading.Event()
        self.remaining: list[float | None] = []
        self._server = grpc.server(ThreadPoolExecutor(16), options=LIMITS)
        kinds = {
            "Say": grpc.unary_unary_rpc_method_handler,
            "Count": grpc.unary_stream_rpc_method_handler,
            "Join": grpc.stream_unary_rpc_method_handler,
            "Chat": grpc.stream_stream_rpc_method_handler,
        }
        handlers = {
            name: kind(
                getattr(self, name.lower()),
                request_deserializer=VersionResponse.FromString,
                response_serializer=VersionResponse.SerializeToString,
            )
            for name, kind in kinds.items()
        }
        handler = grpc.method_handlers_generic_handler("test.Echo", handlers)
        self._server.add_generic_rpc_handlers((handler,))
        self._server.add_insecure_port(f"unix:{path}")
        self._server.start()

    def say(self, request, context):
        self.metadata = dict(context.invocation_metadata())
        self.remaining.append(context.time_remaining())
        if request.version == "fail":
            context.abort(grpc.StatusCode.ALREADY_EXISTS, "漢 100%: already exists")
        if request.version == "hang":
            context.add_callback(self.cancelled.set)
            self.started.set()
            self.cancelled.wait(20)
        if request.version == "big":
            return message("y" * (int(request.revision)))
        return request

    def count(self, request, context):
        context.send_initial_metadata([("from", "zero")])
        context.set_trailing_metadata([("to-bin", b"\x00\xff")])
        for i in range(int(request.version)):
            yield message(str(i))

    def join(self, requests, context):
        return message(",".join(request.version for request in requests))

    def chat(self, requests, context):
        for request in requests:
            yield request
            if request.version == "end":
                return

    def stop(self) -> None:
        self._server.stop(0).wait()


@pytest.fixture
def grpcio_server(tmp_path: Path) -> Iterator[GrpcioServer]:
    server = GrpcioServer(tmp_path / "g.sock")
    yield server
    server.stop()


@pytest.fixture
async def channel(grpcio_server: GrpcioServer, tmp_path: Path):
    async with await connect(f"unix://{tmp_path}/g.sock") as channel:
        yield channel


@pytest.fixture
async def stub(channel) -> Stub:
    return Stub(channel, ECHO, [("containerd-namespace", "n1")])


async def test_our_client_makes_all_kinds_of_calls(stub: Stub, channel) -> None:
    assert (await stub.say(message("hi"))).version == "hi"
    assert [r.version async for r in stub.count(message("3"))] == ["0", "1", "2"]
    async with stub.join() as stream:
        for word in ("a", "b"):
            await stream.send(message(word))
        await stream.done()
        assert (await stream.recv()).version == "a,b"
    async with stub.chat() as stream:
        for word in ("a", "b", "end"):
            await stream.send(message(word))
            assert (await stream.recv()).version == word
        assert await stream.recv() is None
    async with channel.open(ECHO.methods["Count"]) as stream:
        await stream.send_only(message("1"))
        assert len([r async for r in stream]) == 1
        assert stream.initial_metadata["from"] == "zero"
        assert stream.trailing_binary["to-bin"] == b"\x00\xff"


async def test_our_client_sends_metadata_and_deadlines(stub: Stub, grpcio_server) -> None:
    await stub.say(message("hi"), metadata=[("raw-bin", "AP8")], timeout=50)
    assert grpcio_server.metadata["containerd-namespace"] == "n1"
    assert grpcio_server.metadata["raw-bin"] == b"\x00\xff"
    assert 0 < grpcio_server.remaining[0] <= 50
    with pytest.raises(errors.DeadlineExceeded):
        await stub.say(message("hang"), timeout=0.2)
    await asyncio.to_thread(grpcio_server.cancelled.wait, 20)
    assert grpcio_server.cancelled.is_set()


async def test_our_client_sees_errors(stub: Stub) -> None:
    with pytest.raises(errors.AlreadyExists, match=r"^漢 100%: already exists$"):
        await stub.say(message("fail"))
    with pytest.raises(errors.Unimplemented):
        await stub.absent(message(""))


async def test_our_client_cancels(stub: Stub, grpcio_server) -> None:
    task = asyncio.ensure_future(stub.say(message("hang")))
    await asyncio.to_thread(grpcio_server.started.wait, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(grpcio_server.cancelled.wait, 20)
    assert (await stub.say(message("hi"))).version == "hi"


async def test_our_client_moves_large_messages(stub: Stub) -> None:
    text = "x" * (16 * MIB - 64)
    assert (await stub.say(message(text))).version == text
    assert len((await stub.say(message("big", str(16 * MIB - 64)))).version) == 16 * MIB - 64
    with pytest.raises(errors.ResourceExhausted):
        await stub.say(message("big", str(16 * MIB)))


async def test_our_client_opens_a_thousand_streams(stub: Stub) -> None:
    calls = [stub.say(message(str(i))) for i in range(1000)]
    assert [r.version for r in await asyncio.gather(*calls)] == [str(i) for i in range(1000)]


async def test_our_client_sees_the_server_stop(stub: Stub, grpcio_server) -> None:
    async with stub.chat() as stream:
        await stream.send(message("a"))
        await stream.recv()
        await asyncio.to_thread(grpcio_server.stop)
        with pytest.raises((errors.Unavailable, errors.Cancelled)):
            await stream.recv()
    with pytest.raises(errors.Unavailable):
        await stub.say(message("hi"))


# Our client, Go's server


@pytest.fixture(scope="module")
def containerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    directory = tmp_path_factory.mktemp("go")
    daemon = Daemon(directory, "containerd")
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.destroy()
        shutil.rmtree(directory)


async def test_our_client_on_containerd(containerd: Daemon) -> None:
    async with await connect(str(containerd.socket)) as channel:
        version = Stub(channel, version_pb2.Version)
        assert "1.6" in (await version.version(wellknown_pb2.Empty())).version
        namespaces = Stub(channel, namespaces_pb2.Namespaces, [("containerd-namespace", "n")])
        name = namespaces_pb2.Namespace(name="ours", labels={"k": "v"})
        await namespaces.create(namespaces_pb2.CreateNamespaceRequest(namespace=name))
        with pytest.raises(errors.AlreadyExists, match=r'namespace "ours": already exists$'):
            await namespaces.create(namespaces_pb2.CreateNamespaceRequest(namespace=name))
        got = await namespaces.get(namespaces_pb2.GetNamespaceRequest(name="ours"), timeout=30)
        assert got.namespace == name
        answers = await asyncio.gather(
            *(version.version(wellknown_pb2.Empty(), timeout=60) for _ in range(500))
        )
        assert len(answers) == 500


async def test_our_client_moves_content_through_containerd(containerd: Daemon) -> None:
    """Its windows are small: 32 MiB each way prove both flow controls."""
    async with await connect(str(containerd.socket)) as channel:
        content = Stub(channel, content_pb2.Content, [("containerd-namespace", "ours")])
        data = os.urandom(MIB) * 32
        async with content.write() as stream:
            request = content_pb2.WriteContentRequest
            await stream.send(request(action=content_pb2.STAT, ref="r"))
            assert (await stream.recv()).offset == 0
            for offset in range(0, len(data), 3 * MIB):
                piece = data[offset : offset + 3 * MIB]
                await stream.send(
                    request(action=content_pb2.WRITE, ref="r", offset=offset, data=piece)
                )
                assert (await stream.recv()).offset == offset + len(piece)
            size = len(data)
            commit = request(action=content_pb2.COMMIT, ref="r", offset=size, total=size)
            await stream.send(commit)
            digest = (await stream.recv()).digest
        read = content.read(content_pb2.ReadContentRequest(digest=digest))
        assert b"".join([part.data async for part in read]) == data
        with pytest.raises(errors.NotFound):
            await content.info(content_pb2.InfoRequest(digest="sha256:" + "0" * 64))
