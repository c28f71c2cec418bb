"""Records, leases, namespaces, events and versions, there and back."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from cradled import digest
from cradled.api import containers_pb2, introspection_pb2, tasks_pb2
from cradled.api.types_pb2 import Metric
from cradled.api.wellknown_pb2 import Empty
from cradled.convert import containers as convert_containers
from cradled.convert import tasks as convert
from cradled.convert.values import timestamp
from cradled.core.containers import Container, Runtime
from cradled.core.events import Envelope
from cradled.core.images import Image
from cradled.core.leases import Resource
from cradled.core.mount import Mount
from cradled.core.scope import Scope
from cradled.core.tasks import CreateTask, Exit, Process, Status, Stdio
from cradled.core.values import AnyValue, Descriptor
from cradled.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from cradled.proxies.containers import ProxyContainers
from cradled.proxies.content import ProxyContentStore
from cradled.proxies.events import ProxyEvents, fields
from cradled.proxies.images import ProxyImages
from cradled.proxies.introspection import Plugin, ProxyIntrospection, Server, Version
from cradled.proxies.leases import ProxyLeases
from cradled.proxies.namespaces import ProxyNamespaces
from cradled.proxies.tasks import ProxyTasks
from cradled.rpc.call import Call
from cradled.rpc.inprocess import InProcess
from cradled.rpc.service import Router
from cradled.rpc.stub import Transport

SCOPE = Scope("test")
TARGET = Descriptor("application/x", digest.of(b"x"), 1, {"k": "v"})
RECORD = Container(
    "one",
    {"a": "b"},
    "image",
    Runtime("io.containerd.runc.v2", AnyValue("options", b"o")),
    AnyValue("spec", b"{}"),
    extensions={"x": AnyValue("e", b"1")},
)


async def test_containers(transport: Transport) -> None:
    containers = ProxyContainers(transport, SCOPE)
    made = await containers.create(RECORD)
    assert made.created_at == made.updated_at > 0
    assert replace(made, created_at=0, updated_at=0) == RECORD
    assert await containers.get("one") == made
    assert await containers.list() == [made]
    assert await containers.list(["labels.a==c", "id==two"]) == []
    changed = await containers.update(replace(made, labels={"c": "d"}), ["labels.c"])
    assert changed.labels == {"a": "b", "c": "d"}
    with pytest.raises(AlreadyExists, match=r'^container "one": already exists$'):
        await containers.create(RECORD)
    await containers.delete("one")
    with pytest.raises(NotFound):
        await containers.get("one")


async def test_the_scope_travels(transport: Transport) -> None:
    await ProxyContainers(transport, SCOPE).create(RECORD)
    assert await ProxyContainers(transport, Scope("other")).list() == []
    with pytest.raises(InvalidArgument, match="namespace validation"):
        await ProxyContainers(transport, Scope("bad name")).list()
    with pytest.raises(FailedPrecondition, match="namespace is required"):
        await ProxyContainers(transport, Scope("")).list()


async def test_images(transport: Transport) -> None:
    images = ProxyImages(transport, SCOPE)
    made = await images.create(Image("i", TARGET, {"a": "b"}))
    assert (made.target, made.labels) == (TARGET, {"a": "b"})
    assert await images.get("i") == made
    assert await images.list() == [made]
    other = replace(TARGET, digest=digest.of(b"y"))
    assert (await images.update(replace(made, target=other))).target == other
    with pytest.raises(NotFound, match="has target"):
        await images.delete("i", target=TARGET)
    await images.delete("i", target=other, sync=True)
    assert await images.list() == []


async def test_leases(transport: Transport) -> None:
    leases = ProxyLeases(transport, SCOPE)
    made = await leases.create("", {"a": "b"})
    assert made.id
    assert made.labels == {"a": "b"}
    assert await leases.list() == [made]
    held = Resource(TARGET.digest, "content")
    await leases.add_resource(made.id, held)
    assert await leases.list_resources(made.id) == [held]
    await leases.delete_resource(made.id, held)
    store = ProxyContentStore(transport, Scope("test", made.id))
    writer = await store.writer("r")
    await writer.write(b"x")
    await writer.commit(1, "", {})
    assert await leases.list_resources(made.id) == [held]
    await leases.delete(made.id, sync=True)
    assert await leases.list() == []
    with pytest.raises(NotFound):
        await store.info(TARGET.digest)


async def test_namespaces(transport: Transport) -> None:
    namespaces = ProxyNamespaces(transport)
    await namespaces.create("n", {"a": "b"})
    assert await namespaces.list() == [("n", {"a": "b"})]
    await namespaces.update("n", {"c": "d"}, ["labels.c"])
    assert await namespaces.get("n") == {"a": "b", "c": "d"}
    await namespaces.delete("n")
    assert await namespaces.list() == []


async def test_events(transport: Transport) -> None:
    events = ProxyEvents(transport, SCOPE)
    stream = events.subscribe(['topic=="/test/x"', 'topic=="/containers/create"'])
    first = asyncio.ensure_future(anext(stream))
    payload = AnyValue("my.Event", b"1")
    while not first.done():  # a subscription begins some time after it was asked for
        await events.publish("/test/x", payload)
        await asyncio.wait((first,), timeout=0.01)
    envelope = first.result()
    assert (envelope.namespace, envelope.topic, envelope.event) == ("test", "/test/x", payload)
    assert fields(payload) == {}
    await ProxyContainers(transport, SCOPE).create(RECORD)
    created = await _next_of(stream, "/containers/create")
    told = fields(created.event)
    assert (told["id"], told["image"]) == ("one", "image")
    options = {"type_url": "options", "value": "bw=="}
    assert told["runtime"] == {"name": "io.containerd.runc.v2", "options": options}
    await stream.aclose()  # type: ignore[attr-defined]


async def _next_of(stream: Any, topic: str) -> Envelope:
    async for envelope in stream:
        if envelope.topic == topic:
            return envelope  # type: ignore[no-any-return]
    raise AssertionError("the stream ended")


def test_fields_of_a_task_event() -> None:
    from cradled.api.events_pb2 import TaskCreate, TaskExit

    message = TaskExit(container_id="c", exit_status=3, exited_at=timestamp(10**18 + 1))
    event = AnyValue("containerd.events.TaskExit", message.SerializeToString())
    assert fields(event) == {"container_id": "c", "exit_status": 3, "exited_at": 10**18 + 1}
    create = TaskCreate(container_id="c", rootfs=[{"type": "bind", "options": ["ro"]}])  # type: ignore[list-item]
    event = AnyValue("containerd.events.TaskCreate", create.SerializeToString())
    assert fields(event)["rootfs"] == [{"type": "bind", "options": ["ro"]}]


def test_fields_of_an_image_event() -> None:
    from cradled.api.images_pb2 import ImageCreate

    message = ImageCreate(name="i", labels={"a": "b"})
    name = "containerd.services.images.v1.ImageCreate"
    event = AnyValue(f"type.googleapis.com/{name}", message.SerializeToString())
    assert fields(event) == {"name": "i", "labels": {"a": "b"}}
    assert fields(AnyValue("other.ImageCreate", message.SerializeToString())) == {}


class _Introspection:
    async def server(self, call: Call, request: Empty) -> Any:
        return introspection_pb2.ServerResponse(uuid="u", pid=1, pidns=2)

    async def plugins(self, call: Call, request: Any) -> Any:
        plugin = introspection_pb2.Plugin(type="t", id="i", exports={"root": "/x"})
        plugin.capabilities.append("rebase")
        plugin.init_err.message = "skip plugin"
        assert list(request.filters) == ["type==t"]
        return introspection_pb2.PluginsResponse(plugins=[plugin])


async def test_introspection(transport: Transport, backend: SimpleNamespace) -> None:
    backend.router.add(introspection_pb2.Introspection, _Introspection())
    introspection = ProxyIntrospection(transport)
    assert await introspection.version() == Version("v0", "r0")
    assert await introspection.server() == Server("u", 1, 2)
    plugins = await introspection.plugins(["type==t"])
    assert plugins == [Plugin("t", "i", {"root": "/x"}, ("rebase",), "skip plugin")]


PROCESS = Process("", "c", 7, Status.RUNNING, Stdio("i", "o", "e", True))


class _Tasks:
    """Answers, and remembers what it was asked."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, Any] = {
            "create": tasks_pb2.CreateTaskResponse(pid=7),
            "start": tasks_pb2.StartResponse(pid=8),
            "delete": tasks_pb2.DeleteResponse(pid=7, exit_status=3, exited_at=timestamp(5)),
            "delete_process": tasks_pb2.DeleteResponse(id="x", exit_status=4),
            "get": tasks_pb2.GetResponse(process=convert.to_proto(PROCESS)),
            "list": tasks_pb2.ListTasksResponse(tasks=[convert.to_proto(PROCESS)]),
            "list_pids": tasks_pb2.ListPidsResponse(processes=[{"pid": 1}]),  # type: ignore[list-item]
            "metrics": tasks_pb2.MetricsResponse(metrics=[Metric(id="c", timestamp=timestamp(9))]),
            "wait": tasks_pb2.WaitResponse(exit_status=2, exited_at=timestamp(6)),
        }
        known = ("kill", "exec", "resize_pty", "close_io", "pause", "resume", "update")
        if name not in answers and name not in known:
            raise AttributeError(name)

        async def answer(call: Call, request: Any) -> Any:
            self.seen.append((name, call.scope(), request))
            return answers.get(name, Empty())

        return answer


async def test_tasks(transport: Transport, backend: SimpleNamespace) -> None:
    service = _Tasks()
    backend.router.add(tasks_pb2.Tasks, service)
    tasks = ProxyTasks(transport, SCOPE)
    root = Mount("overlay", "overlay", ("lowerdir=/a:/b",))
    assert await tasks.create(CreateTask("c", (root,), PROCESS.stdio)) == 7
    assert await tasks.start("c", "x") == 8
    assert await tasks.delete("c") == Exit(7, 3, 5)
    assert await tasks.delete_process("c", "x") == Exit(0, 4, 0)
    assert await tasks.get("c") == PROCESS
    assert await tasks.list() == [PROCESS]
    assert await tasks.wait("c", "x") == Exit(0, 2, 6)
    assert await tasks.pids("c") == [(1, None)]
    assert await tasks.metrics(["id==c"]) == [("c", 9, AnyValue("", b""))]
    await tasks.kill("c", 9, "x", all=True)
    await tasks.exec("c", "x", Stdio(stdout="o"), AnyValue("t", b"{}"))
    await tasks.resize_pty("c", "x", 80, 24)
    await tasks.close_io("c", "x")
    await tasks.pause("c")
    await tasks.resume("c")
    await tasks.update("c", AnyValue("r", b"{}"), {"k": "v"})
    asked = {name: request for name, scope, request in service.seen if scope == SCOPE}
    assert len(asked) == 16
    created = convert.create_from_proto(asked["create"])
    assert (created.rootfs, created.stdio) == ((root,), PROCESS.stdio)
    assert (asked["kill"].signal, asked["kill"].exec_id, asked["kill"].all) == (9, "x", True)
    assert (asked["exec"].stdout, asked["exec"].spec.type_url) == ("o", "t")
    assert (asked["resize_pty"].width, asked["resize_pty"].height) == (80, 24)
    assert asked["close_io"].stdin is True
    assert dict(asked["update"].annotations) == {"k": "v"}


def test_records_use_the_wire_form() -> None:
    """The proxies lean on this: what is stored is what is served."""
    assert containers_pb2.Containers.name == "containerd.services.containers.v1.Containers"


class OldContainers:
    """Of a server that lists in one message only."""

    async def list(
        self, call: Call, request: containers_pb2.ListContainersRequest
    ) -> containers_pb2.ListContainersResponse:
        found = convert_containers.to_proto(RECORD)
        listed = [found] if list(request.filters) == ["id==one"] else []
        return containers_pb2.ListContainersResponse(containers=listed)


async def test_a_server_without_streamed_lists() -> None:
    router = Router()
    router.add(containers_pb2.Containers, OldContainers())
    containers = ProxyContainers(InProcess(router), SCOPE)
    assert await containers.list(["id==one"]) == [RECORD]
    assert await containers.list() == []
