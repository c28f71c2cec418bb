"""Contracts: one suite for a service, asked through every door that leads to it.

A suite is made of tables, one for each rpc. A row says what is asked and what must come back:

    @cases(
        Case("a missing one", get("x"), Refused(Code.NOT_FOUND, 'image "x": not found')),
        Case("one that is there", get("i"), pb.GetImageResponse(image=stored("i"))),
    )
    async def test_get(door: Door, case: Case) -> None:
        images = door.stub(pb.Images)
        await images.create(...)
        await case.ask(images.get)

Every row has a world of its own: real stores in a directory of their own, empty at first. Rows that
change nothing can share one, which takes a fraction of the time (``ask_all``).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import pytest
from google.protobuf import message_factory

from cradled import errors
from cradled.api import (
    containers_pb2,
    content_pb2,
    events_service_pb2,
    events_ttrpc_pb2,
    health_pb2,
    images_pb2,
    leases_pb2,
    mounts_pb2,
    namespaces_pb2,
    reflection_pb2,
    reflection_v1alpha_pb2,
    sandbox_pb2,
    snapshots_pb2,
    version_pb2,
)
from cradled.api.pool import POOL, Service
from cradled.content.local import open_store
from cradled.core.events import Envelope
from cradled.core.values import AnyValue
from cradled.events.exchange import Exchange
from cradled.gc.scheduler import Scheduler
from cradled.metadata.db import Database
from cradled.rpc.service import Router
from cradled.rpc.status import Code, from_status, to_status
from cradled.rpc.stub import ClientStream, Stub, Transport
from cradled.services.containers import ContainersService
from cradled.services.content import ContentService
from cradled.services.events import EventsService
from cradled.services.events_ttrpc import EventsTtrpcService
from cradled.services.health import HealthService
from cradled.services.images import ImagesService
from cradled.services.leases import LeasesService
from cradled.services.mounts import MountsService
from cradled.services.namespaces import NamespacesService
from cradled.services.reflection import ReflectionService
from cradled.services.sandboxes import SandboxStoreService
from cradled.services.snapshots import SnapshotsService
from cradled.services.version import VersionService

NAMESPACE = "ns"
REFLECTION = (reflection_pb2, reflection_v1alpha_pb2)

Served = tuple[Service, object]


class RecordingExchange(Exchange):
    """An exchange that remembers what was published."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Envelope] = []

    def publish(self, envelopes: Sequence[Envelope], /) -> None:
        super().publish(envelopes)
        self.seen += envelopes

    def forward(self, envelope: Envelope, /) -> None:
        super().forward(envelope)
        self.seen.append(envelope)


class World:
    """Real stores, and the services over them, without a daemon around."""

    def __init__(self, db: Database, exchange: RecordingExchange, scheduler: Scheduler) -> None:
        self.db = db
        self.exchange = exchange
        self.scheduler = scheduler
        self.health = HealthService()

    @classmethod
    async def open(
        cls, directory: str, stack: AsyncExitStack, snapshotters: Sequence[str], isolated: bool
    ) -> World:
        """Made in a directory; the stack's end closes it."""
        backends = {}
        for name in snapshotters:
            backends[name] = _snapshotter(name, f"{directory}/{name}")
            await backends[name].start()
            stack.push_async_callback(backends[name].aclose)
        exchange = RecordingExchange()
        db = await Database.open(
            f"{directory}/meta.db",
            content=await open_store(f"{directory}/content"),
            snapshotters=backends,
            publisher=exchange,
            isolated=isolated,
        )
        stack.push_async_callback(db.aclose)
        scheduler = Scheduler(db)
        stack.push_async_callback(scheduler.aclose)
        return cls(db, exchange, scheduler)

    def services(self) -> list[Served]:
        """What the daemon serves of these stores over gRPC."""
        served: list[Served] = [
            *record_services(self.db, self.scheduler),
            (events_service_pb2.Events, EventsService(self.exchange)),
            (mounts_pb2.Mounts, MountsService()),
            (health_pb2.Health, self.health),
            (version_pb2.Version, VersionService("v2.3.4", "abc")),
        ]
        reflection = ReflectionService(lambda: [service for service, _ in served])
        served += [(pb.ServerReflection, reflection) for pb in REFLECTION]
        return served

    def ttrpc_services(self) -> list[Served]:
        """What the daemon serves over ttrpc."""
        return [(events_ttrpc_pb2.Events, EventsTtrpcService(self.exchange.forward))]


def record_services(db: Any, scheduler: Any) -> list[Served]:
    """The services that need no more than stores, be they real or proxies."""
    return [
        (namespaces_pb2.Namespaces, NamespacesService(db)),
        (containers_pb2.Containers, ContainersService(db)),
        (images_pb2.Images, ImagesService(db, scheduler)),
        (leases_pb2.Leases, LeasesService(db, scheduler)),
        (content_pb2.Content, ContentService(db)),
        (snapshots_pb2.Snapshots, SnapshotsService(db)),
        (sandbox_pb2.Store, SandboxStoreService(db)),
    ]


def router(served: Sequence[Served]) -> Router:
    made = Router()
    for service, implementation in served:
        made.add(service, implementation)
    return made


def _snapshotter(name: str, root: str) -> Any:
    if name == "native":
        from cradled.snapshotters.native import NativeSnapshotter

        return NativeSnapshotter(root)
    from cradled.snapshotters.overlay import OverlaySnapshotter

    return OverlaySnapshotter(root)


class Door:
    """A way to the services of ``world``; ``name`` is the transport's."""

    def __init__(self, name: str, world: World, transport: Transport) -> None:
        self.name = name
        self.world = world
        self.transport = transport

    def stub(
        self,
        service: Service,
        namespace: str = NAMESPACE,
        lease: str = "",
        metadata: Sequence[tuple[str, str]] = (),
    ) -> DoorStub:
        """A client of one service, with the headers that name a namespace and a lease.

        An empty ``namespace`` sends no such header.
        """
        key = "containerd-namespace-ttrpc" if self.name == "ttrpc" else "containerd-namespace"
        headers = [(key, namespace)] if namespace else []
        if lease:
            headers.append(("containerd-lease", lease))
        stub = Stub(self.transport, service, [*headers, *metadata])
        return DoorStub(stub, exact=self.name == "inprocess")

    def events(self) -> list[Envelope]:
        """What was published since the last time this was asked."""
        seen, self.world.exchange.seen = self.world.exchange.seen, []
        return seen

    def told(self) -> list[tuple[str, str, Any]]:
        """As ``events``: (namespace, topic, message) of each, the message decoded."""
        return [(e.namespace, e.topic, _decoded(e.event)) for e in self.events()]


def _decoded(event: AnyValue) -> Any:
    message = message_factory.GetMessageClass(POOL.FindMessageTypeByName(event.type_url))
    return message.FromString(event.value)


class Rpc(NamedTuple):
    """One rpc of a stub.

    ``exact``: errors arrive as they were raised. A client on a wire cannot tell whether a text
    ended in the words of its class: those are taken off, and put on again for whoever reads it.
    """

    function: Any
    exact: bool

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.function(*args, **options)


class DoorStub:
    """As ``rpc.stub.Stub``."""

    def __init__(self, stub: Stub, exact: bool) -> None:
        self._stub = stub
        self._exact = exact

    def __getattr__(self, name: str) -> Rpc:
        return Rpc(getattr(self._stub, name), self._exact)


class Refused(NamedTuple):
    """An answer that is an error. A text is the whole text, a pattern is searched in it."""

    code: Code
    text: str | re.Pattern[str]

    def fits(self, answer: object, exact: bool) -> bool:
        if not isinstance(answer, Refused) or answer.code != self.code:
            return False
        if isinstance(self.text, re.Pattern):
            return self.text.search(str(answer.text)) is not None
        over_wire = str(from_status(self.code, self.text))
        return answer.text == self.text or (not exact and answer.text == over_wire)


class Case(NamedTuple):
    """A row: ``what`` it is about, what is asked, what must be answered.

    ``request`` is a message; a list of them for rpcs that take a stream. ``answer`` is a message
    (the times ``created_at`` and ``updated_at`` aside), a list of them for rpcs that answer with a
    stream, a ``Refused``, or a predicate of the answer. ``then`` is for what a test looks at
    afterwards.
    """

    what: str
    request: Any
    answer: Any
    then: Any = None

    async def ask(self, rpc: Rpc) -> Any:
        """Ask, and assert the answer; gives it back for a closer look."""
        answer = await answered(rpc, self.request)
        if isinstance(self.answer, Refused):
            assert self.answer.fits(answer, rpc.exact), f"expected {self.answer}, got {answer}"
        elif callable(self.answer):
            assert self.answer(answer), answer
        else:
            assert timeless(answer) == timeless(self.answer)
        return answer


def cases(*rows: Case) -> pytest.MarkDecorator:
    """The table of a test that takes a ``case``."""
    return pytest.mark.parametrize("case", rows, ids=[row.what for row in rows])


async def ask_all(rpc: Rpc, rows: Iterable[Case]) -> None:
    """Ask rows of which none changes anything, in one world; all wrong answers are told of."""
    wrong = []
    for row in rows:
        try:
            await row.ask(rpc)
        except AssertionError as error:
            wrong.append(f"{row.what}: {error}")
    assert not wrong, "\n".join(wrong)


async def answered(rpc: Rpc, request: Any) -> Any:
    """The answer to one call: a message, all messages of a stream, or what it was refused with."""
    try:
        if isinstance(request, list):
            return await _conversation(rpc(), request)
        answer = rpc(request)
        if hasattr(answer, "__aiter__"):
            return [message async for message in answer]
        return await answer
    except errors.Error as error:
        return Refused(*to_status(error))


async def _conversation(stream: ClientStream, requests: Sequence[Any]) -> list[Any]:
    """Requests are sent while answers are read: neither side takes any number of them unread."""

    async def send() -> None:
        for request in requests:
            await stream.send(request)
        await stream.done()

    async with stream:
        sending = asyncio.create_task(send())
        try:
            return [message async for message in stream]
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)  # answers tell what went wrong


def timeless(answer: Any) -> Any:
    """A message, or a list of them, without creation and update times at any depth."""
    if isinstance(answer, list):
        return [timeless(message) for message in answer]
    if not hasattr(answer, "ListFields"):
        return answer
    copy = type(answer)()
    copy.CopyFrom(answer)
    _strip(copy)
    return copy


def _strip(message: Any) -> None:
    for field, value in message.ListFields():
        if field.name in ("created_at", "updated_at"):
            message.ClearField(field.name)
        elif field.message_type and not field.message_type.GetOptions().map_entry:
            inner = [value] if hasattr(value, "ListFields") else value
            for one in inner:
                _strip(one)
