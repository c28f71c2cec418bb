"""What a call says beside its request: the namespace and the lease it is made in.

Reference, services.md section 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from harness.contract import Case, Door, Refused, Served, World, answered, cases
from harness.records import BAD_IDENTIFIERS, container, image, invalid, missing

from cradled import digest
from cradled.api import (
    containers_pb2,
    content_pb2,
    diff_pb2,
    events_service_pb2,
    health_pb2,
    images_pb2,
    leases_pb2,
    mounts_pb2,
    namespaces_pb2,
    sandbox_pb2,
    snapshots_pb2,
    streaming_pb2,
    tasks_pb2,
    transfer_pb2,
    version_pb2,
)
from cradled.api.pool import Method, Service
from cradled.api.wellknown_pb2 import Any as AnyMessage
from cradled.api.wellknown_pb2 import Empty
from cradled.rpc.service import snake_case
from cradled.rpc.status import Code
from cradled.services.diff import DiffService
from cradled.services.streaming import StreamingService
from cradled.services.tasks import TasksService
from cradled.services.transfer import TransferService
from cradled.streaming.manager import Streams

pytestmark = pytest.mark.doors("inprocess", "grpc", "ttrpc", "proxy")

GRPC, TTRPC, LEASE = "containerd-namespace", "containerd-namespace-ttrpc", "containerd-lease"

NEEDING = (
    containers_pb2.Containers,
    content_pb2.Content,
    diff_pb2.Diff,
    images_pb2.Images,
    leases_pb2.Leases,
    mounts_pb2.Mounts,
    sandbox_pb2.Store,
    snapshots_pb2.Snapshots,
    streaming_pb2.Streaming,
    tasks_pb2.Tasks,
    transfer_pb2.Transfer,
)

# What is asked before the namespace is, and so must be right.
FIELDS: dict[str, dict[str, Any]] = {
    "CreateImageRequest": {"image": image("i")},
    "UpdateImageRequest": {"image": image("i")},
    "UpdateContainerRequest": {"container": container("c")},
    "WriteContentRequest": {"ref": "r"},
    "ExecProcessRequest": {"exec_id": "e"},
    "UpdateRequest": {"info": {"digest": digest.EMPTY}},
}


class Unused:
    """Has every attribute, but none that can be called."""

    def __getattr__(self, name: str) -> None:
        return None


@pytest.fixture
def extra(world: World) -> Sequence[Served]:
    """Services that never come to use what they are made over: none of their calls is right."""
    nothing: Any = Unused()
    return [
        (diff_pb2.Diff, DiffService(world.db, nothing)),
        (streaming_pb2.Streaming, StreamingService(Streams())),
        (tasks_pb2.Tasks, TasksService(world.db, nothing)),
        (transfer_pb2.Transfer, TransferService(world.db, nothing, nothing)),
    ]


def request(method: Method) -> Any:
    kind = method.request.DESCRIPTOR
    made = method.request(**FIELDS.get(kind.name, {}))
    if "snapshotter" in kind.fields_by_name:
        made.snapshotter = "native"
    if "digest" in kind.fields_by_name:
        made.digest = digest.EMPTY
    return [made] if method.client_streaming else made


async def answers(door: Door, service: Service, headers: Sequence[tuple[str, str]]) -> Any:
    """What every rpc of a service answers to a call with these headers."""
    stub = door.stub(service, "", metadata=headers)
    return {
        name: await answered(getattr(stub, snake_case(name)), request(method))
        for name, method in service.methods.items()
        if (service, name) != (mounts_pb2.Mounts, "Update")  # not implemented, for nobody
    }


def expected(service: Service, refused: Refused, names: Iterable[str]) -> dict[str, Refused]:
    """The same answer of all rpcs; the status of an ingest says what it was about to do."""
    wanted = dict.fromkeys(names, refused)
    if service == content_pb2.Content:
        text = f'could not get status for ref "": {refused.text}'
        wanted["Status"] = refused._replace(text=text)
    return wanted


def other(door: Door) -> str:
    """The header that counts on the other transport only."""
    return GRPC if door.name == "ttrpc" else TTRPC


NO_NAMESPACE = Refused(Code.FAILED_PRECONDITION, "namespace is required: failed precondition")


@pytest.mark.parametrize("service", NEEDING, ids=lambda service: service.name)
async def test_a_namespace_is_needed(door: Door, service: Service) -> None:
    key = TTRPC if door.name == "ttrpc" else GRPC
    for headers in ([], [(key, "")], [(other(door), "ns")], [(key, ""), (key, "ns")]):
        found = await answers(door, service, headers)
        assert found == expected(service, NO_NAMESPACE, found)


@pytest.mark.parametrize("service", NEEDING, ids=lambda service: service.name)
async def test_a_namespace_must_be_one(door: Door, service: Service) -> None:
    _, bad, text = BAD_IDENTIFIERS[1]
    found = await answers(door, service, [(TTRPC if door.name == "ttrpc" else GRPC, bad)])
    assert found == expected(service, invalid(f"namespace validation: {text}"), found)


@cases(
    *(
        Case(what, bad, invalid(f"namespace validation: {text}"))
        for what, bad, text in BAD_IDENTIFIERS
        if bad and bad.isascii() and bad.isprintable()
    )
)
async def test_names_of_namespaces(door: Door, case: Case) -> None:
    get = containers_pb2.GetContainerRequest(id="x")
    await case._replace(request=get).ask(door.stub(containers_pb2.Containers, case.request).get)


@cases(
    Case("one", [], "ns"),
    Case("the first of two", [(GRPC, "second"), (TTRPC, "second")], "ns"),
    Case("whatever the second is", [(GRPC, "a b"), (TTRPC, "a b")], "ns"),
)
async def test_the_first_value_wins(door: Door, case: Case) -> None:
    containers = door.stub(containers_pb2.Containers, "ns", metadata=case.request)
    created = containers_pb2.CreateContainerRequest(container=container("c"))
    await containers.create(created)
    listed = await door.stub(namespaces_pb2.Namespaces, "").list(
        namespaces_pb2.ListNamespacesRequest()
    )
    assert [one.name for one in listed.namespaces] == [case.answer]


@cases(
    Case("namespaces", (namespaces_pb2.Namespaces, namespaces_pb2.ListNamespacesRequest()), None),
    Case("version", (version_pb2.Version, Empty()), None),
    Case("health", (health_pb2.Health, health_pb2.HealthCheckRequest()), None),
)
async def test_no_namespace_is_looked_at(door: Door, case: Case) -> None:
    service, asked = case.request
    name = {"namespaces": "list", "version": "version", "health": "check"}[case.what]
    for namespace in ("", "a b"):
        rpc = getattr(door.stub(service, namespace), name)
        assert not isinstance(await answered(rpc, asked), Refused)


async def test_events_are_published_in_a_namespace(door: Door) -> None:
    asked = events_service_pb2.PublishRequest(topic="/a", event=AnyMessage(type_url="x"))
    events = door.stub(events_service_pb2.Events, "")
    text = f"failed publishing event: {NO_NAMESPACE.text}"
    assert await answered(events.publish, asked) == NO_NAMESPACE._replace(text=text)
    await door.stub(events_service_pb2.Events).publish(asked)
    assert [(event.namespace, event.topic) for event in door.events()] == [("ns", "/a")]


EXPIRING = image("i", labels={"containerd.io/gc.expire": "2100-01-01T00:00:00Z"})


async def test_the_first_lease_wins(door: Door) -> None:
    """There is no lease on ttrpc."""
    leases = door.stub(leases_pb2.Leases)
    for id in ("first", "second"):
        await leases.create(leases_pb2.CreateRequest(id=id))
    images = door.stub(images_pb2.Images, lease="first", metadata=[(LEASE, "second")])
    await images.create(images_pb2.CreateImageRequest(image=EXPIRING))
    held = {
        id: len((await leases.list_resources(leases_pb2.ListResourcesRequest(id=id))).resources)
        for id in ("first", "second")
    }
    assert held == {"first": 0 if door.name == "ttrpc" else 1, "second": 0}


async def test_an_unknown_lease(door: Door) -> None:
    created = images_pb2.CreateImageRequest(image=EXPIRING)
    answer = await answered(door.stub(images_pb2.Images, lease="absent").create, created)
    if door.name == "ttrpc":
        assert not isinstance(answer, Refused)
    else:
        assert answer == missing("lease does not exist")
    answer = await answered(door.stub(images_pb2.Images, lease="").create, created)
    assert isinstance(answer, Refused) == (door.name == "ttrpc")
