"""Events as either daemon tells them to our client, and to Debian's ctr."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator

import pytest
from harness.contract import Refused, answered
from harness.daemon import Daemon, wait_until

from cradled.api import events_pb2
from cradled.api import events_service_pb2 as pb
from cradled.api.types_pb2 import Envelope
from cradled.api.wellknown_pb2 import Any, Timestamp
from cradled.rpc import grpc_client
from cradled.rpc.status import Code
from cradled.rpc.stub import Stub

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

OOM = events_pb2.TaskOOM(container_id="c1")
EVENT = Any(type_url="containerd.events.TaskOOM", value=OOM.SerializeToString())

OTHER = Any(type_url="containerd.events.NamespaceDelete", value=b"")


@pytest.fixture
async def channel(empty_daemon: Daemon) -> AsyncIterator[grpc_client.GrpcChannel]:
    async with await grpc_client.connect(str(empty_daemon.socket)) as channel:
        yield channel


def stub(channel: grpc_client.GrpcChannel, namespace: str = "moby") -> Stub:
    return Stub(channel, pb.Events, [("containerd-namespace", namespace)] if namespace else [])


def envelope(topic: str = "/tasks/oom", namespace: str = "moby", seconds: int = 5) -> Envelope:
    time = Timestamp(seconds=seconds) if seconds else None
    return Envelope(timestamp=time, namespace=namespace, topic=topic, event=EVENT)


@pytest.mark.parametrize("topic", ["", "a", "/", "/a/", "/a//b", "/a/b c", "/" + "a" * 77, "/-"])
async def test_bad_topics_are_refused(channel: grpc_client.GrpcChannel, topic: str) -> None:
    for answer in (
        await answered(stub(channel).publish, pb.PublishRequest(topic=topic, event=EVENT)),
        await answered(stub(channel).forward, pb.ForwardRequest(envelope=envelope(topic))),
    ):
        assert isinstance(answer, Refused)
        assert answer.code == Code.INVALID_ARGUMENT
        assert str(answer.text).startswith(f'envelope topic "{topic}": ')


async def test_what_else_is_refused(channel: grpc_client.GrpcChannel) -> None:
    request = pb.PublishRequest(topic="/a", event=EVENT)
    assert await answered(stub(channel, "").publish, request) == Refused(
        Code.FAILED_PRECONDITION,
        "failed publishing event: namespace is required: failed precondition",
    )
    for bad, text in (
        (envelope(seconds=0), "timestamp must be set on forwarded event: invalid argument"),
        (
            envelope(namespace=""),
            "event envelope has invalid namespace: identifier must not be empty: invalid argument",
        ),
    ):
        answer = await answered(stub(channel).forward, pb.ForwardRequest(envelope=bad))
        assert answer == Refused(Code.INVALID_ARGUMENT, text)


@pytest.mark.parametrize("expression", ["topic=/a", "==", "topic~=", 'event.id=="x', "a b"])
async def test_bad_filters_are_refused(channel: grpc_client.GrpcChannel, expression: str) -> None:
    answer = await answered(stub(channel).subscribe, pb.SubscribeRequest(filters=[expression]))
    assert isinstance(answer, Refused)
    assert answer.code == Code.UNKNOWN
    text = str(answer.text)
    assert text.startswith(
        "subscription error: failed parsing subscription filters: filters: parse error: ["
    )
    assert text.endswith(": invalid argument")


async def test_what_a_filter_lets_through(channel: grpc_client.GrpcChannel) -> None:
    """dockerd's own, and one on a field of the event."""
    dockers, fields = asyncio.Queue[Envelope](), asyncio.Queue[Envelope]()

    async def listen(queue: asyncio.Queue[Envelope], expression: str) -> None:
        async for message in stub(channel).subscribe(pb.SubscribeRequest(filters=[expression])):
            queue.put_nowait(message)

    tasks = [
        asyncio.ensure_future(listen(dockers, "namespace==moby,topic~=|^/tasks/|")),
        asyncio.ensure_future(listen(fields, "event.container_id==c1")),
    ]
    try:
        while dockers.empty() or fields.empty():
            await stub(channel).publish(pb.PublishRequest(topic="/tasks/begin", event=EVENT))
        for namespace, topic, event in (
            ("other", "/tasks/oom", EVENT),
            ("moby", "/a/tasks/oom", EVENT),
            ("moby", "/tasks/none", OTHER),
            ("moby", "/tasks/end", EVENT),
        ):
            request = pb.PublishRequest(topic=topic, event=event)
            await stub(channel, namespace).publish(request)
        assert await _until_end(dockers) == ["moby/tasks/none"]
        assert await _until_end(fields) == ["other/tasks/oom", "moby/a/tasks/oom"]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _until_end(queue: asyncio.Queue[Envelope]) -> list[str]:
    found = []
    while (message := await queue.get()).topic != "/tasks/end":
        if message.topic != "/tasks/begin":
            found.append(message.namespace + message.topic)
    return found


def test_ctr_shows_events_as_they_come(empty_daemon: Daemon) -> None:
    told = empty_daemon.directory / "told"
    with open(told, "wb") as file:
        command = empty_daemon.ctr_command("events", "event.name~=/^live/")
        process = subprocess.Popen(command, stdout=file, env=empty_daemon.env)
    numbers = iter(range(1000))

    def seen() -> bool:
        for action in (("create",), ("label",), ("rm",)):
            name = f"live{next(numbers) // 3}"
            empty_daemon.ctr("namespaces", *action, name, *(["a=b"] if action != ("rm",) else []))
        # The listener may come between two of them.
        _, _, after = told.read_bytes().partition(b"/namespaces/create")
        return b"/namespaces/delete" in after

    try:
        wait_until(seen, "events of namespaces")
    finally:
        process.terminate()
        process.wait(20)
    lines = [line.split(maxsplit=6)[5:] for line in told.read_text().splitlines()]
    assert [topic for topic, _ in lines[-3:]] == [
        "/namespaces/create",
        "/namespaces/update",
        "/namespaces/delete",
    ]
    assert '"labels":{"a":"b"}' in lines[-3][1]
