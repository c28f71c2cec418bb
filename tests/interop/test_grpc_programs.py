"""Our gRPC with programs that ship: ``ctr`` on our server, our client on containerd; and what only
a client that is not stopped by its own library asks."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from harness.daemon import Daemon
from harness.echo import ECHO, EchoService

from cradled import errors
from cradled.api import content_pb2, introspection_pb2, namespaces_pb2, version_pb2, wellknown_pb2
from cradled.api.version_pb2 import VersionResponse
from cradled.rpc.grpc_client import connect
from cradled.rpc.grpc_server import GrpcServer
from cradled.rpc.service import Router
from cradled.rpc.stub import Stub

MIB = 1 << 20


class VersionService:
    async def version(self, call, request):
        return VersionResponse(version="v2.3.4+cradled.test", revision="r")


class IntrospectionService:
    async def server(self, call, request):
        return introspection_pb2.ServerResponse(uuid="11111111-2222", pid=os.getpid())


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Path]:
    """The socket of our server."""
    router = Router()
    router.add(ECHO, EchoService())
    router.add(version_pb2.Version, VersionService())
    router.add(introspection_pb2.Introspection, IntrospectionService())
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "s"))
    sock.listen()
    server = GrpcServer(router)
    await server.serve(sock)
    yield tmp_path / "s"
    await server.stop(0)


async def ctr(path: Path, *arguments: str) -> tuple[int | None, str, str]:
    """Run ``ctr``: its status, output, and errors."""
    process = await asyncio.create_subprocess_exec(
        "ctr", "-a", str(path), *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_ctr_asks_for_the_version(served: Path) -> None:
    status, out, err = await ctr(served, "version")
    assert status == 0, err
    _, server = out.split("Server:")
    assert "v2.3.4+cradled.test" in server
    assert "11111111-2222" in server


async def test_ctr_sees_our_errors(served: Path) -> None:
    status, _, err = await ctr(served, "namespaces", "ls")
    assert status != 0
    service = "containerd.services.namespaces.v1.Namespaces"
    assert err == f"ctr: unknown service {service}: not implemented\n"


@pytest.mark.parametrize(
    ("path", "request_", "code", "text"),
    [
        ("/no.Such/Thing", b"", grpc.StatusCode.UNIMPLEMENTED, "unknown service no.Such"),
        (
            "/test.Echo/Thing",
            b"",
            grpc.StatusCode.UNIMPLEMENTED,
            "unknown method Thing for service test.Echo",
        ),
        ("/test.Echo/Absent", b"", grpc.StatusCode.UNIMPLEMENTED, "method Absent not implemented"),
        ("/test.Echo/Say", b"\xff\xff\xff", grpc.StatusCode.INTERNAL, None),
    ],
)
async def test_what_cannot_be_served(
    served: Path, path: str, request_: bytes, code: grpc.StatusCode, text: str | None
) -> None:
    async with grpc.aio.insecure_channel(f"unix:{served}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(path)(request_)
    assert caught.value.code() == code
    assert text in (None, caught.value.details())


async def test_who_calls(tmp_path: Path) -> None:
    """The peer's credentials are those of the process at the other end."""
    service, router = EchoService(), Router()
    router.add(ECHO, service)
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "w"))
    sock.listen()
    server = GrpcServer(router)
    await server.serve(sock)
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/w") as channel:
        await channel.unary_unary("/test.Echo/Say")(b"")
    (call,) = service.calls
    assert call.peer == (os.getpid(), os.getuid(), os.getgid())
    await server.stop(0)


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
        assert "1." in (await version.version(wellknown_pb2.Empty())).version
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
