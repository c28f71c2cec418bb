"""Events (reference, services.md sections 2 and 9)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from harness.contract import Case, Door, Refused, answered, cases

from cradled.api import events_pb2, events_service_pb2, events_ttrpc_pb2, images_pb2
from cradled.api import events_service_pb2 as pb
from cradled.api.types_pb2 import Envelope
from cradled.api.wellknown_pb2 import Any as AnyMessage
from cradled.api.wellknown_pb2 import Empty, Timestamp
from cradled.events import exchange as exchanges
from cradled.rpc.status import Code

EVENTS = pb.Events
HELLO, BYE = "/test/hello", "/test/bye"
MARKS = "topic~=/^.test.(hello|bye)$/"
IDENTIFIER = "^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$"


def packed(message: Any) -> AnyMessage:
    return AnyMessage(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


def publish(topic: str, event: Any = None) -> pb.PublishRequest:
    return pb.PublishRequest(topic=topic, event=packed(event or events_pb2.TaskOOM()))


def envelope(
    topic: str = "/tasks/oom", namespace: str = "other", seconds: int = 5, event: Any = None
) -> Envelope:
    return Envelope(
        timestamp=Timestamp(seconds=seconds, nanos=7) if seconds else None,
        namespace=namespace,
        topic=topic,
        event=packed(event or events_pb2.TaskOOM(container_id="c")),
    )


class Listener:
    """A subscriber that is there: what was published after it was made reaches it."""

    def __init__(self, door: Door) -> None:
        self._events = door.stub(EVENTS)
        self.queue: asyncio.Queue[Envelope] = asyncio.Queue()

    async def listen(self, expressions: Sequence[str]) -> None:
        async for message in self._events.subscribe(pb.SubscribeRequest(filters=expressions)):
            self.queue.put_nowait(message)

    async def begin(self, task: asyncio.Task[None]) -> None:
        while self.queue.empty():
            if task.done():
                task.result()
            await self._events.publish(publish(HELLO))
            await asyncio.sleep(0)

    async def heard(self) -> list[Envelope]:
        """All that came; nothing is still on its way."""
        await self._events.publish(publish(BYE))
        found = []
        while (message := await self.queue.get()).topic != BYE:
            if message.topic != HELLO:
                found.append(message)
        return found


@asynccontextmanager
async def listening(door: Door, *expressions: str) -> AsyncIterator[Listener]:
    listener = Listener(door)
    wanted = [*expressions, MARKS] if expressions else []
    task = asyncio.create_task(listener.listen(wanted))
    try:
        await listener.begin(task)
        yield listener
    finally:
        task.cancel()
        await asyncio.wait([task])


# Publish


@cases(
    Case("an event", publish("/tasks/oom"), Empty()),
    Case("any topic of components", publish("/a/B-1/c_d.e"), Empty()),
    Case("no event in it", pb.PublishRequest(topic="/a"), Empty()),
    Case(
        "no topic",
        publish(""),
        Refused(
            Code.INVALID_ARGUMENT,
            'envelope topic "": must not be empty: invalid argument',
        ),
    ),
    Case(
        "no slash in front",
        publish("a/b"),
        Refused(
            Code.INVALID_ARGUMENT,
            "envelope topic \"a/b\": must start with '/': invalid argument",
        ),
    ),
    Case(
        "no component",
        publish("/"),
        Refused(
            Code.INVALID_ARGUMENT,
            'envelope topic "/": must have at least one component: invalid argument',
        ),
    ),
    Case(
        "an empty component",
        publish("/a/"),
        Refused(
            Code.INVALID_ARGUMENT,
            'envelope topic "/a/": failed validation on component "": '
            "identifier must not be empty: invalid argument",
        ),
    ),
    Case(
        "a component that is no identifier",
        publish("/a/b c"),
        Refused(
            Code.INVALID_ARGUMENT,
            'envelope topic "/a/b c": failed validation on component "b c": '
            f'identifier "b c" must match {IDENTIFIER}: invalid argument',
        ),
    ),
    Case(
        "a component that is too long",
        publish("/" + "a" * 77),
        Refused(
            Code.INVALID_ARGUMENT,
            f'envelope topic "/{"a" * 77}": failed validation on component "{"a" * 77}": '
            f'identifier "{"a" * 77}" greater than maximum length (76 characters)'
            ": invalid argument",
        ),
    ),
)
async def test_publish(door: Door, case: Case) -> None:
    await case.ask(door.stub(EVENTS).publish)
    assert bool(door.events()) == isinstance(case.answer, Empty)


@pytest.mark.parametrize(
    ("namespace", "answer"),
    [
        (
            "",
            Refused(
                Code.FAILED_PRECONDITION,
                "failed publishing event: namespace is required: failed precondition",
            ),
        ),
        (
            "a b",
            Refused(
                Code.INVALID_ARGUMENT,
                'failed publishing event: namespace validation: identifier "a b" must match '
                f"{IDENTIFIER}: invalid argument",
            ),
        ),
    ],
)
async def test_publish_needs_a_namespace(door: Door, namespace: str, answer: Refused) -> None:
    await Case("", publish("/a"), answer).ask(door.stub(EVENTS, namespace).publish)


async def test_what_a_subscriber_gets_of_an_event(door: Door) -> None:
    """The server's time, the caller's namespace, the event as it was sent."""
    unknown = AnyMessage(type_url="types.example/Thing", value=b"\xff\x00")
    async with listening(door) as listener:
        before = time.time_ns()
        await door.stub(EVENTS, "mine").publish(pb.PublishRequest(topic="/a/b", event=unknown))
        (heard,) = await listener.heard()
    assert (heard.namespace, heard.topic, heard.event) == ("mine", "/a/b", unknown)
    stamped = heard.timestamp.seconds * 10**9 + heard.timestamp.nanos
    assert before <= stamped <= time.time_ns()


# Forward

FORWARDS = [
    Case("an envelope of another origin", envelope(), Empty()),
    Case(
        "without a time",
        envelope(seconds=0),
        Refused(
            Code.INVALID_ARGUMENT,
            "timestamp must be set on forwarded event: invalid argument",
        ),
    ),
    Case(
        "without a namespace",
        envelope(namespace=""),
        Refused(
            Code.INVALID_ARGUMENT,
            "event envelope has invalid namespace: identifier must not be empty: invalid argument",
        ),
    ),
    Case(
        "with a namespace that is none",
        envelope(namespace="a/b"),
        Refused(
            Code.INVALID_ARGUMENT,
            f'event envelope has invalid namespace: identifier "a/b" must match {IDENTIFIER}'
            ": invalid argument",
        ),
    ),
    Case(
        "with a topic that is none",
        envelope("oom"),
        Refused(
            Code.INVALID_ARGUMENT,
            "envelope topic \"oom\": must start with '/': invalid argument",
        ),
    ),
]


@cases(*FORWARDS)
async def test_forward(door: Door, case: Case) -> None:
    """It needs no namespace of its own."""
    asked = case._replace(request=pb.ForwardRequest(envelope=case.request))
    await asked.ask(door.stub(EVENTS, namespace="").forward)
    assert len(door.events()) == isinstance(case.answer, Empty)


@pytest.mark.doors("ttrpc")
@cases(*FORWARDS)
async def test_forward_by_shims(door: Door, case: Case) -> None:
    asked = case._replace(request=events_ttrpc_pb2.ForwardRequest(envelope=case.request))
    await asked.ask(door.stub(events_ttrpc_pb2.Events, namespace="").forward)
    assert len(door.events()) == isinstance(case.answer, Empty)


async def test_a_forwarded_envelope_arrives_as_it_is(door: Door) -> None:
    async with listening(door) as listener:
        await door.stub(EVENTS).forward(pb.ForwardRequest(envelope=envelope()))
        assert await listener.heard() == [envelope()]


# Subscribe


@pytest.mark.parametrize(
    ("expressions", "heard"),
    [
        ((), "abcd"),
        (("",), "abcd"),
        (("namespace==moby,topic~=|^/tasks/|",), "bc"),
        (("namespace==moby",), "bc"),
        (("namespace!=moby",), "ad"),
        (("namespace",), "abcd"),
        (('topic=="/tasks/exit"',), "bd"),
        (("topic~=/tasks/",), "bcd"),
        (("topic",), "abcd"),
        (("namespace==ns", 'topic=="/tasks/start"'), "acd"),
        (("event.container_id==c1,namespace==moby",), "bc"),
        (('event.labels."a.b/c"==1',), "a"),
        (("event.labels.a.x",), "a"),
        (("event.labels.nothing",), ""),
        (("event.labels.nothing!=1",), "abcd"),
        (("event.nothing~=|.*|",), "abcd"),
        (("timestamp",), ""),
        (("event",), ""),
        (("topic~=|(|",), ""),
    ],
)
async def test_filters(door: Door, expressions: Sequence[str], heard: str) -> None:
    labels = {"a.b/c": "1", "a.x": ""}
    published = {
        "a": ("ns", "/namespaces/create", events_pb2.NamespaceCreate(name="n", labels=labels)),
        "b": ("moby", "/tasks/exit", events_pb2.TaskExit(container_id="c1", id="c1")),
        "c": ("moby", "/tasks/start", events_pb2.TaskStart(container_id="c1")),
        "d": ("ns", "/tasks/exit", events_pb2.TaskExit(container_id="c2", id="e")),
    }
    async with listening(door, *expressions) as listener:
        for namespace, topic, event in published.values():
            await door.stub(EVENTS, namespace).publish(publish(topic, event))
        got = [(one.namespace, one.topic) for one in await listener.heard()]
    assert got == [published[letter][:2] for letter in heard]


FIELDS: list[tuple[Any, str, str]] = [
    (events_pb2.ContainerCreate, "id image runtime.name", "runtime.options"),
    (events_pb2.ContainerUpdate, "id image labels.k snapshot_key", ""),
    (events_pb2.ContainerDelete, "id", ""),
    (events_pb2.ContentCreate, "digest", "size"),
    (events_pb2.ContentDelete, "digest", ""),
    (images_pb2.ImageCreate, "name labels.k", ""),
    (images_pb2.ImageUpdate, "name labels.k", ""),
    (images_pb2.ImageDelete, "name", ""),
    (events_pb2.NamespaceCreate, "name labels.k", ""),
    (events_pb2.NamespaceUpdate, "name labels.k", ""),
    (events_pb2.NamespaceDelete, "name", ""),
    (events_pb2.SnapshotPrepare, "key parent snapshotter", ""),
    (events_pb2.SnapshotCommit, "key name snapshotter", ""),
    (events_pb2.SnapshotRemove, "key snapshotter", ""),
    (
        events_pb2.TaskCreate,
        "container_id bundle io.stdin io.stdout io.stderr io.terminal checkpoint",
        "pid rootfs io",
    ),
    (events_pb2.TaskStart, "container_id", "pid"),
    (events_pb2.TaskDelete, "container_id id", "pid exit_status exited_at"),
    (events_pb2.TaskExit, "container_id id", "pid exit_status exited_at"),
    (events_pb2.TaskOOM, "container_id", ""),
    (events_pb2.TaskExecAdded, "container_id exec_id", ""),
    (events_pb2.TaskExecStarted, "container_id exec_id", "pid"),
    (events_pb2.TaskPaused, "container_id", ""),
    (events_pb2.TaskResumed, "container_id", ""),
    (events_pb2.TaskCheckpointed, "container_id checkpoint", ""),
    (events_pb2.SandboxCreate, "sandbox_id", ""),
    (events_pb2.SandboxStart, "sandbox_id", ""),
    (events_pb2.SandboxExit, "sandbox_id", "exit_status exited_at"),
]
"""The messages, what filters can ask of them, and what they cannot."""


def filled(kind: Any, path: str) -> Any:
    """A message that has one field, and what a filter calls its value."""
    message = kind()
    name, _, inner = path.partition(".")
    if name == "labels":
        message.labels[inner] = "value"
    elif inner == "terminal":
        message.io.terminal = True
        return message, "true"
    elif inner == "options":
        message.runtime.options.type_url = "value"
    elif inner:
        setattr(getattr(message, name), inner, "value")
    elif name in ("pid", "exit_status", "size"):
        setattr(message, name, 7)
        return message, "7"
    elif name == "exited_at":
        message.exited_at.seconds = 7
    elif name == "rootfs":
        message.rootfs.add(type="value")
    elif name == "io":
        message.io.stdin = "value"
    else:
        setattr(message, name, "value")
    return message, "value"


def test_all_fields_of_all_events_are_told_of() -> None:
    kinds = {kind: told.split() + untold.split() for kind, told, untold in FIELDS}
    for kind, paths in kinds.items():
        assert {path.partition(".")[0] for path in paths} == set(kind.DESCRIPTOR.fields_by_name)
    modules = {**vars(events_pb2), **vars(images_pb2)}
    events = {
        value
        for name, value in modules.items()
        if hasattr(value, "FromString")
        and name not in ("TaskIO", "Image", "Mount")
        and not name.endswith(("Request", "Response"))
    }
    assert events - set(kinds) == set()


@pytest.mark.parametrize(("kind", "told", "untold"), FIELDS, ids=[k.__name__ for k, *_ in FIELDS])
@pytest.mark.doors("inprocess")
async def test_fields(door: Door, kind: Any, told: str, untold: str) -> None:
    paths = [*told.split(), *untold.split()]
    for path in paths:
        message, value = filled(kind, path)
        answers = {
            f"event.{path}": path in told.split(),
            f"event.{path}=={value}": path in told.split(),
            f"event.{path}!={value}": path not in told.split(),
        }
        for expression, expected in answers.items():
            async with listening(door, expression) as listener:
                await door.stub(EVENTS).publish(publish("/a", message))
                assert bool(await listener.heard()) == expected, expression


async def test_a_terminal_that_is_none_is_false(door: Door) -> None:
    created = events_pb2.TaskCreate(io=events_pb2.TaskIO())
    async with listening(door, "event.io.terminal==false") as listener:
        await door.stub(EVENTS).publish(publish("/tasks/create", created))
        await door.stub(EVENTS).publish(publish("/tasks/create", events_pb2.TaskCreate()))
        assert len(await listener.heard()) == 1


async def test_a_type_url_may_have_a_prefix(door: Door) -> None:
    event = packed(events_pb2.TaskOOM(container_id="c"))
    event.type_url = "type.googleapis.com/" + event.type_url
    async with listening(door, "event.container_id==c") as listener:
        await door.stub(EVENTS).publish(pb.PublishRequest(topic="/a", event=event))
        assert [one.event for one in await listener.heard()] == [event]


@cases(
    Case(
        "an operator that is none",
        pb.SubscribeRequest(filters=["topic=/a"]),
        Refused(
            Code.UNKNOWN,
            "subscription error: failed parsing subscription filters: filters: parse error: "
            '[topic >|=|< /a]: unsupported operator "=": invalid argument',
        ),
    ),
    Case(
        "one bad of several",
        pb.SubscribeRequest(filters=["topic", "=="]),
        Refused(
            Code.UNKNOWN,
            "subscription error: failed parsing subscription filters: filters: parse error: "
            "[ >|=|< =]: expected field or quoted: invalid argument",
        ),
    ),
)
async def test_bad_filters(door: Door, case: Case) -> None:
    await case.ask(door.stub(EVENTS).subscribe)


async def test_subscribing_needs_no_namespace(door: Door) -> None:
    events = door.stub(EVENTS, namespace="")
    got: asyncio.Queue[Envelope] = asyncio.Queue()

    async def subscribe() -> None:
        async for message in events.subscribe(pb.SubscribeRequest()):
            got.put_nowait(message)

    task = asyncio.create_task(subscribe())
    while got.empty():
        await door.stub(EVENTS).publish(publish("/a"))
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


async def test_all_hear_the_same_in_the_same_order(door: Door) -> None:
    """Those of one publisher in its order, and what was before nobody."""
    await door.stub(EVENTS).publish(publish("/before"))

    async def one(publisher: str) -> None:
        events = door.stub(EVENTS, publisher)
        for number in range(100):
            await events.publish(publish(f"/n/{number}"))

    async with (
        listening(door) as first,
        listening(door) as second,
        listening(door, "topic") as third,
    ):
        await asyncio.gather(*map(one, "abc"))
        everything = await first.heard()
        assert len(everything) == 300
        for publisher in "abc":
            topics = [event.topic for event in everything if event.namespace == publisher]
            assert topics == [f"/n/{number}" for number in range(100)]
        assert await second.heard() == everything
        assert await third.heard() == everything


@pytest.mark.doors("inprocess", "grpc")
async def test_who_cancels_is_forgotten(door: Door) -> None:
    groups = door.world.exchange._groups
    async with listening(door):
        assert [len(group.members) for group in groups.values()] == [1]
    while groups:  # those without members are seen when something is published
        await door.stub(EVENTS).publish(publish("/a"))


@pytest.mark.doors("grpc")
async def test_who_does_not_read_is_cut_off(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """After what had waited for it; nobody else notices."""
    monkeypatch.setattr(exchanges, "QUEUE_BYTES", 4 << 20)
    big = AnyMessage(type_url="x", value=bytes(64 << 10))
    events = door.stub(EVENTS)
    async with listening(door, 'topic=="/count"') as other:
        stream = door.transport.open(EVENTS.methods["Subscribe"])
        async with stream:
            await stream.send(pb.SubscribeRequest(filters=['topic=="/big"']))
            await stream.done()
            groups = door.world.exchange._groups
            while ('topic=="/big"',) not in groups:
                await events.publish(publish("/test/none"))
            members = groups['topic=="/big"',].members
            count = 0
            while members:
                await events.publish(pb.PublishRequest(topic="/big", event=big))
                count += 1
            assert count > 64
            for number in range(3):
                await events.publish(
                    publish("/count", events_pb2.TaskOOM(container_id=str(number)))
                )
            assert len(await other.heard()) == 3
            got = 0

            async def read() -> None:
                nonlocal got
                async for message in stream:
                    assert message.event == big
                    got += 1

            answer = await answered(lambda _: read(), None)  # type: ignore[arg-type]
    assert answer == Refused(
        Code.RESOURCE_EXHAUSTED,
        "event subscriber is too slow: over 4 MiB waited: resource exhausted",
    )
    assert got == count - 1


def test_the_services_are_one_and_the_same() -> None:
    """Forward's request is the same on both transports."""
    both = (events_service_pb2.ForwardRequest, events_ttrpc_pb2.ForwardRequest)
    first, second = (kind(envelope=envelope()).SerializeToString() for kind in both)
    assert first == second
