from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from pathlib import Path

import pytest

from cradled.daemon import http1
from cradled.daemon.http1 import HttpError, HttpServer, Request, Response, end_of_head, parse


async def echo(request: Request) -> Response:
    return Response(json.dumps([request.path, dict(request.query)]).encode(), "application/json")


async def below(request: Request) -> Response:
    return Response(b"below " + request.path.encode())


async def broken(request: Request) -> Response:
    raise ValueError("no luck")


async def refusing(request: Request) -> Response:
    raise HttpError(HTTPStatus.TOO_MANY_REQUESTS, "later")


async def large(request: Request) -> Response:
    return Response(bytes(8 << 20))


handling: list[str] = []


async def never(request: Request) -> Response:
    handling.append(request.path)
    try:
        await asyncio.Event().wait()
    finally:
        handling.remove(request.path)
    raise AssertionError


ROUTES = {
    "/echo": echo, "/d/": below, "/broken": broken, "/refusing": refusing, "/large": large,
    "/never": never,
}  # fmt: skip


@pytest.fixture
async def server() -> AsyncIterator[HttpServer]:
    made = HttpServer(ROUTES)
    yield made
    await made.stop()
    assert not made.connections


@pytest.fixture
async def path(server: HttpServer, tmp_path: Path) -> str:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(f"{tmp_path}/s")
    sock.listen()
    sock.setblocking(False)
    await server.serve(sock)
    return f"{tmp_path}/s"


async def ask(path: str, request: bytes) -> tuple[int, dict[str, str], bytes]:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines)
    return int(status.split()[1]), fields, body


async def test_answers(path: str) -> None:
    status, fields, body = await ask(
        path, b"GET /e%63ho?a=1&b=x%20y&a=2 HTTP/1.1\r\nHost: x\r\n\r\n"
    )
    assert (status, json.loads(body)) == (200, ["/echo", {"a": "2", "b": "x y"}])
    assert fields["Content-Length"] == str(len(body))
    assert fields["Content-Type"] == "application/json"
    assert fields["Connection"] == "close"


async def test_head_has_no_body(path: str) -> None:
    status, fields, body = await ask(path, b"HEAD /echo HTTP/1.0\n\n")
    assert (status, body) == (200, b"")
    assert int(fields["Content-Length"]) > 0


@pytest.mark.parametrize(
    ("request_", "status", "text"),
    [
        (b"GET /d/x HTTP/1.1\r\n\r\n", 200, b"below /d/x"),
        (b"GET /d/ HTTP/1.1\r\n\r\n", 200, b"below /d/"),
        (b"GET /none HTTP/1.1\r\n\r\n", 404, b"Not Found\n"),
        (b"GET /broken HTTP/1.1\r\n\r\n", 500, b"no luck\n"),
        (b"GET /refusing HTTP/1.1\r\n\r\n", 429, b"later\n"),
        (b"POST /echo HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 405, b"Method Not Allowed\n"),
        (b"GET /echo HTTP/2.0\r\n\r\n", 505, b"HTTP Version Not Supported\n"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, b"HTTP Version Not Supported\n"),
        (b"what\r\n\r\n", 400, b"Bad Request\n"),
        (b"\x16\x03\x01 hello\n\n", 400, b"Bad Request\n"),
        (b"GET  /echo HTTP/1.1\r\n\r\n", 400, b"Bad Request\n"),
        (b"GET /echo HTTP/1.1\r\n folded\r\n\r\n", 400, b"Bad Request\n"),
        (b"GET /echo HTTP/1.1\r\nHost : x\r\n\r\n", 400, b"Bad Request\n"),
        (b"GET //[ HTTP/1.1\r\n\r\n", 400, b"Bad Request\n"),
        (b"GET /echo?" + b"&".join([b"a=1"] * 40) + b" HTTP/1.1\r\n\r\n", 400, b"Bad Request\n"),
        (b"GET /" + b"x" * 9000, 431, b"Request Header Fields Too Large\n"),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 8190 + b"\r\n\r\n", 431,
         b"Request Header Fields Too Large\n"),
    ],
)  # fmt: skip
async def test_every_request_is_answered(
    path: str, request_: bytes, status: int, text: bytes
) -> None:
    found, fields, body = await ask(path, request_)
    assert (found, body) == (status, text)
    assert (fields.get("Allow") == "GET, HEAD") == (status == 405)


async def test_a_request_may_come_byte_by_byte(path: str) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    for byte in b"GET /d/slow HTTP/1.1\r\nHost: x\r\n\r\n":
        writer.write(bytes([byte]))
        await asyncio.sleep(0)
    assert (await reader.read()).endswith(b"below /d/slow")
    writer.close()


async def test_one_who_sends_nothing_is_hung_up_on(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http1, "HEAD_SECONDS", 0.05)
    status, _, _ = await ask(path, b"GET / HT")
    assert status == 408


async def test_one_who_reads_nothing_is_hung_up_on(
    path: str, server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http1, "REPLY_SECONDS", 0.05)
    client = socket.socket(socket.AF_UNIX)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, path)
    await loop.sock_sendall(client, b"GET /large HTTP/1.1\r\n\r\n")
    await until(lambda: len(server.connections) == 1)
    await until(lambda: not server.connections)
    client.close()


async def test_there_is_a_limit_of_connections(path: str, server: HttpServer) -> None:
    clients = [await asyncio.open_unix_connection(path) for _ in range(http1.CONNECTIONS)]
    await until(lambda: len(server.connections) == http1.CONNECTIONS)
    reader, writer = await asyncio.open_unix_connection(path)
    assert await hung_up(reader.read())
    writer.close()
    for _, client in clients:
        client.close()
    await until(lambda: not server.connections)
    assert (await ask(path, b"GET /d/ HTTP/1.1\r\n\r\n"))[0] == 200


async def test_a_client_that_goes_ends_its_handler(path: str, server: HttpServer) -> None:
    _, writer = await asyncio.open_unix_connection(path)
    writer.write(b"GET /never HTTP/1.1\r\n\r\n")
    await until(lambda: handling == ["/never"])
    writer.close()
    await until(lambda: not handling and not server.connections)


async def test_stop_hangs_up(path: str, server: HttpServer) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"GET /never HTTP/1.1\r\n\r\n")
    await until(lambda: handling == ["/never"])
    await server.stop()
    assert not handling
    assert await hung_up(reader.read())
    writer.close()
    await until(lambda: not server.connections)


async def hung_up(reading: Awaitable[bytes]) -> bool:
    try:
        return await reading == b""
    except ConnectionResetError:
        return True


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.001)


def test_heads_end_at_the_first_empty_line() -> None:
    assert end_of_head(b"a\r\nb\r\n") == -1
    assert end_of_head(b"a\r\n\r\nb\n\n") == 5
    assert end_of_head(b"a\n\nb\r\n\r\n") == 3


def test_targets_may_be_absolute() -> None:
    assert parse(b"GET http://h/p?q= HTTP/1.1\r\n\r\n") == Request("GET", "/p", {"q": ""})
