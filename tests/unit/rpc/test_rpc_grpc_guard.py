"""A guarded connection: which calls are asked about, as what, and what the denied are told."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from harness.echo import ECHO, EchoService, message

from cradled import errors
from cradled.api import events_service_pb2, events_ttrpc_pb2, namespaces_pb2, version_pb2
from cradled.api.types_pb2 import Envelope
from cradled.api.wellknown_pb2 import Empty
from cradled.core.access import Access, Verdict
from cradled.linux import peer
from cradled.rpc import grpc_client, ttrpc_client
from cradled.rpc.call import Call
from cradled.rpc.grpc_server import GrpcServer
from cradled.rpc.guard import Guard, acted_upon
from cradled.rpc.service import Router
from cradled.rpc.stub import Stub
from cradled.rpc.ttrpc_server import TtrpcServer

PYTHON = os.path.realpath(sys.executable)


class Fake:
    """Denies the methods it is told to."""

    def __init__(self, *denied: str) -> None:
        self.denied = denied
        self.asked: list[Access] = []

    def decide(self, access: Access) -> Verdict:
        self.asked.append(access)
        return Verdict(access.method not in self.denied, "fake")

    def reload(self) -> None:
        return


class World:
    def __init__(self, stub: Stub, service: EchoService, told: list[Any], guard: Guard) -> None:
        self.stub, self.service, self.told, self.guard = stub, service, told, guard


def listening(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    sock.listen()
    sock.setblocking(False)
    return sock


@asynccontextmanager
async def served(tmp_path: Path, *policies: Any, kind: str = "grpc") -> AsyncIterator[World]:
    service, told = EchoService(), list[Any]()
    router = Router()
    router.add(ECHO, service)
    guard = Guard(policies, lambda *denial: told.append(denial))
    path = str(tmp_path / "s")
    async with AsyncExitStack() as stack:
        server: Any = {"grpc": GrpcServer, "ttrpc": TtrpcServer}[kind](router, guard)
        await server.serve(listening(path))
        stack.push_async_callback(server.stop, 0)
        connect: Any = {"grpc": grpc_client.connect, "ttrpc": ttrpc_client.connect}[kind]
        channel = await connect(path)
        stack.push_async_callback(channel.aclose)
        key = "containerd-namespace" if kind == "grpc" else "containerd-namespace-ttrpc"
        yield World(Stub(channel, ECHO, [(key, "n1")]), service, told, guard)


async def call(stub: Stub, method: str) -> None:
    if method == "Say":
        await stub.say(message("hi"))
    elif method == "Count":
        await anext(aiter(stub.count(message("3"))))
    else:
        async with getattr(stub, method.lower())() as stream:
            await stream.recv()


@pytest.mark.parametrize("kind", ["grpc", "ttrpc"])
async def test_what_a_policy_is_asked(tmp_path: Path, kind: str) -> None:
    policy = Fake()
    async with served(tmp_path, policy, kind=kind) as world:
        assert (await world.stub.say(message("hi"))).version == "hi"
        (access,) = policy.asked
        assert access[:3] == ("test.Echo/Say", "n1", kind)
        caller = access.caller
        assert caller is not None
        assert (caller.pid, caller.uid, caller.gid) == (os.getpid(), os.getuid(), os.getgid())
        assert caller.groups == {os.getgid(), *os.getgroups()}
        assert caller.executable == PYTHON
        assert world.told == []


@pytest.mark.parametrize("kind", ["grpc", "ttrpc"])
@pytest.mark.parametrize("method", ["Say", "Count", "Join", "Chat"])
async def test_a_denied_call_of_each_kind(tmp_path: Path, kind: str, method: str) -> None:
    policy = Fake(f"test.Echo/{method}")
    async with served(tmp_path, policy, kind=kind) as world:
        with pytest.raises(errors.PermissionDenied) as caught:
            await call(world.stub, method)
        assert str(caught.value) == (
            f"policy: uid {os.getuid()} (pid {os.getpid()}, {PYTHON}) may not call"
            f' test.Echo/{method} in namespace "n1" (rule "fake"): permission denied'
        )
        assert world.told == [(policy.asked[0], Verdict(False, "fake"))]
        assert world.service.calls == []
        assert not world.service.started.is_set()
        if method != "Say":
            assert (await world.stub.say(message("go on"))).version == "go on"


async def test_all_policies_must_allow(tmp_path: Path) -> None:
    first, second = Fake(), Fake("test.Echo/Say")
    async with served(tmp_path, first, second) as world:
        with pytest.raises(errors.PermissionDenied):
            await world.stub.say(message("hi"))
        assert len(first.asked) == len(second.asked) == 1
        assert world.guard.denials == len(world.told) == 1


async def test_a_policy_that_fails_denies(tmp_path: Path, caplog: Any) -> None:
    class Broken(Fake):
        def decide(self, access: Access) -> Verdict:
            raise ZeroDivisionError("oops")

    async with served(tmp_path, Broken()) as world:
        with pytest.raises(errors.PermissionDenied, match=r'\(rule "policy failed: oops"\)'):
            await world.stub.say(message("hi"))
        assert "ZeroDivisionError" in caplog.text


async def test_what_nobody_serves_is_not_asked_about(tmp_path: Path) -> None:
    policy = Fake()
    async with served(tmp_path, policy) as world:
        with pytest.raises(errors.Unimplemented, match="method Absent not implemented"):
            await world.stub.absent(message("hi"))
        assert policy.asked == []


async def test_a_tcp_peer_has_no_credentials() -> None:
    policy = Fake("test.Echo/Say")
    router = Router()
    router.add(ECHO, EchoService())
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as sock,
    ):
        routes = Guard([policy], lambda *denial: None).routes(router, sock)
    endpoint = routes.find("/test.Echo/Say")
    assert endpoint is not None
    with pytest.raises(errors.PermissionDenied) as caught:
        await endpoint.handler(Call("grpc", {}, {}), message("hi"))
    assert policy.asked == [Access("test.Echo/Say", "", "grpc", None)]
    assert str(caught.value) == (
        "policy: a peer without credentials may not call test.Echo/Say"
        ' (rule "fake"): permission denied'
    )


@pytest.mark.parametrize("kind", ["grpc", "ttrpc"])
async def test_a_peer_that_cannot_be_told_is_nobody(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is guarded all the same."""

    def groups(sock: socket.socket) -> frozenset[int]:
        raise ZeroDivisionError

    monkeypatch.setattr(peer, "groups", groups)
    policy = Fake("test.Echo/Say")
    async with served(tmp_path, policy, kind=kind) as world:
        with pytest.raises(errors.PermissionDenied, match="a peer without credentials may not"):
            await world.stub.say(message("hi"))
        assert [access.caller for access in policy.asked] == [None]


NAMESPACES = namespaces_pb2.Namespaces
NAMED = namespaces_pb2.Namespace(name="named")
FORWARDED = Envelope(namespace="named")


@pytest.mark.parametrize(
    ("service", "method", "request_", "namespace"),
    [
        (NAMESPACES, "Get", namespaces_pb2.GetNamespaceRequest(name="named"), "named"),
        (NAMESPACES, "Delete", namespaces_pb2.DeleteNamespaceRequest(name="named"), "named"),
        (NAMESPACES, "Create", namespaces_pb2.CreateNamespaceRequest(namespace=NAMED), "named"),
        (NAMESPACES, "Update", namespaces_pb2.UpdateNamespaceRequest(namespace=NAMED), "named"),
        (NAMESPACES, "List", namespaces_pb2.ListNamespacesRequest(), ""),
        (
            events_service_pb2.Events,
            "Forward",
            events_service_pb2.ForwardRequest(envelope=FORWARDED),
            "named",
        ),
        (
            events_ttrpc_pb2.Events,
            "Forward",
            events_ttrpc_pb2.ForwardRequest(envelope=FORWARDED),
            "named",
        ),
        (events_service_pb2.Events, "Subscribe", events_service_pb2.SubscribeRequest(), ""),
        (events_service_pb2.Events, "Publish", events_service_pb2.PublishRequest(), "header"),
        (version_pb2.Version, "Version", Empty(), ""),
        (ECHO, "Say", message("x"), "header"),
    ],
)
def test_the_namespace_acted_upon(service: Any, method: str, request_: Any, namespace: str) -> None:
    call = Call("grpc", {"containerd-namespace": "header"}, {})
    assert acted_upon(service.methods[method].path, call, request_) == namespace


def test_cri_acts_upon_its_own_namespace() -> None:
    call = Call("grpc", {"containerd-namespace": "header"}, {})
    assert acted_upon("/runtime.v1.RuntimeService/Version", call, None) == "k8s.io"
