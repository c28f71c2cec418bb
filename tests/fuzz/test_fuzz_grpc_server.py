"""The shell of a gRPC server against frames that are nearly right: nothing it does may raise.

What a protocol raises in a callback is logged by the loop and the connection is lost, whatever
other calls it carries. So the server's connection is driven by hand here, with a transport that
takes what it is given, pauses and goes on at random.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from typing import Any

import pytest
from harness.echo import ECHO, EchoService, message
from hypothesis import given, settings
from hypothesis import strategies as st

from cradled.http2 import frames, hpack
from cradled.http2.frames import DATA, END_HEADERS, END_STREAM, HEADERS, frame
from cradled.rpc import grpc_connection, grpc_server, grpc_wire
from cradled.rpc.eager import Starter
from cradled.rpc.grpc_server import GrpcServer, _ServerConnection
from cradled.rpc.grpc_wire import PREFIX
from cradled.rpc.service import Router

SOCKET = socket.socket()  # not a unix socket: there is no peer to ask for


@pytest.fixture(scope="module", autouse=True)
def surroundings() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpc_connection, "LAST_WORDS", 0.001)
        patch.setattr(grpc_server, "LAST_WORDS", 0.001)
        yield
    SOCKET.close()


class Wire:
    """A transport to nobody."""

    def __init__(self) -> None:
        self.closing = False
        self.reading = True
        self.written = 0
        self.lost: Callable[[], object] | None = None

    def get_extra_info(self, name: str) -> Any:
        return SOCKET if name == "socket" else None

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return self.written

    def is_closing(self) -> bool:
        return self.closing

    def can_write_eof(self) -> bool:
        return True

    def write(self, data: bytes) -> None:
        assert not self.closing
        self.written += len(data)

    def write_eof(self) -> None:
        pass

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            if self.lost is not None:
                asyncio.get_running_loop().call_soon(self.lost)

    abort = close

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True


def head(method: str, *more: tuple[str, str], timeout: float | None = None) -> bytes:
    return grpc_wire.request_block(f"/test.Echo/{method}", "x", more, timeout)


def body(text: str, revision: str = "") -> bytes:
    data = message(text, revision).SerializeToString()
    return PREFIX.pack(0, len(data)) + data


stream_ids = st.sampled_from([1, 1, 3, 3, 5, 7, 9])
ends = st.sampled_from([0, 0, END_STREAM])
blocks = st.sampled_from(
    [
        head("Say"),
        head("Chat"),
        head("Count"),
        head("Join"),
        head("Say", ("grpc-encoding", "gzip")),
        head("Chat", timeout=0.001),
        head("Say", timeout=0.001),
        head("Join", timeout=0.001),
        head("Say", timeout=0.001),
        head("Absent"),
        head("Nothing"),
        hpack.encode([(b":method", b"GET")]),
        hpack.encode([(b"Upper", b"x")]),
        b"\x82",
    ]
)
payloads = st.sampled_from(
    [
        body("hi"),
        body("slow"),
        body("hang"),
        body("3", "100"),
        body("100", "50000"),
        body("fail"),
        body("details"),
        body("end"),
        body("hi") * 3,
        body("hi")[:7],
        body("hi")[7:],
        PREFIX.pack(0, 1 << 30),
        PREFIX.pack(1, 3) + b"abc",
        PREFIX.pack(0, 2) + b"\xff\xff",
        b"",
    ]
)
calls = st.builds(
    lambda i, block, data, end: frame(HEADERS, END_HEADERS, i, block) + frame(DATA, end, i, data),
    stream_ids,
    blocks,
    payloads,
    ends,
)
parts = st.one_of(
    calls,
    calls,
    st.builds(lambda i, e, b: frame(HEADERS, END_HEADERS | e, i, b), stream_ids, ends, blocks),
    st.builds(lambda i, e, d: frame(DATA, e, i, d), stream_ids, ends, payloads),
    st.builds(lambda i: frames.rst_stream(i, 8), stream_ids),
    st.builds(lambda i, n: frames.window_update(i, n), stream_ids, st.integers(0, 1 << 20)),
    st.builds(lambda n: frames.settings([(4, n)]), st.integers(0, 1 << 20)),
    st.binary(max_size=12),
)
steps = st.lists(
    st.one_of(
        st.lists(parts, min_size=1, max_size=6).map(b"".join),
        st.sampled_from(["turn", "turns", "turns", "pause", "resume", "drain"]),
    ),
    max_size=12,
)


async def drive(script: list[bytes | str], ending: str, random: Random) -> None:
    failures: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: failures.append(context))
    router = Router()
    router.add(ECHO, EchoService())
    server = GrpcServer(router)
    server.starter = Starter(loop)
    connection = _ServerConnection(server, server._connections, None)
    wire = Wire()
    wire.lost = partial(connection.connection_lost, None)
    done = loop.create_future()

    def play(script: list[bytes | str]) -> None:
        """Callbacks of the loop, one a turn: handlers start in callbacks, not in tasks."""
        try:
            pause = perform(connection, wire, script, random)
        except Exception as error:
            done.set_exception(error)
            return
        if pause is None:
            done.set_result(None)
        else:
            loop.call_later(pause[0], play, pause[1])

    connection.connection_made(wire)  # type: ignore[arg-type]
    loop.call_soon(play, [frames.PREFACE + frames.settings([]), *script])
    await done
    async with asyncio.timeout(10):
        if ending == "stop":
            await server.stop(0)
        else:
            wire.close()
            await connection.gone.wait()
            server.starter.close()
    await asyncio.sleep(0)
    assert not failures
    assert not connection._running
    assert connection.account.used == 0
    assert len(asyncio.all_tasks()) <= 2  # ours, and a host that has been told to end


def perform(
    connection: _ServerConnection, wire: Wire, script: list[bytes | str], random: Random
) -> tuple[float, list[bytes | str]] | None:
    """Play a script up to a pause: how long it is, and what comes after."""
    for at, step in enumerate(script):
        if isinstance(step, bytes):
            receive(connection, wire, step, random)
        elif step == "pause":
            connection.pause_writing()
        elif step == "resume":
            connection.resume_writing()
        elif step == "drain":
            connection.drain()
        else:
            return 0.002 if step == "turns" else 0, script[at + 1 :]
    return None


def receive(connection: _ServerConnection, wire: Wire, data: bytes, random: Random) -> None:
    while data and wire.reading and not wire.closing:
        place = connection.get_buffer(-1)
        size = min(len(place), random.choice([1, 10, 100, 1 << 20]), len(data))
        place[:size] = data[:size]
        connection.buffer_updated(size)
        data = data[size:]


@settings(max_examples=100, deadline=None)
@given(steps, st.sampled_from(["stop", "lost"]), st.integers(0, 1000))
def test_nothing_raises(script: list[bytes | str], ending: str, seed: int) -> None:
    asyncio.run(drive(script, ending, Random(seed)))
