"""Namespaces (reference, services.md section 3)."""

from __future__ import annotations

from typing import Any

from harness.contract import Case, Door, Refused, ask_all, cases
from harness.records import (
    BAD_IDENTIFIERS,
    KEYLESS,
    KEYLESS_TEXT,
    LONGEST,
    TOO_LONG,
    TOO_LONG_TEXT,
    container,
    exists,
    image,
    invalid,
    missing,
    sandbox,
)

from cradled.api import (
    containers_pb2,
    content_pb2,
    events_pb2,
    images_pb2,
    leases_pb2,
    sandbox_pb2,
    snapshots_pb2,
)
from cradled.api import namespaces_pb2 as pb
from cradled.api.wellknown_pb2 import Empty, FieldMask
from cradled.rpc.status import Code


def namespace(name: str, labels: dict[str, str] | None = None, **more: str) -> pb.Namespace:
    return pb.Namespace(name=name, labels={**(labels or {}), **more})


def create(*args: Any, **labels: str) -> pb.CreateNamespaceRequest:
    return pb.CreateNamespaceRequest(namespace=namespace(*args, **labels))


def update(name: str, *paths: str, **labels: str) -> pb.UpdateNamespaceRequest:
    return pb.UpdateNamespaceRequest(
        namespace=namespace(name, labels), update_mask=FieldMask(paths=paths)
    )


async def known(door: Door) -> dict[str, dict[str, str]]:
    """All namespaces and their labels, in the order of the list."""
    response = await door.stub(pb.Namespaces, "").list(pb.ListNamespacesRequest())
    return {one.name: dict(one.labels) for one in response.namespaces}


GOT = (
    Case(
        "one with labels",
        pb.GetNamespaceRequest(name="one"),
        pb.GetNamespaceResponse(namespace=namespace("one", a="1")),
    ),
    Case(
        "an absent one has no labels",
        pb.GetNamespaceRequest(name="absent"),
        pb.GetNamespaceResponse(namespace=namespace("absent")),
    ),
    Case(
        "a name is not checked",
        pb.GetNamespaceRequest(name="a b"),
        pb.GetNamespaceResponse(namespace=namespace("a b")),
    ),
)


async def test_get(door: Door) -> None:
    namespaces = door.stub(pb.Namespaces, "")
    await namespaces.create(create("one", a="1"))
    await ask_all(namespaces.get, GOT)


LISTS = (
    Case(
        "sorted bytewise",
        pb.ListNamespacesRequest(),
        pb.ListNamespacesResponse(
            namespaces=[namespace("B", x="1"), namespace("a-b"), namespace("a.b"), namespace("aa")]
        ),
    ),
    Case(
        "the filter is ignored",
        pb.ListNamespacesRequest(filter="name==="),
        lambda response: len(response.namespaces) == 4,
    ),
)


async def test_list(door: Door) -> None:
    namespaces = door.stub(pb.Namespaces, "")
    for name, labels in (("aa", {}), ("a.b", {}), ("B", {"x": "1"}), ("a-b", {})):
        await namespaces.create(create(name, **labels))
    await ask_all(namespaces.list, LISTS)


async def test_list_of_none(door: Door) -> None:
    assert await known(door) == {}


@cases(
    Case("plain", create("new"), pb.CreateNamespaceResponse(namespace=namespace("new")), {}),
    Case(
        "with labels",
        create("new", a="1", b="2"),
        pb.CreateNamespaceResponse(namespace=namespace("new", a="1", b="2")),
        {"a": "1", "b": "2"},
    ),
    Case(
        "an empty label is answered and not kept",
        create("new", a="", b="2"),
        pb.CreateNamespaceResponse(namespace=namespace("new", a="", b="2")),
        {"b": "2"},
    ),
    Case(
        "the longest label",
        create("new", LONGEST),
        pb.CreateNamespaceResponse(namespace=namespace("new", LONGEST)),
        LONGEST,
    ),
    Case(
        "the longest name",
        create("n" * 76),
        pb.CreateNamespaceResponse(namespace=namespace("n" * 76)),
    ),
)
async def test_create(door: Door, case: Case) -> None:
    namespaces = door.stub(pb.Namespaces, "")
    await namespaces.create(create("old"))
    door.events()
    await case.ask(namespaces.create)
    name = case.request.namespace.name
    assert (await known(door))[name] == (case.then or {})
    event = events_pb2.NamespaceCreate(name=name, labels=case.request.namespace.labels)
    assert door.told() == [(name, "/namespaces/create", event)]


CREATION_REFUSED = (
    Case(
        "a label too long", create("new", TOO_LONG), invalid(f"namespace.Labels: {TOO_LONG_TEXT}")
    ),
    Case(
        "a label without key", create("new", KEYLESS), invalid(f"namespace.Labels: {KEYLESS_TEXT}")
    ),
    Case("one that exists", create("old"), exists('namespace "old"')),
    Case("no namespace at all", pb.CreateNamespaceRequest(), invalid(BAD_IDENTIFIERS[0][2])),
    *(Case(f"name: {what}", create(name), invalid(text)) for what, name, text in BAD_IDENTIFIERS),
)


async def test_create_refused(door: Door) -> None:
    namespaces = door.stub(pb.Namespaces, "")
    await namespaces.create(create("old"))
    door.events()
    await ask_all(namespaces.create, CREATION_REFUSED)
    assert (await known(door), door.told()) == ({"old": {}}, [])


BAD_PATHS = ("labels", "name", "labelsx", "label.a", "")


@cases(
    Case("no mask replaces all labels", update("old", c="3"), {"c": "3"}),
    Case("no mask and no labels", update("old"), {}),
    Case("no mask drops empty labels", update("old", a="", c="3"), {"c": "3"}),
    Case("one label of several", update("old", "labels.a", a="9", b="9"), {"a": "9", "b": "2"}),
    Case("a new label", update("old", "labels.c", c="3"), {"a": "1", "b": "2", "c": "3"}),
    Case("an empty label goes", update("old", "labels.a", a=""), {"b": "2"}),
    Case("a label that is not given goes", update("old", "labels.a"), {"b": "2"}),
    Case("several", update("old", "labels.a", "labels.b", b="3"), {"b": "3"}),
    Case(
        "a label with dots",
        update("old", "labels.x.y", **{"x.y": "1"}),
        {"a": "1", "b": "2", "x.y": "1"},
    ),
    Case("an absent namespace comes into being", update("other", c="3"), {"c": "3"}),
    Case("by a mask too", update("other", "labels.c", c="3", d="4"), {"c": "3"}),
)
async def test_update(door: Door, case: Case) -> None:
    """The answer is empty; the event carries the labels of the request."""
    namespaces = door.stub(pb.Namespaces, "")
    await namespaces.create(create("old", a="1", b="2"))
    door.events()
    assert await namespaces.update(case.request) == pb.UpdateNamespaceResponse()
    name = case.request.namespace.name
    assert (await known(door))[name] == case.answer
    event = events_pb2.NamespaceUpdate(name=name, labels=case.request.namespace.labels)
    assert door.told() == [(name, "/namespaces/update", event)]


UPDATE_REFUSED = (
    *(
        Case(
            f"mask {path!r}",
            update("old", "labels.a", path, a="9"),
            Refused(Code.INVALID_ARGUMENT, f'cannot update "{path}" field'),
        )
        for path in BAD_PATHS
    ),
    Case(
        "a label too long",
        pb.UpdateNamespaceRequest(namespace=namespace("old", TOO_LONG)),
        invalid(f"namespace.Labels: {TOO_LONG_TEXT}"),
    ),
    *(Case(f"name: {what}", update(name), invalid(text)) for what, name, text in BAD_IDENTIFIERS),
)


async def test_update_refused(door: Door) -> None:
    namespaces = door.stub(pb.Namespaces, "")
    await namespaces.create(create("old", a="1"))
    door.events()
    await ask_all(namespaces.update, UPDATE_REFUSED)
    assert (await known(door), door.told()) == ({"old": {"a": "1"}}, [])


async def put_blob(door: Door) -> None:
    request = content_pb2.WriteContentRequest(action=content_pb2.COMMIT, ref="r", data=b"blob")
    async with door.stub(content_pb2.Content).write() as stream:
        await stream.send(request)
        await stream.done()
        assert [response async for response in stream]


async def open_ingest(door: Door) -> None:
    request = content_pb2.WriteContentRequest(action=content_pb2.STAT, ref="r")
    async with door.stub(content_pb2.Content).write() as stream:
        await stream.send(request)
        await stream.done()
        assert [response async for response in stream]


async def put_container(door: Door) -> None:
    request = containers_pb2.CreateContainerRequest(container=container("c"))
    await door.stub(containers_pb2.Containers).create(request)


async def put_image(door: Door) -> None:
    request = images_pb2.CreateImageRequest(image=image("i"))
    await door.stub(images_pb2.Images).create(request)


async def put_snapshot(door: Door) -> None:
    request = snapshots_pb2.PrepareSnapshotRequest(snapshotter="native", key="k")
    await door.stub(snapshots_pb2.Snapshots).prepare(request)


async def put_lease(door: Door) -> None:
    leases = door.stub(leases_pb2.Leases)
    await leases.create(leases_pb2.CreateRequest(id="l"))
    held = leases_pb2.Resource(id="r", type="ingests")
    await leases.add_resource(leases_pb2.AddResourceRequest(id="l", resource=held))


async def put_sandbox(door: Door) -> None:
    request = sandbox_pb2.StoreCreateRequest(sandbox=sandbox("s"))
    await door.stub(sandbox_pb2.Store).create(request)


KEEPING = {
    "images": put_image,
    "blobs": put_blob,
    "containers": put_container,
    'snapshots on "native" snapshotter': put_snapshot,
}
NOT_KEEPING = {"leases": put_lease, "ingests": open_ingest, "sandboxes": put_sandbox}


@cases(
    *(
        Case(f"implicitly by {what}", put, {"ns": {}})
        for what, put in {**KEEPING, **NOT_KEEPING}.items()
    )
)
async def test_the_first_write_makes_a_namespace(door: Door, case: Case) -> None:
    await case.request(door)
    assert await known(door) == case.answer
    assert [topic for _, topic, _ in door.told() if topic.startswith("/namespaces/")] == []


@cases(
    *(
        Case(
            f"holding {what}",
            [put],
            f'namespace "ns" must be empty, but it still has {what}: failed precondition',
        )
        for what, put in KEEPING.items()
    ),
    Case(
        "holding some of everything",
        [*KEEPING.values(), *NOT_KEEPING.values()],
        'namespace "ns" must be empty, but it still has images, blobs, containers, '
        'snapshots on "native" snapshotter: failed precondition',
    ),
)
async def test_delete_refused(door: Door, case: Case) -> None:
    for put in case.request:
        await put(door)
    door.events()
    refused = Refused(Code.FAILED_PRECONDITION, case.answer)
    request = pb.DeleteNamespaceRequest(name="ns")
    await Case("", request, refused).ask(door.stub(pb.Namespaces, "").delete)
    assert (await known(door), door.told()) == ({"ns": {}}, [])


@cases(*(Case(f"though it has {what}", put, None) for what, put in NOT_KEEPING.items()))
async def test_delete_does_not_count(door: Door, case: Case) -> None:
    await case.request(door)
    namespaces = door.stub(pb.Namespaces, "")
    assert await namespaces.delete(pb.DeleteNamespaceRequest(name="ns")) == Empty()
    leases = await door.stub(leases_pb2.Leases).list(leases_pb2.ListRequest())
    ingests = await door.stub(content_pb2.Content).list_statuses(content_pb2.ListStatusesRequest())
    sandboxes = await door.stub(sandbox_pb2.Store).list(sandbox_pb2.StoreListRequest())
    assert [*leases.leases, *ingests.statuses, *sandboxes.list] == []
    assert await known(door) == {}


@cases(
    Case("an empty one", pb.DeleteNamespaceRequest(name="old"), Empty()),
    Case("a missing one", pb.DeleteNamespaceRequest(name="x"), missing('namespace "x"')),
    Case("no name", pb.DeleteNamespaceRequest(), missing('namespace ""')),
    Case("no identifier", pb.DeleteNamespaceRequest(name="a b"), missing('namespace "a b"')),
)
async def test_delete(door: Door, case: Case) -> None:
    namespaces = door.stub(pb.Namespaces, "")
    await namespaces.create(create("old", a="1"))
    door.events()
    answer = await case.ask(namespaces.delete)
    if isinstance(answer, Refused):
        assert (await known(door), door.told()) == ({"old": {"a": "1"}}, [])
    else:
        event = events_pb2.NamespaceDelete(name="old")
        assert (await known(door), door.told()) == ({}, [("old", "/namespaces/delete", event)])


async def test_a_namespace_can_come_again(door: Door) -> None:
    namespaces = door.stub(pb.Namespaces, "")
    await namespaces.create(create("old", a="1"))
    await namespaces.delete(pb.DeleteNamespaceRequest(name="old"))
    await namespaces.create(create("old"))
    assert await known(door) == {"old": {}}
