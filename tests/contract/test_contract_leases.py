"""Leases (reference, services.md section 8)."""

from __future__ import annotations

import re
from typing import Any

from harness.contract import Case, Door, Refused, ask_all, cases
from harness.records import KEYLESS, KEYLESS_TEXT, TOO_LONG, exists, invalid, missing

from cradled import digest
from cradled.api import content_pb2, snapshots_pb2
from cradled.api import leases_pb2 as pb
from cradled.api.wellknown_pb2 import Empty
from cradled.rpc.status import Code

X, Y = digest.of(b"x"), digest.of(b"y")
EXPIRES = {"containerd.io/gc.expire": "2100-01-01T00:00:00Z"}
EXPIRED = {"containerd.io/gc.expire": "2001-01-01T00:00:00Z"}


def lease(id: str, **labels: str) -> pb.Lease:
    return pb.Lease(id=id, labels=labels)


def create(id: str, **labels: str) -> pb.CreateRequest:
    return pb.CreateRequest(id=id, labels=labels)


def add(id: str, type: str, resource: str) -> pb.AddResourceRequest:
    return pb.AddResourceRequest(id=id, resource=pb.Resource(type=type, id=resource))


def drop(request: pb.AddResourceRequest) -> pb.DeleteResourceRequest:
    return pb.DeleteResourceRequest(id=request.id, resource=request.resource)


async def stored(door: Door, namespace: str = "ns") -> list[pb.Lease]:
    return list((await door.stub(pb.Leases, namespace).list(pb.ListRequest())).leases)


async def held(door: Door, id: str) -> list[tuple[str, str]]:
    response = await door.stub(pb.Leases).list_resources(pb.ListResourcesRequest(id=id))
    return [(resource.type, resource.id) for resource in response.resources]


@cases(
    Case("plain", create("l"), lease("l")),
    Case("with labels", create("l", a="1"), lease("l", a="1")),
    Case("empty labels are not kept", create("l", a="", b="2"), lease("l", b="2")),
    Case("labels are not checked", create("l", **TOO_LONG), lease("l", **TOO_LONG)),
    Case("nor is the id", create("a/b c\n" + "é" * 100), lease("a/b c\n" + "é" * 100)),
    Case(
        "a time that is none",
        create("l", **{"containerd.io/gc.expire": "never"}),
        lease("l", **{"containerd.io/gc.expire": "never"}),
    ),
)
async def test_create(door: Door, case: Case) -> None:
    expected = pb.CreateResponse(lease=case.answer)
    made = (await case._replace(answer=expected).ask(door.stub(pb.Leases).create)).lease
    assert made.created_at.seconds > 0
    assert await stored(door) == [made]
    assert door.told() == []


async def test_an_id_is_made_up(door: Door) -> None:
    """Nanoseconds of the second, and three bytes of chance in URL-safe base64."""
    leases = door.stub(pb.Leases)
    ids = [(await leases.create(create(""))).lease.id for _ in range(3)]
    assert sorted(one.id for one in await stored(door)) == sorted(ids)
    for id in ids:
        assert re.fullmatch(r"[0-9]{1,9}-[A-Za-z0-9_-]{4}", id)


async def test_create_refused(door: Door) -> None:
    request = pb.CreateRequest(id="l", labels=KEYLESS)
    await Case("", request, invalid(KEYLESS_TEXT)).ask(door.stub(pb.Leases).create)
    assert await stored(door) == []


@cases(Case("the same again", create("l", b="2"), exists('lease "l"')))
async def test_create_twice(door: Door, case: Case) -> None:
    leases = door.stub(pb.Leases)
    made = (await leases.create(create("l", a="1"))).lease
    await case.ask(leases.create)
    assert await stored(door) == [made]
    await door.stub(pb.Leases, "other").create(case.request)


@cases(
    Case("one that is there", pb.DeleteRequest(id="l"), Empty()),
    Case("and collect", pb.DeleteRequest(id="l", sync=True), Empty()),
    Case("a missing one", pb.DeleteRequest(id="x"), missing('lease "x"')),
    Case("a missing one with sync", pb.DeleteRequest(id="x", sync=True), missing('lease "x"')),
    Case("no id", pb.DeleteRequest(), missing('lease ""')),
)
async def test_delete(door: Door, case: Case) -> None:
    leases = door.stub(pb.Leases)
    await leases.create(create("l"))
    await leases.add_resource(add("l", "ingests", "r"))
    await door.stub(pb.Leases, "other").create(create("l"))
    answer = await case.ask(leases.delete)
    assert [one.id for one in await stored(door)] == (["l"] if isinstance(answer, Refused) else [])
    assert len(await stored(door, "other")) == 1


async def test_what_a_lease_held_is_not_held_by_its_successor(door: Door) -> None:
    leases = door.stub(pb.Leases)
    await leases.create(create("l"))
    await leases.add_resource(add("l", "ingests", "r"))
    await leases.delete(pb.DeleteRequest(id="l"))
    await leases.create(create("l"))
    assert await held(door, "l") == []


LISTED = {
    "a": lease("a", k="v"),
    "b": lease("b", **{"containerd.io/x": "1"}),
    "c": lease("c"),
}

FILTERS = [
    ("nothing", [], "abc"),
    ("an empty one", [""], "abc"),
    ("id", ["id==b"], "b"),
    ("ids", ["id==c", "id==a"], "ac"),
    ("not an id", ["id!=b"], "ac"),
    ("a pattern", ["id~=[ab]"], "ab"),
    ("an id is there", ["id"], "abc"),
    ("what follows a field is not looked at", ["id.x==a"], "a"),
    ("a label", ["labels.k==v"], "a"),
    ("a label is there", ["labels.k"], "a"),
    ("a label, quoted", ['labels."containerd.io/x"==1'], "b"),
    ("no such label is no empty one", ['labels.none==""'], ""),
    ("and not another", ["labels.k!=v"], "bc"),
    ("both", ["id!=a,labels"], ""),
    ("no such field", ["name==a"], ""),
    ("created_at is no field", ["created_at"], ""),
]


LISTS = (
    *(
        Case(
            what,
            pb.ListRequest(filters=filters),
            pb.ListResponse(leases=[LISTED[id] for id in found]),
        )
        for what, filters, found in FILTERS
    ),
    Case(
        "a filter that is none",
        pb.ListRequest(filters=["id=a"]),
        invalid('filters: parse error: [id >|=|< a]: unsupported operator "="'),
    ),
)


async def test_list(door: Door) -> None:
    leases = door.stub(pb.Leases)
    for id in "cab":
        await leases.create(create(id, **LISTED[id].labels))
    await door.stub(pb.Leases, "other").create(create("d"))
    await ask_all(leases.list, LISTS)


RESOURCES = [
    ("a blob", "content", X),
    ("a blob of sha512", "content", digest.of(b"", "sha512")),
    ("an ingest", "ingests", "any ref/at:all"),
    ("an image", "images", "docker.io/library/x:1"),
    ("a snapshot", "snapshots/native", "any key"),
    ("a snapshot of a snapshotter that is not here", "snapshots/zfs", "k"),
]


@cases(*(Case(what, add("l", type, id), (type, id)) for what, type, id in RESOURCES))
async def test_resources_come_and_go(door: Door, case: Case) -> None:
    """They need not exist; adding and taking away are idempotent."""
    leases = door.stub(pb.Leases)
    await leases.create(create("l"))
    await leases.create(create("other"))
    for _ in range(2):
        assert await leases.add_resource(case.request) == Empty()
        assert await held(door, "l") == [case.answer]
    assert await held(door, "other") == []
    for _ in range(2):
        assert await leases.delete_resource(drop(case.request)) == Empty()
        assert await held(door, "l") == []
    assert door.told() == []


RESOURCES_REFUSED = (
    Case("no lease", add("x", "content", X), missing('lease "x"')),
    Case("no lease, whatever the resource", add("x", "weird", "k"), missing('lease "x"')),
    Case(
        "no digest",
        add("l", "content", "bad"),
        invalid("invalid content resource id bad: invalid checksum digest format"),
    ),
    Case(
        "an empty digest",
        add("l", "content", ""),
        invalid("invalid content resource id : invalid checksum digest format"),
    ),
    Case(
        "a short digest",
        add("l", "content", "sha256:abc"),
        invalid("invalid content resource id sha256:abc: invalid checksum digest length"),
    ),
    Case(
        "content of something", add("l", "content/x", X), invalid("invalid resource type content/x")
    ),
    Case(
        "ingests of something",
        add("l", "ingests/x", "r"),
        invalid("invalid resource type ingests/x"),
    ),
    Case(
        "images of something", add("l", "images/x", "i"), invalid("invalid resource type images/x")
    ),
    Case(
        "snapshots of no snapshotter",
        add("l", "snapshots", "k"),
        invalid("invalid snapshot resource type snapshots"),
    ),
    Case(
        "snapshots of too much",
        add("l", "snapshots/a/b", "k"),
        invalid("invalid snapshot resource type snapshots/a/b"),
    ),
    *(
        Case(
            f"type {type!r}",
            add("l", type, "k"),
            Refused(Code.UNIMPLEMENTED, f"resource type {type} not supported yet: not implemented"),
        )
        for type in ("weird", "", "containers", "Content")
    ),
)


async def test_resources_refused(door: Door) -> None:
    leases = door.stub(pb.Leases)
    await leases.create(create("l"))
    await ask_all(leases.add_resource, RESOURCES_REFUSED)
    drops = [row._replace(request=drop(row.request)) for row in RESOURCES_REFUSED]
    await ask_all(leases.delete_resource, drops)
    assert await held(door, "l") == []


RESOURCE_LISTS = (
    Case(
        "in order: content, images, ingests, snapshots",
        pb.ListResourcesRequest(id="l"),
        pb.ListResourcesResponse(
            resources=[
                pb.Resource(type="content", id=X),
                pb.Resource(type="images", id="i"),
                pb.Resource(type="ingests", id="a"),
                pb.Resource(type="ingests", id="b"),
                pb.Resource(type="snapshots/native", id="k"),
                pb.Resource(type="snapshots/overlayfs", id="a"),
            ]
        ),
    ),
    Case("a missing lease", pb.ListResourcesRequest(id="x"), missing('lease "x"')),
    Case("no id", pb.ListResourcesRequest(), missing('lease ""')),
)


async def test_list_resources(door: Door) -> None:
    leases = door.stub(pb.Leases)
    await leases.create(create("l"))
    for type, id in (
        ("snapshots/overlayfs", "a"),
        ("ingests", "b"),
        ("images", "i"),
        ("snapshots/native", "k"),
        ("ingests", "a"),
        ("content", X),
    ):
        await leases.add_resource(add("l", type, id))
    await ask_all(leases.list_resources, RESOURCE_LISTS)


async def write(door: Door, lease: str, *requests: Any) -> Any:
    """The answers of a write stream under a lease."""
    return await Case("", list(requests), lambda _: True).ask(
        door.stub(content_pb2.Content, lease=lease).write
    )


STAT = content_pb2.WriteContentRequest(action=content_pb2.STAT, ref="r")
COMMIT = content_pb2.WriteContentRequest(action=content_pb2.COMMIT, ref="r", data=b"x")
PREPARE = snapshots_pb2.PrepareSnapshotRequest(snapshotter="native", key="k")
VIEW = snapshots_pb2.ViewSnapshotRequest(snapshotter="native", key="v")
SNAPSHOT_COMMIT = snapshots_pb2.CommitSnapshotRequest(snapshotter="native", name="n", key="k")


async def test_what_is_made_under_a_lease_joins_it(door: Door) -> None:
    await door.stub(pb.Leases).create(create("l"))
    await write(door, "l", STAT)
    assert await held(door, "l") == [("ingests", "r")]
    await write(door, "l", COMMIT)
    assert await held(door, "l") == [("content", X)]
    snapshots = door.stub(snapshots_pb2.Snapshots, lease="l")
    await snapshots.prepare(PREPARE)
    assert await held(door, "l") == [("content", X), ("snapshots/native", "k")]
    await snapshots.commit(SNAPSHOT_COMMIT)
    await snapshots.view(VIEW)
    assert await held(door, "l") == [
        ("content", X),
        ("snapshots/native", "n"),
        ("snapshots/native", "v"),
    ]
    content = door.stub(content_pb2.Content, lease="l")
    await content.delete(content_pb2.DeleteContentRequest(digest=X))
    for key in "vn":
        remove = snapshots_pb2.RemoveSnapshotRequest(snapshotter="native", key=key)
        await snapshots.remove(remove)
    assert await held(door, "l") == []


async def test_content_that_is_there_joins_the_lease(door: Door) -> None:
    await door.stub(pb.Leases).create(create("l"))
    await write(door, "", COMMIT)
    assert await held(door, "l") == []
    known = content_pb2.WriteContentRequest(action=content_pb2.STAT, ref="r", expected=X)
    refused = await write(door, "l", known)
    assert refused.code == Code.ALREADY_EXISTS
    assert await held(door, "l") == [("content", X)]


NO_LEASE = missing("lease does not exist")


async def test_nothing_is_made_under_an_unknown_lease(door: Door) -> None:
    snapshots = door.stub(snapshots_pb2.Snapshots, lease="absent")
    await Case("", [STAT], NO_LEASE).ask(door.stub(content_pb2.Content, lease="absent").write)
    await Case("", PREPARE, NO_LEASE).ask(snapshots.prepare)
    await Case("", VIEW, NO_LEASE).ask(snapshots.view)
    statuses = await door.stub(content_pb2.Content).list_statuses(content_pb2.ListStatusesRequest())
    assert not statuses.statuses
    listed = snapshots_pb2.ListSnapshotsRequest(snapshotter="native")
    assert [page async for page in door.stub(snapshots_pb2.Snapshots).list(listed)] == []


async def blobs(door: Door) -> list[str]:
    pages = door.stub(content_pb2.Content).list(content_pb2.ListContentRequest())
    return [info.digest async for page in pages for info in page.info]


@cases(
    Case("no label", create("l"), [X]),
    Case("a time to come", create("l", **EXPIRES), [X]),
    Case("a time gone by", create("l", **EXPIRED), []),
    Case("a time that is none", create("l", **{"containerd.io/gc.expire": "never"}), [X]),
)
async def test_a_lease_keeps_until_it_expires(door: Door, case: Case) -> None:
    leases = door.stub(pb.Leases)
    await leases.create(case.request)
    await write(door, "l", COMMIT)
    await leases.create(create("collect"))
    await leases.delete(pb.DeleteRequest(id="collect", sync=True))
    assert await blobs(door) == case.answer
    assert [one.id for one in await stored(door)] == (["l"] if case.answer else [])


async def test_sync_waits_for_a_collection(door: Door) -> None:
    leases = door.stub(pb.Leases)
    await leases.create(create("l"))
    await write(door, "l", COMMIT)
    await leases.create(create("second"))
    await leases.add_resource(add("second", "content", X))
    await leases.delete(pb.DeleteRequest(id="l", sync=True))
    assert await blobs(door) == [X]
    await leases.delete(pb.DeleteRequest(id="second"))
    assert await blobs(door) == [X]
    await leases.create(create("third"))
    await leases.delete(pb.DeleteRequest(id="third", sync=True))
    assert await blobs(door) == []


@cases(
    Case("of any lease", {}, {X, Y}),
    Case("of a flat one", {"containerd.io/gc.flat": "1"}, {X}),
    Case("of one that is flat by an empty label", {"containerd.io/gc.flat": ""}, {X, Y}),
)
async def test_what_labels_refer_to_is_kept(door: Door, case: Case) -> None:
    """An empty label is none."""
    leases = door.stub(pb.Leases)
    await leases.create(create("l", **case.request))
    await leases.create(create("collect"))
    refers = content_pb2.WriteContentRequest(
        action=content_pb2.COMMIT,
        ref="x",
        data=b"x",
        labels={"containerd.io/gc.ref.content.0": Y},
    )
    await write(door, "", content_pb2.WriteContentRequest(action=COMMIT.action, ref="y", data=b"y"))
    await write(door, "", refers)
    await leases.add_resource(add("l", "content", X))
    await leases.delete(pb.DeleteRequest(id="collect", sync=True))
    assert set(await blobs(door)) == case.answer
