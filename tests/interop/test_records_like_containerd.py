"""Record requests in one order on the daemon and on containerd: the same answers, word for word.

Debian's containerd is older than the level of the reference; where the two differ (the texts of
labels that are too long, missing containers, images in leases) nothing is asked here. Nor is what
it gets wrong: a request without its object ends it, extensions that were replaced stay stored.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from harness.contract import DoorStub, Refused, answered, timeless
from harness.daemon import Daemon
from harness.records import BAD_IDENTIFIERS, SPEC, container, image

from cradled.api import (
    containers_pb2,
    events_service_pb2,
    images_pb2,
    leases_pb2,
    namespaces_pb2,
)
from cradled.api.pool import Service
from cradled.api.wellknown_pb2 import Any as AnyMessage
from cradled.api.wellknown_pb2 import FieldMask
from cradled.rpc import grpc_client
from cradled.rpc.grpc_client import GrpcChannel
from cradled.rpc.service import snake_case
from cradled.rpc.stub import Stub

NAMESPACE = "like"

Call = tuple[Service, str, Any]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    directory = tmp_path_factory.mktemp("o")
    daemon = Daemon(directory, "containerd")
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.destroy()
        shutil.rmtree(directory)


@pytest.fixture
async def both(
    empty_daemon: Daemon, original: Daemon
) -> AsyncIterator[tuple[GrpcChannel, GrpcChannel]]:
    async with (
        await grpc_client.connect(str(empty_daemon.socket)) as ours,
        await grpc_client.connect(str(original.socket)) as theirs,
    ):
        yield ours, theirs


def stub(channel: GrpcChannel, service: Service) -> DoorStub:
    return DoorStub(Stub(channel, service, [("containerd-namespace", NAMESPACE)]), exact=False)


async def ask(channel: GrpcChannel, call: Call) -> Any:
    """What is answered, without what no two servers have in common.

    containerd 1.6 put the class's words behind some texts twice, spelled a target as a field, and
    answered the update of a namespace with an empty one.
    """
    service, rpc, request = call
    answer = timeless(await answered(getattr(stub(channel, service), snake_case(rpc)), request))
    if isinstance(answer, Refused):
        text = str(answer.text).replace(": invalid argument", "").replace("Target.", "target.")
        return answer._replace(text=text)
    if isinstance(answer, namespaces_pb2.UpdateNamespaceResponse):
        answer.ClearField("namespace")
    return answer


def namespace(name: str, **labels: str) -> namespaces_pb2.Namespace:
    return namespaces_pb2.Namespace(name=name, labels=labels)


def namespaces() -> Iterator[Call]:
    pb = namespaces_pb2
    for made in (namespace("n", a="1", b=""), namespace("n"), namespace("")):
        yield pb.Namespaces, "Create", pb.CreateNamespaceRequest(namespace=made)
    for _, bad, _ in BAD_IDENTIFIERS:
        made = namespace(bad)
        yield pb.Namespaces, "Create", pb.CreateNamespaceRequest(namespace=made)
    for paths in ([], ["labels.b"], ["labels.c"], ["labels"], ["name"], ["labels.c", "bad"]):
        update = pb.UpdateNamespaceRequest(
            namespace=namespace("n", b="2", c="3"), update_mask=FieldMask(paths=paths)
        )
        yield pb.Namespaces, "Update", update
        yield pb.Namespaces, "Get", pb.GetNamespaceRequest(name="n")
    for name in ("absent", "a b", ""):
        yield pb.Namespaces, "Get", pb.GetNamespaceRequest(name=name)
    for name in ("n", "n", ""):
        yield pb.Namespaces, "Delete", pb.DeleteNamespaceRequest(name=name)


def containers() -> Iterator[Call]:
    pb = containers_pb2
    one = AnyMessage(type_url="x", value=b"1")
    full = container(
        "full",
        labels={"a": "1", "b": "2", "e": ""},
        image="i",
        snapshotter="native",
        snapshot_key="k",
        extensions={"one": one, "two": one},
        runtime=pb.Container.Runtime(name="r", options=one),
    )
    bad = [
        *(container(id) for _, id, _ in BAD_IDENTIFIERS),
        container("x", extensions={"": one}),
        container("x", snapshot_key="k"),
        pb.Container(id="x", spec=SPEC),
        pb.Container(id="x", runtime=full.runtime),
    ]
    for made in (full, full, *bad):
        yield pb.Containers, "Create", pb.CreateContainerRequest(container=made)
    other = container(
        "full",
        labels={"b": "9", "c": "3"},
        image="j",
        snapshot_key="l",
        extensions={"two": SPEC, "three": one},
        snapshotter="else",
        runtime=pb.Container.Runtime(name="else"),
    )
    for path in (
        *("", "labels", "labels.a", "labels.c", "labels.", "labels.zz", "labelsx"),
        *("spec", "image", "snapshotkey", "snapshot_key", "snapshotter", "runtime", "id"),
        *("extensions", "extensions.two", "extensions.zz", "extensions.", "created_at"),
    ):
        update = pb.UpdateContainerRequest(
            container=other, update_mask=FieldMask(paths=[path] if path else [])
        )
        yield pb.Containers, "Update", update
        yield pb.Containers, "Delete", pb.DeleteContainerRequest(id="full")
        yield pb.Containers, "Create", pb.CreateContainerRequest(container=full)
    for filters in (["image==i"], ["runtime.name"], ["runtime"], ["id.x==full"], ["id="]):
        listed = pb.ListContainersRequest(filters=filters)
        yield pb.Containers, "List", listed
        yield pb.Containers, "ListStream", listed
    for id in ("x", ""):
        yield pb.Containers, "Get", pb.GetContainerRequest(id=id)
    yield pb.Containers, "Delete", pb.DeleteContainerRequest(id="full")


def images() -> Iterator[Call]:
    pb = images_pb2
    full = image("full", labels={"a": "1", "e": ""}, annotations={"p": "1", "q": "2", "r": ""})
    bad = [
        *(image("x", digest=one) for one in ("", "x", "sha256:abc", "md5:" + "0" * 32)),
        image("x", digest="sha256:" + "G" * 64),
        image("x", size=0),
        image("x", media_type=""),
        image(""),
    ]
    for made in (full, full, *bad):
        yield pb.Images, "Create", pb.CreateImageRequest(image=made)
    other = image(
        "full", labels={"b": "2"}, media_type="m", size=7, annotations={"q": "9", "s": "4"}
    )
    for path in (
        *("", "labels", "labels.a", "labels.b", "labels.", "target", "target.size", "name"),
        *("annotations", "annotations.q", "annotations.p", "annotations."),
    ):
        update = pb.UpdateImageRequest(
            image=other, update_mask=FieldMask(paths=[path] if path else [])
        )
        yield pb.Images, "Update", update
        yield pb.Images, "Get", pb.GetImageRequest(name="full")
        yield pb.Images, "Update", pb.UpdateImageRequest(image=full)
    for filters in (
        *(["name==full"], ["target.mediatype~=application"], ["annotations.p==1"]),
        *(["target"], ["annotations"], ["labels.a"], ["labels.e"]),
    ):
        yield pb.Images, "List", pb.ListImagesRequest(filters=filters)
    for name in ("x", ""):
        yield pb.Images, "Get", pb.GetImageRequest(name=name)
        yield pb.Images, "Update", pb.UpdateImageRequest(image=image(name))
        yield pb.Images, "Delete", pb.DeleteImageRequest(name=name)
    yield pb.Images, "Delete", pb.DeleteImageRequest(name="full", sync=True)


def leases() -> Iterator[Call]:
    pb = leases_pb2
    for id, labels in (("l", {"a": "1", "e": ""}), ("l", {}), ("any/thing at all", {})):
        yield pb.Leases, "Create", pb.CreateRequest(id=id, labels=labels)
    for lease, type, id in (
        *(("l", "content", "bad"), ("x", "content", "bad"), ("l", "content", "sha256:abc")),
        *(("l", "content/x", "y"), ("l", "ingests/x", "y"), ("l", "ingests", "y")),
        *(("l", "snapshots", "y"), ("l", "snapshots/a/b", "y"), ("l", "snapshots/native", "y")),
        *(("l", "weird", "y"), ("l", "", "y"), ("x", "weird", "y")),
    ):
        resource = pb.Resource(type=type, id=id)
        yield pb.Leases, "AddResource", pb.AddResourceRequest(id=lease, resource=resource)
        yield pb.Leases, "ListResources", pb.ListResourcesRequest(id=lease)
        yield pb.Leases, "DeleteResource", pb.DeleteResourceRequest(id=lease, resource=resource)
    for filters in (["id==l"], ["labels.a"], ["labels.e"], ["id.any==l"], ["created_at"]):
        yield pb.Leases, "List", pb.ListRequest(filters=filters)
    for id in ("l", "l", ""):
        yield pb.Leases, "Delete", pb.DeleteRequest(id=id)


@pytest.mark.parametrize("calls", [namespaces, containers, images, leases])
async def test_answers(both: tuple[GrpcChannel, GrpcChannel], calls: Any) -> None:
    ours, theirs = both
    for call in calls():
        assert await ask(ours, call) == await ask(theirs, call), call[1:]


def publish(topic: str) -> Call:
    pb = events_service_pb2
    return pb.Events, "Publish", pb.PublishRequest(topic=topic, event=SPEC)


async def knock(channel: GrpcChannel) -> None:
    """Publish until cancelled."""
    while True:
        await ask(channel, publish("/here"))
        await asyncio.sleep(0.02)


async def events(channel: GrpcChannel, calls: Iterator[Call]) -> list[tuple[str, str, bytes]]:
    """What a client is told of while these are asked; labels come in any order.

    A subscription is not answered: it is there when it hears something.
    """
    topics = ("/containers/", "/images/", "/here", "/done")
    filters = [f"topic~=|^{topic}|" for topic in topics]
    told = []
    async with channel.open(events_service_pb2.Events.methods["Subscribe"]) as stream:
        await stream.send(events_service_pb2.SubscribeRequest(filters=filters))
        await stream.done()
        knocking = asyncio.create_task(knock(channel))
        await anext(stream)
        knocking.cancel()
        for call in (*calls, publish("/done")):
            await ask(channel, call)
        async for event in stream:
            if event.topic == "/done":
                break
            if event.topic != "/here":
                value = bytes(sorted(event.event.value))
                told.append((event.topic, event.event.type_url, value))
    return told


@pytest.mark.parametrize("calls", [containers, images])
async def test_events(both: tuple[GrpcChannel, GrpcChannel], calls: Any) -> None:
    ours, theirs = both
    told = await events(ours, calls())
    assert len(told) > 5
    assert told == await events(theirs, calls())


PIECES = [
    *("id", "labels", "labels.a", 'labels."a.b/c"', "labels.foo.bar", '"id"', "nothing"),
    *("==", "!=", "~=", "==", "!=", "~=", "=", "~", "===", ",", ",", ".", " ", "\t"),
    *("a", "b", "1", "/a/", "|a|", "/a", '"a"', r'"\x61"', r'"\141"', r'"\q"', '"a', "a-b"),
    *("a,b", "^a$", "[", "(", "'", r"\d", r'"\""', r"/\//", "x y", "(?i)A", '""', "//", "_"),
]
HELD = {"a": {"a": "1"}, "b": {"a.b/c": "x", "foo.bar": "1"}, "a b": {"a": "a,b"}}


async def test_filters(both: tuple[GrpcChannel, GrpcChannel]) -> None:
    """Expressions put together by chance: what they select, and why they are none."""
    pb = leases_pb2
    for channel in both:
        for id, labels in HELD.items():
            await ask(channel, (pb.Leases, "Create", pb.CreateRequest(id=id, labels=labels)))
    chance = random.Random(4)
    selected = 0
    for _ in range(800):
        expression = "".join(chance.choices(PIECES, k=chance.randint(1, 6)))
        listed = pb.Leases, "List", pb.ListRequest(filters=[expression])
        ours, theirs = await asyncio.gather(*(ask(channel, listed) for channel in both))
        assert ours == theirs, expression
        selected += not isinstance(ours, Refused)
    assert selected > 50
