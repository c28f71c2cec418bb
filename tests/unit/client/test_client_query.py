import asyncio
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cradled.api import version_pb2
from cradled.client.query import server_version
from cradled.rpc.grpc_server import GrpcServer
from cradled.rpc.service import Router
from cradled.services.version import VersionService


def listener(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    return sock


async def test_asks_a_real_server(tmp_path: Path) -> None:
    router = Router()
    router.add(version_pb2.Version, VersionService("v2.3.4+test", "abc"))
    server = GrpcServer(router)
    await server.serve(listener(tmp_path / "s"))
    try:
        assert await asyncio.to_thread(server_version, str(tmp_path / "s")) == "v2.3.4+test"
        assert await asyncio.to_thread(server_version, f"unix://{tmp_path}/s") == "v2.3.4+test"
    finally:
        await server.stop(0)


async def test_a_server_without_the_service(tmp_path: Path) -> None:
    server = GrpcServer(Router())
    await server.serve(listener(tmp_path / "s"))
    try:
        assert await asyncio.to_thread(server_version, str(tmp_path / "s")) == ""
    finally:
        await server.stop(0)


def test_nobody_there(tmp_path: Path) -> None:
    assert server_version(str(tmp_path / "nothing")) == ""
    listener(tmp_path / "stale").close()
    assert server_version(str(tmp_path / "stale")) == ""


@pytest.mark.parametrize(
    "act", [lambda s: s.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"), lambda s: s.close()]
)
def test_no_grpc_there(tmp_path: Path, act: Callable[[socket.socket], None]) -> None:
    def serve() -> None:
        connection, _ = sock.accept()
        with connection:
            act(connection)

    with listener(tmp_path / "s") as sock:
        thread = threading.Thread(target=serve)
        thread.start()
        assert server_version(str(tmp_path / "s")) == ""
        thread.join()
