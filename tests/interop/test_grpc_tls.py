"""Our gRPC server behind TLS, on both loops, as ``grpcio`` uses it."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Iterator

import grpc
import pytest
import uvloop
from harness.echo import ECHO, EchoService, message
from harness.tls import Authority

from cradled.api.version_pb2 import VersionResponse
from cradled.rpc import grpc_server
from cradled.rpc.grpc_server import GrpcServer, Tls
from cradled.rpc.service import Router

LARGE = 8 << 20


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def port(request: pytest.FixtureRequest, authority: Authority) -> Iterator[int]:
    """Where a server in another thread listens, until the test ends."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("server"))
    context.set_alpn_protocols(["h2"])
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    sock.setblocking(False)
    stop: list[Callable[[], object]] = []
    serving = threading.Event()

    async def main() -> None:
        router = Router()
        router.add(ECHO, EchoService())
        server = GrpcServer(router)
        await server.serve(sock, Tls(context))
        end = asyncio.Event()
        loop = asyncio.get_running_loop()
        stop.append(lambda: loop.call_soon_threadsafe(end.set))
        serving.set()
        await end.wait()
        await server.stop(0)
        assert not server.connections

    def run() -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(main())

    thread = threading.Thread(target=run)
    thread.start()
    assert serving.wait(10)
    yield sock.getsockname()[1]
    stop[0]()
    thread.join(20)
    assert not thread.is_alive()


@pytest.fixture
def channel(port: int, authority: Authority) -> Iterator[grpc.Channel]:
    options = [("grpc.max_receive_message_length", -1)]
    trust = grpc.ssl_channel_credentials(authority.ca.read_bytes())
    with grpc.secure_channel(f"localhost:{port}", trust, options) as made:
        yield made


def method(name: str, kind: Callable[..., Callable[..., object]]) -> Callable[..., object]:
    return kind(
        f"/test.Echo/{name}",
        request_serializer=VersionResponse.SerializeToString,
        response_deserializer=VersionResponse.FromString,
    )


def test_large_messages_both_ways(channel: grpc.Channel) -> None:
    say = method("Say", channel.unary_unary)
    text = "".join(map(str, range(LARGE // 7)))
    assert say(message(text), timeout=60).version == text
    assert say(message("big", str(LARGE)), timeout=60).version == "x" * LARGE


def test_streams(channel: grpc.Channel) -> None:
    chat = method("Chat", channel.stream_stream)
    texts = [str(i) * 10_000 for i in range(200)]
    answers = list(chat(map(message, texts), timeout=60))
    assert len(answers) == len(texts)
    count = method("Count", channel.unary_stream)
    assert len(list(count(message("2000", "1000"), timeout=60))) == 2000


def test_many_calls_at_once(channel: grpc.Channel) -> None:
    say = method("Say", channel.unary_unary)
    calls = [say.future(message(f"{i}"), timeout=60) for i in range(300)]
    assert [call.result().version for call in calls] == [f"{i}" for i in range(300)]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_server, "_HANDSHAKE", 0.2)


def test_who_does_not_shake_hands_is_hung_up_on(impatient: None, port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), 20) as silent:
        assert silent.recv(1) == b""
    with socket.create_connection(("127.0.0.1", port), 20) as babbler:
        babbler.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
        assert _rest(babbler) in (b"", _ALERT)


_ALERT = b"alert"


def _rest(sock: socket.socket) -> bytes:
    """What comes until the end: nothing, or an alert of TLS."""
    found = b""
    try:
        while data := sock.recv(100):
            found += data
    except ConnectionResetError:
        return b""
    return _ALERT if found[:1] == b"\x15" else found
