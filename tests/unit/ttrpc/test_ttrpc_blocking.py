"""The client without a loop, against a server in a thread that speaks by the same core."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from cradled.ttrpc.blocking import Client
from cradled.ttrpc.connection import SERVER, Connection, LocalError, RequestReceived
from cradled.ttrpc.frames import MAX_DATA


class Server:
    """Answers calls by ``answer`` until the client hangs up."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.answer: Callable[[Connection, RequestReceived], None] = self.echo
        self.seen: list[RequestReceived] = []
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def echo(self, connection: Connection, request: RequestReceived) -> None:
        connection.send_response(request.stream_id, request.payload)

    def _serve(self) -> None:
        connection = Connection(SERVER)
        with self.sock:
            while data := self.sock.recv(1 << 16):
                for event in connection.receive_data(data):
                    assert isinstance(event, RequestReceived)
                    self.seen.append(event)
                    self.answer(connection, event)
                with suppress(BrokenPipeError):  # a test's answer was to hang up
                    self.sock.sendall(connection.data_to_send())


@pytest.fixture
def pair() -> Iterator[tuple[Client, Server]]:
    ours, theirs = socket.socketpair()
    server = Server(theirs)
    with Client(ours) as client:
        yield client, server
    server.thread.join()


def test_calls(pair: tuple[Client, Server]) -> None:
    client, server = pair
    for payload in (b"", b"x" * 300_000):
        response = client.call("s.S", "M", payload, metadata=[("k", "v")], timeout=30)
        assert (response.code, response.payload) == (0, payload)
    assert client.call("s.S", "M", b"").code == 0
    first, _, last = server.seen
    assert (first.service, first.method, first.metadata) == ("s.S", "M", [("k", "v")])
    assert 0 < first.timeout_nano <= 30_000_000_000
    assert last.timeout_nano == 0


def test_errors(pair: tuple[Client, Server]) -> None:
    client, server = pair
    server.answer = lambda c, r: c.send_response(r.stream_id, code=5, message="gone")
    response = client.call("s.S", "M", b"")
    assert (response.code, response.message) == (5, "gone")
    with pytest.raises(LocalError):
        client.call("s.S", "M", bytes(MAX_DATA))
    server.answer = lambda c, r: None
    with pytest.raises(TimeoutError):
        client.call("s.S", "M", b"", timeout=0.01)


def test_a_server_that_goes(pair: tuple[Client, Server]) -> None:
    client, server = pair
    server.answer = lambda c, r: server.sock.shutdown(socket.SHUT_RDWR)
    with pytest.raises(ConnectionError):
        client.call("s.S", "M", b"")


def test_nobody_there(tmp_path: object) -> None:
    with pytest.raises(FileNotFoundError):
        Client.connect(f"{tmp_path}/none")
