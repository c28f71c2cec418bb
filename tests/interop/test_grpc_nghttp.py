"""nghttp and h2load on our server: what gRPC libraries never send, and many of everything."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
from harness.echo import ECHO
from harness.peers import PATIENCE, PeerService, Spec

from cradled.rpc.grpc_server import GrpcServer
from cradled.rpc.grpc_wire import PREFIX
from cradled.rpc.service import Router

GRPC = ("-H", "content-type: application/grpc", "-H", "te: trailers")
MIB = 1 << 20


class Served(NamedTuple):
    server: GrpcServer
    url: str
    path: Path
    bodies: Path

    def body(self, spec: Spec, *more: Spec) -> str:
        """A file with a call's requests."""
        parts = [spec.message().SerializeToString() for spec in (spec, *more)]
        file = self.bodies / f"body{len(list(self.bodies.iterdir()))}"
        file.write_bytes(b"".join(PREFIX.pack(0, len(part)) + part for part in parts))
        return str(file)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """Our server on a unix socket and on loopback TCP, which is all that nghttp can do."""
    router = Router()
    router.add(ECHO, PeerService())
    server = GrpcServer(router)
    local, inet = socket.socket(socket.AF_UNIX), socket.socket()
    local.bind(str(tmp_path / "s"))
    inet.bind(("127.0.0.1", 0))
    for sock in (local, inet):
        sock.listen(1024)
        await server.serve(sock)
    bodies = tmp_path / "bodies"
    bodies.mkdir()
    url = f"http://127.0.0.1:{inet.getsockname()[1]}/test.Echo"
    yield Served(server, url, tmp_path / "s", bodies)
    await server.stop(0)


async def run(*command: str) -> str:
    """The output of a command that succeeds."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(PATIENCE):
            out, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0, out.decode()
    return out.decode()


OPTIONS = {
    "plain": (),
    "continuation": ("--continuation",),
    "padding": ("--padding=200",),
    "no table": ("--header-table-size=0",),
    "small table": ("--header-table-size=64",),
    "table resized midway": ("--header-table-size=0", "--header-table-size=4096"),
    "small encoder table": ("--encoder-header-table-size=32",),
    "small windows": ("--window-bits=4", "--connection-window-bits=4"),
    "largest windows": ("--window-bits=30", "--connection-window-bits=30"),
    "trailers": ("--trailer", "some: trailer"),
    "no priorities": ("--no-dep",),
    "weight": ("--weight=256",),
    "one stream of ours": ("--max-concurrent-streams=1", "--no-push"),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
async def test_calls_of_nghttp(served: Served, options: tuple[str, ...]) -> None:
    """Twice on one connection, so that tables have been used."""
    body = served.body(Spec("hi", "x", size=3000))
    methods = (f"{served.url}/Say", f"{served.url}/Join")
    out = await run("nghttp", "-nv", *GRPC, *options, "-d", body, *methods)
    lines = [line.partition(") ")[2] for line in out.splitlines() if "recv (stream_id=" in line]
    for field in (":status: 200", "content-type: application/grpc", "grpc-status: 0"):
        assert lines.count(field) == 2
    assert "recv GOAWAY" not in out
    assert set(re.findall(r"recv RST_STREAM .*\n +\(error_code=(\w+)", out)) <= {"NO_ERROR"}


async def test_streams_of_nghttp_in_small_windows(served: Served) -> None:
    body = served.body(Spec("5", "1000"))
    out = await run(
        "nghttp", "-nv", *GRPC, "--window-bits=8", "--connection-window-bits=8", "-d", body,
        f"{served.url}/Count",
    )  # fmt: skip
    frames = re.findall(r"recv DATA frame <length=(\d+)", out)
    assert sum(map(int, frames)) == 5 * (1000 + 3 + PREFIX.size)
    assert max(map(int, frames)) <= 255
    assert "grpc-status: 0" in out


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (("-H", "content-type: text/plain"), "415"),
        ((), "415"),
    ],
)
async def test_what_is_no_grpc(served: Served, headers: tuple[str, ...], status: str) -> None:
    body = served.body(Spec("hi"))
    out = await run("nghttp", "-nv", *headers, "-d", body, f"{served.url}/Say")
    assert f":status: {status}" in out


async def load(served: Served, method: str, body: str, count: int, *options: str) -> str:
    """Run h2load on the unix socket; all of ``count`` requests are answered."""
    out = await run(
        "h2load", "-n", str(count), *options, *GRPC, "-d", body, "-B", f"unix:{served.path}",
        f"http://localhost/test.Echo/{method}",
    )  # fmt: skip
    assert f"{count} done, {count} succeeded, 0 failed, 0 errored, 0 timeout" in out, out
    assert f"status codes: {count} 2xx" in out
    return out


def data_received(out: str) -> int:
    """Bytes of DATA that h2load got."""
    found = re.search(r"traffic: .*\((\d+)\) data", out)
    assert found is not None
    return int(found[1])


SHAPES = {
    "one at a time": (200, ("-c", "1", "-m", "1")),
    "a thousand streams on a connection": (3000, ("-c", "1", "-m", "1000")),
    "a thousand connections": (2000, ("-c", "1000", "-m", "2")),
    "no header table": (500, ("-c", "2", "-m", "10", "--header-table-size=0")),
    "small encoder table": (500, ("-c", "2", "-m", "10", "--encoder-header-table-size=32")),
    "small windows": (500, ("-c", "2", "-m", "50", "-w", "6", "-W", "6")),
}


@pytest.mark.parametrize(("count", "options"), SHAPES.values(), ids=SHAPES)
async def test_unary_calls_of_h2load(served: Served, count: int, options: tuple[str, ...]) -> None:
    message = Spec("hi", size=100)
    out = await load(served, "Say", served.body(message), count, *options)
    size = PREFIX.size + len(message.message().SerializeToString())
    assert data_received(out) == count * size


async def test_streams_of_h2load_share_a_small_window(served: Served) -> None:
    """A hundred streams of 64 KiB each, through windows of 64 KiB for all of them."""
    body = served.body(Spec("4", "16000"))
    out = await load(served, "Count", body, 100, "-c", "1", "-m", "100", "-w", "16", "-W", "16")
    assert data_received(out) == 100 * 4 * (16000 + 3 + PREFIX.size)


async def test_chats_of_h2load(served: Served) -> None:
    """Half closed by the client before the first answer."""
    body = served.body(*(Spec(word, size=MIB) for word in "abc"))
    out = await load(served, "Chat", body, 8, "-c", "2", "-m", "4")
    assert data_received(out) == 8 * 3 * (MIB + 4 + PREFIX.size)
