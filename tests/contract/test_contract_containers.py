"""Containers (reference, services.md section 4)."""

from __future__ import annotations

import asyncio
from typing import Any

from harness.contract import Case, Door, Refused, answered, ask_all, cases
from harness.records import (
    BAD_IDENTIFIERS,
    KEYLESS,
    KEYLESS_TEXT,
    LONGEST,
    SPEC,
    TOO_LONG,
    TOO_LONG_TEXT,
    container,
    exists,
    invalid,
    missing,
)

from cradled.api import containers_pb2 as pb
from cradled.api import events_pb2
from cradled.api.wellknown_pb2 import Any as AnyMessage
from cradled.api.wellknown_pb2 import Empty, FieldMask, Timestamp
from cradled.rpc.status import Code

OLD_TIME = Timestamp(seconds=1)
ONE, TWO = AnyMessage(type_url="x", value=b"1"), AnyMessage(type_url="y", value=b"2")

OLD = container(
    "old",
    labels={"a": "1", "b": "2"},
    image="i",
    snapshotter="native",
    snapshot_key="k",
    extensions={"one": ONE, "two": TWO},
    sandbox="s",
    runtime=pb.Container.Runtime(name="r", options=AnyMessage(type_url="o", value=b"3")),
)


def create(made: pb.Container) -> pb.CreateContainerRequest:
    return pb.CreateContainerRequest(container=made)


def changed(**fields: Any) -> pb.Container:
    """``OLD`` with other values; maps and messages are replaced as a whole, None clears."""
    made = pb.Container()
    made.CopyFrom(OLD)
    for name in fields:
        made.ClearField(name)
    made.MergeFrom(pb.Container(**{k: v for k, v in fields.items() if v is not None}))
    return made


def update(made: pb.Container, *paths: str) -> pb.UpdateContainerRequest:
    return pb.UpdateContainerRequest(container=made, update_mask=FieldMask(paths=paths))


async def stored(door: Door, namespace: str = "ns") -> list[pb.Container]:
    response = await door.stub(pb.Containers, namespace).list(pb.ListContainersRequest())
    return list(response.containers)


def created(made: pb.Container) -> pb.CreateContainerResponse:
    return pb.CreateContainerResponse(container=made)


def refused_creation(text: str) -> Refused:
    return invalid(f"create container failed validation: {text}")


@cases(
    Case("with everything", create(OLD), created(OLD)),
    Case("as little as there can be", create(container("new")), created(container("new"))),
    Case(
        "empty labels are not kept",
        create(changed(labels={"a": "", "b": "2"})),
        created(changed(labels={"b": "2"})),
    ),
    Case(
        "the longest label",
        create(container("new", labels=LONGEST)),
        created(container("new", labels=LONGEST)),
    ),
    Case(
        "a snapshotter without a key",
        create(container("new", snapshotter="x")),
        created(container("new", snapshotter="x")),
    ),
    Case(
        "an empty extension",
        create(container("new", extensions={"e": AnyMessage()})),
        created(container("new", extensions={"e": AnyMessage()})),
    ),
    Case(
        "a spec without content",
        create(pb.Container(id="new", runtime=OLD.runtime, spec=AnyMessage())),
        created(pb.Container(id="new", runtime=OLD.runtime, spec=AnyMessage())),
    ),
)
async def test_create(door: Door, case: Case) -> None:
    made = (await case.ask(door.stub(pb.Containers).create)).container
    assert await stored(door) == [made]
    assert made.created_at == made.updated_at
    assert made.created_at.seconds > 1
    runtime = events_pb2.ContainerCreate.Runtime(
        name=made.runtime.name,
        options=made.runtime.options if made.runtime.HasField("options") else None,
    )
    event = events_pb2.ContainerCreate(id=made.id, image=made.image, runtime=runtime)
    assert door.told() == [("ns", "/containers/create", event)]


CREATION_REFUSED = (
    *(
        Case(f"id: {what}", create(container(id)), refused_creation(f"container.ID: {text}"))
        for what, id, text in BAD_IDENTIFIERS
    ),
    Case(
        "no container at all",
        pb.CreateContainerRequest(),
        refused_creation("container.ID: identifier must not be empty"),
    ),
    Case(
        "a nameless extension",
        create(container("new", extensions={"": ONE})),
        refused_creation("container.Extension keys must not be zero-length"),
    ),
    Case(
        "a label too long",
        create(container("new", labels=TOO_LONG)),
        refused_creation(f"containers.Labels: {TOO_LONG_TEXT}"),
    ),
    Case(
        "a label without key",
        create(container("new", labels=KEYLESS)),
        refused_creation(f"containers.Labels: {KEYLESS_TEXT}"),
    ),
    Case(
        "no runtime",
        create(pb.Container(id="new", spec=SPEC)),
        refused_creation("container.Runtime.Name must be set"),
    ),
    Case(
        "no spec",
        create(pb.Container(id="new", runtime=OLD.runtime)),
        refused_creation("container.Spec must be set"),
    ),
    Case(
        "a snapshot of no snapshotter",
        create(container("new", snapshot_key="k")),
        refused_creation("container.Snapshotter must be set if container.SnapshotKey is set"),
    ),
)


async def test_create_refused(door: Door) -> None:
    await ask_all(door.stub(pb.Containers).create, CREATION_REFUSED)
    assert (await stored(door), door.told()) == ([], [])


async def test_times_of_a_request_are_ignored(door: Door) -> None:
    containers = door.stub(pb.Containers)
    dated = container("new", created_at=OLD_TIME, updated_at=OLD_TIME)
    made = (await containers.create(create(dated))).container
    assert made.created_at.seconds > OLD_TIME.seconds
    changed = (await containers.update(update(dated))).container
    assert changed.created_at == made.created_at
    assert changed.updated_at.ToNanoseconds() > made.updated_at.ToNanoseconds()


@cases(Case("the same again", create(OLD), exists('container "old"')))
async def test_create_twice(door: Door, case: Case) -> None:
    containers = door.stub(pb.Containers)
    await containers.create(case.request)
    old = await stored(door)
    door.events()
    await case.ask(containers.create)
    assert (await stored(door), door.told()) == (old, [])
    await door.stub(pb.Containers, "other").create(case.request)


NEW = changed(
    labels={"b": "9", "c": "3"},
    spec=AnyMessage(type_url="s", value=b"s"),
    extensions={"two": ONE, "three": TWO},
    image="other",
    snapshot_key="other",
)
ELSE = changed(
    labels=NEW.labels,
    spec=NEW.spec,
    extensions=NEW.extensions,
    image="other",
    snapshot_key="other",
    snapshotter="overlayfs",
    runtime=pb.Container.Runtime(name="else"),
    sandbox="else",
)


@cases(
    Case("everything that may change", update(NEW), NEW),
    Case("a sandbox is not touched", update(changed(sandbox="else")), OLD),
    Case(
        "runtime options are not touched",
        update(changed(runtime=pb.Container.Runtime(name="r"))),
        OLD,
    ),
    Case("labels", update(ELSE, "labels"), changed(labels=NEW.labels)),
    Case("labels, none", update(container("old"), "labels"), changed(labels=None)),
    Case(
        "labels, an empty one",
        update(container("old", labels={"a": "", "c": "3"}), "labels"),
        changed(labels={"c": "3"}),
    ),
    Case("one label", update(ELSE, "labels.b"), changed(labels={"a": "1", "b": "9"})),
    Case(
        "a new label",
        update(ELSE, "labels.c"),
        changed(labels={"a": "1", "b": "2", "c": "3"}),
    ),
    Case("a label goes", update(ELSE, "labels.a"), changed(labels={"b": "2"})),
    Case("a label that never was", update(ELSE, "labels.zz"), OLD),
    Case("a label with dots", update(ELSE, "labels.x.y"), OLD),
    Case("spec", update(ELSE, "spec"), changed(spec=NEW.spec)),
    Case("extensions", update(ELSE, "extensions"), changed(extensions=NEW.extensions)),
    Case(
        "one extension",
        update(ELSE, "extensions.two"),
        changed(extensions={"one": ONE, "two": ONE}),
    ),
    Case(
        "an extension that is not given becomes empty",
        update(ELSE, "extensions.one"),
        changed(extensions={"one": AnyMessage(), "two": TWO}),
    ),
    Case("image", update(ELSE, "image"), changed(image="other")),
    Case("snapshotkey", update(ELSE, "snapshotkey"), changed(snapshot_key="other")),
    Case(
        "several paths",
        update(ELSE, "image", "labels.a", "labels.b"),
        changed(image="other", labels={"b": "9"}),
    ),
)
async def test_update(door: Door, case: Case) -> None:
    containers = door.stub(pb.Containers)
    old = (await containers.create(create(OLD))).container
    door.events()
    answer = await Case(
        case.what, case.request, pb.UpdateContainerResponse(container=case.answer)
    ).ask(containers.update)
    updated = answer.container
    assert await stored(door) == [updated]
    assert updated.created_at == old.created_at
    assert updated.updated_at.ToNanoseconds() > old.updated_at.ToNanoseconds()
    event = events_pb2.ContainerUpdate(
        id="old", image=updated.image, labels=updated.labels, snapshot_key=updated.snapshot_key
    )
    assert door.told() == [("ns", "/containers/update", event)]


BAD_PATHS = (
    "snapshot_key",
    "snapshotter",
    "runtime",
    "runtime.name",
    "id",
    "sandbox",
    "created_at",
    "labelsx",
    "spec.value",
    "",
)


def refused_update(text: str) -> Refused:
    return invalid(f"update failed validation: {text}")


UPDATE_REFUSED = (
    Case(
        "no id",
        update(pb.Container()),
        Refused(Code.INVALID_ARGUMENT, "Container.ID required"),
    ),
    Case("a missing one", update(container("x")), missing('container "x" in namespace "ns"')),
    Case(
        "a missing one, whatever the mask",
        update(container("x"), "bad"),
        missing('container "x" in namespace "ns"'),
    ),
    *(
        Case(
            f"mask {path!r}",
            update(NEW, "image", path),
            invalid(f'cannot update "{path}" field on "old"'),
        )
        for path in BAD_PATHS
    ),
    Case(
        "another snapshotter",
        update(changed(snapshotter="x")),
        invalid("container.Snapshotter field is immutable"),
    ),
    Case(
        "another runtime",
        update(changed(runtime=pb.Container.Runtime(name="x"))),
        invalid("container.Runtime.Name field is immutable"),
    ),
    Case("another of both", update(ELSE), invalid("container.Snapshotter field is immutable")),
    Case("no spec", update(changed(spec=None)), refused_update("container.Spec must be set")),
    Case(
        "no spec, by mask",
        update(changed(spec=None), "spec"),
        refused_update("container.Spec must be set"),
    ),
    Case(
        "a label too long",
        update(changed(labels=TOO_LONG), "labels"),
        refused_update(f"containers.Labels: {TOO_LONG_TEXT}"),
    ),
    Case(
        "a nameless extension",
        update(OLD, "extensions."),
        refused_update("container.Extension keys must not be zero-length"),
    ),
)


async def test_update_refused(door: Door) -> None:
    containers = door.stub(pb.Containers)
    old = (await containers.create(create(OLD))).container
    door.events()
    await ask_all(containers.update, UPDATE_REFUSED)
    assert (await stored(door), door.told()) == ([old], [])


GOT = (
    Case(
        "one that is there",
        pb.GetContainerRequest(id="old"),
        pb.GetContainerResponse(container=OLD),
    ),
    Case(
        "a missing one",
        pb.GetContainerRequest(id="x"),
        missing('container "x" in namespace "ns"'),
    ),
    Case("no id", pb.GetContainerRequest(), missing('container "" in namespace "ns"')),
    Case(
        "an id that must be escaped",
        pb.GetContainerRequest(id='"\\\t\x00'),
        missing(r'container "\"\\\t\x00" in namespace "ns"'),
    ),
)


async def test_get(door: Door) -> None:
    await door.stub(pb.Containers).create(create(OLD))
    await ask_all(door.stub(pb.Containers).get, GOT)
    absent = Case(
        "", pb.GetContainerRequest(id="old"), missing('container "old" in namespace "two"')
    )
    await absent.ask(door.stub(pb.Containers, "two").get)


@cases(
    Case("one that is there", pb.DeleteContainerRequest(id="old"), Empty()),
    Case(
        "a missing one",
        pb.DeleteContainerRequest(id="x"),
        missing('container "x" in namespace "ns"'),
    ),
    Case("no id", pb.DeleteContainerRequest(), missing('container "" in namespace "ns"')),
)
async def test_delete(door: Door, case: Case) -> None:
    containers = door.stub(pb.Containers)
    old = (await containers.create(create(OLD))).container
    await door.stub(pb.Containers, "other").create(create(OLD))
    door.events()
    answer = await case.ask(containers.delete)
    if isinstance(answer, Refused):
        assert (await stored(door), door.told()) == ([old], [])
    else:
        event = events_pb2.ContainerDelete(id="old")
        assert (await stored(door), door.told()) == ([], [("ns", "/containers/delete", event)])
    assert len(await stored(door, "other")) == 1


LISTED = {
    "a": container("a", image="docker.io/x:1", labels={"k": "v"}),
    "b": container("b", labels={"containerd.io/x.y": "1", "e": "1"}),
    "c": container("c", runtime=pb.Container.Runtime(name="other"), image="i"),
}

FILTERS = [
    ("nothing", [], "abc"),
    ("an empty one", [""], "abc"),
    ("an empty one beside others", ["id==a", ""], "abc"),
    ("id", ["id==b"], "b"),
    ("ids", ["id==c", "id==a"], "ac"),
    ("not an id", ["id!=b"], "ac"),
    ("a pattern of ids", ["id~=^[bc]$"], "bc"),
    ("an id is there", ["id"], "abc"),
    ("image", ["image==i"], "c"),
    ("an image is there", ["image"], "ac"),
    ("no image is no empty one", ['image==""'], ""),
    ("but is not another", ["image!=i"], "ab"),
    ("and any pattern's", ["image~=|.*|"], "abc"),
    ("a pattern with slashes", ["image~=|^docker.io/|"], "a"),
    ("runtime.name", ["runtime.name==other"], "c"),
    ("a runtime is there", ["runtime.name"], "abc"),
    ("runtime alone is no field", ["runtime"], ""),
    ("a label", ["labels.k==v"], "a"),
    ("a label is there", ["labels.e"], "b"),
    ("a label with dots, quoted", ['labels."containerd.io/x.y"==1'], "b"),
    ("all labels are no field", ["labels"], ""),
    ("both", ["id!=a,image"], "c"),
    ("no such field", ["name==a"], ""),
    ("no such field is not a value", ["name!=a"], "abc"),
]


BAD_FILTER = Case(
    "a filter that is none",
    pb.ListContainersRequest(filters=["id==a", "id="]),
    invalid('filters: parse error: [id >|=|< ]: unsupported operator "="'),
)


async def test_lists(door: Door) -> None:
    """In one message or one container a message: the same, in the order of ids."""
    containers = door.stub(pb.Containers)
    for id in "cab":
        await containers.create(create(LISTED[id]))
    await door.stub(pb.Containers, "other").create(create(OLD))
    in_one, each = [BAD_FILTER], [BAD_FILTER]
    for what, filters, found in FILTERS:
        request = pb.ListContainersRequest(filters=filters)
        listed = [LISTED[id] for id in found]
        in_one.append(Case(what, request, pb.ListContainersResponse(containers=listed)))
        messages = [pb.ListContainerMessage(container=one) for one in listed]
        each.append(Case(what, request, messages))
    await ask_all(containers.list, in_one)
    await ask_all(containers.list_stream, each)


async def test_lists_of_a_namespace_that_is_none(door: Door) -> None:
    containers = door.stub(pb.Containers, "absent")
    await Case("", pb.ListContainersRequest(), pb.ListContainersResponse()).ask(containers.list)
    await Case("", pb.ListContainersRequest(), []).ask(containers.list_stream)


async def test_one_of_many_makes_it(door: Door) -> None:
    containers = door.stub(pb.Containers)
    answers = await asyncio.gather(
        *(answered(containers.create, create(container("c", image=str(n)))) for n in range(12))
    )
    made = [answer.container for answer in answers if not isinstance(answer, Refused)]
    assert await stored(door) == made
    assert len(made) == 1
    assert answers.count(exists('container "c"')) == 11
    assert [topic for _, topic, _ in door.told()] == ["/containers/create"]


async def test_changes_at_once_are_all_kept(door: Door) -> None:
    """Each of its own label: none undoes another's."""
    containers = door.stub(pb.Containers)
    await containers.create(create(container("c")))
    labels = {f"k{n}": str(n) for n in range(12)}
    await asyncio.gather(
        *(
            containers.update(update(container("c", labels=labels), f"labels.{key}"))
            for key in labels
        )
    )
    assert [dict(one.labels) for one in await stored(door)] == [labels]


async def test_a_lease_is_not_asked_for(door: Door) -> None:
    """Containers keep what they use by themselves, so they never join a lease."""
    containers = door.stub(pb.Containers, lease="absent")
    await containers.create(create(OLD))
    await containers.delete(pb.DeleteContainerRequest(id="old"))


async def test_what_is_not_known_of_a_spec_stays(door: Door) -> None:
    """Specs, options and extensions are bytes of somebody else's."""
    odd = AnyMessage(type_url="of/somebody", value=bytes(range(256)))
    made = container("odd", spec=odd, extensions={"e": odd})
    made.runtime.options.CopyFrom(odd)
    containers = door.stub(pb.Containers)
    await Case("", create(made), created(made)).ask(containers.create)
    got = pb.GetContainerResponse(container=made)
    await Case("", pb.GetContainerRequest(id="odd"), got).ask(containers.get)
