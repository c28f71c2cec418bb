"""Message sizes that are configured, larger and smaller than the usual ones, seen by ``grpcio``."""

from __future__ import annotations

import asyncio
import socket

import grpc
import pytest
from harness.echo import ECHO, EchoService, message

from cradled.api.version_pb2 import VersionResponse
from cradled.rpc.grpc_server import GrpcServer, Limits
from cradled.rpc.service import Router

MIB = 1 << 20
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


async def answers(limits: Limits, *requests: VersionResponse) -> list[tuple[grpc.StatusCode, str]]:
    """What a server with these limits answers: a status, and its text or the size it sent."""
    router = Router()
    router.add(ECHO, EchoService())
    server = GrpcServer(router, None, limits)
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    sock.setblocking(False)
    await server.serve(sock)
    try:
        return await asyncio.to_thread(ask, sock.getsockname()[1], requests)
    finally:
        await server.stop(0)


def ask(port: int, requests: tuple[VersionResponse, ...]) -> list[tuple[grpc.StatusCode, str]]:
    found = []
    with grpc.insecure_channel(f"127.0.0.1:{port}", UNLIMITED) as channel:
        say = channel.unary_unary(
            "/test.Echo/Say",
            request_serializer=VersionResponse.SerializeToString,
            response_deserializer=VersionResponse.FromString,
        )
        for request in requests:
            try:
                answer = say(request, timeout=60)
                found.append((grpc.StatusCode.OK, str(len(answer.version))))
            except grpc.RpcError as error:
                found.append((error.code(), error.details()))
    return found


@pytest.mark.parametrize(("receive", "send"), [(40 * MIB, 30 * MIB), (3000, 2000)])
async def test_limits(receive: int, send: int) -> None:
    exhausted, ok = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.OK
    framing = len(message("x" * send).SerializeToString()) - send
    assert await answers(
        Limits(receive, send),
        message("y" * (send - framing)),
        message("y" * send),
        message("y" * receive),
        message("big", str(send - framing)),
        message("big", str(send)),
    ) == [
        (ok, str(send - framing)),
        (exhausted, f"grpc: trying to send message larger than max ({send + framing} vs. {send})"),
        (exhausted, f"grpc: received message larger than max ({receive + framing} vs. {receive})"),
        (ok, str(send - framing)),
        (exhausted, f"grpc: trying to send message larger than max ({send + framing} vs. {send})"),
    ]
