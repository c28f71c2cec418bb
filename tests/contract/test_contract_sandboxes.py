"""The sandbox store (reference, services.md section 14)."""

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
    exists,
    invalid,
    missing,
    sandbox,
)

from cradled.api import sandbox_pb2 as pb
from cradled.api.types_pb2 import Sandbox
from cradled.api.wellknown_pb2 import Any as AnyMessage
from cradled.api.wellknown_pb2 import Timestamp

ONE, TWO = AnyMessage(type_url="x", value=b"1"), AnyMessage(type_url="y", value=b"2")

OLD = sandbox(
    "old",
    labels={"a": "1", "b": "2"},
    spec=ONE,
    extensions={"one": ONE, "two": TWO},
    sandboxer="shim",
    runtime=Sandbox.Runtime(name="r", options=AnyMessage(type_url="o", value=b"3")),
)


def create(made: Sandbox) -> pb.StoreCreateRequest:
    return pb.StoreCreateRequest(sandbox=made)


def update(made: Sandbox, *fields: str) -> pb.StoreUpdateRequest:
    return pb.StoreUpdateRequest(sandbox=made, fields=fields)


def changed(**fields: Any) -> Sandbox:
    """``OLD`` with other values; maps and messages are replaced as a whole, None clears."""
    made = Sandbox()
    made.CopyFrom(OLD)
    for name in fields:
        made.ClearField(name)
    made.MergeFrom(Sandbox(**{k: v for k, v in fields.items() if v is not None}))
    return made


async def stored(door: Door, namespace: str = "ns") -> list[Sandbox]:
    return list((await door.stub(pb.Store, namespace).list(pb.StoreListRequest())).list)


@cases(
    Case("with everything", create(OLD), OLD),
    Case("as little as there can be", create(sandbox("new")), sandbox("new")),
    Case(
        "empty labels are not kept",
        create(changed(labels={"a": "", "b": "2"})),
        changed(labels={"b": "2"}),
    ),
    Case("the longest label", create(changed(labels=LONGEST)), changed(labels=LONGEST)),
)
async def test_create(door: Door, case: Case) -> None:
    """Nothing is told: the controller tells of sandboxes that run."""
    expected = pb.StoreCreateResponse(sandbox=case.answer)
    made = (await case._replace(answer=expected).ask(door.stub(pb.Store).create)).sandbox
    assert made.created_at == made.updated_at
    assert made.created_at.seconds > 0
    assert (await stored(door), door.told()) == ([made], [])


CREATION_REFUSED = (
    Case(
        "a label too long",
        create(changed(labels=TOO_LONG)),
        invalid(f"sandbox.Labels: {TOO_LONG_TEXT}"),
    ),
    Case(
        "a label without key",
        create(changed(labels=KEYLESS)),
        invalid(f"sandbox.Labels: {KEYLESS_TEXT}"),
    ),
    Case(
        "a nameless extension",
        create(changed(extensions={"": ONE})),
        invalid("sandbox.Extension keys must not be zero-length"),
    ),
    *(
        Case(
            f"id: {what}",
            create(sandbox(id)),
            invalid(f"failed to validate sandbox: invalid sandbox ID: {text}"),
        )
        for what, id, text in BAD_IDENTIFIERS
    ),
    Case(
        "no sandbox at all",
        pb.StoreCreateRequest(),
        invalid("failed to validate sandbox: invalid sandbox ID: identifier must not be empty"),
    ),
)


async def test_create_refused(door: Door) -> None:
    await ask_all(door.stub(pb.Store).create, CREATION_REFUSED)
    assert (await stored(door), door.told()) == ([], [])


@cases(
    Case(
        "the same again", create(changed(labels={})), exists('sandbox bucket "old" already exists')
    )
)
async def test_create_twice(door: Door, case: Case) -> None:
    store = door.stub(pb.Store)
    made = (await store.create(create(OLD))).sandbox
    await case.ask(store.create)
    assert await stored(door) == [made]
    await door.stub(pb.Store, "other").create(case.request)


async def test_times_of_a_request_are_ignored(door: Door) -> None:
    store = door.stub(pb.Store)
    past = Timestamp(seconds=1)
    dated = sandbox("old", created_at=past, updated_at=past)
    made = (await store.create(create(dated))).sandbox
    assert made.created_at.seconds > past.seconds
    updated = (await store.update(update(dated))).sandbox
    assert updated.created_at == made.created_at
    assert updated.updated_at.ToNanoseconds() > made.updated_at.ToNanoseconds()


NEW = changed(
    labels={"b": "9", "c": "3"},
    spec=TWO,
    extensions={"two": ONE, "three": TWO},
    runtime=Sandbox.Runtime(name="r", options=TWO),
)
ELSE = changed(
    labels=NEW.labels,
    spec=NEW.spec,
    extensions=NEW.extensions,
    runtime=Sandbox.Runtime(name="else"),
    sandboxer="else",
)


@cases(
    Case("everything that may change", update(NEW), NEW),
    Case("the sandboxer is not touched", update(changed(sandboxer="else")), OLD),
    Case("labels", update(ELSE, "labels"), changed(labels=NEW.labels)),
    Case("labels, none", update(sandbox("old"), "labels"), changed(labels=None)),
    Case("one label", update(ELSE, "labels.b"), changed(labels={"a": "1", "b": "9"})),
    Case("a new label", update(ELSE, "labels.c"), changed(labels={"a": "1", "b": "2", "c": "3"})),
    Case("a label goes", update(ELSE, "labels.a"), changed(labels={"b": "2"})),
    Case("spec", update(ELSE, "spec"), changed(spec=TWO)),
    Case("spec, none", update(sandbox("old"), "spec"), changed(spec=None)),
    Case("runtime", update(ELSE, "runtime"), changed(runtime=Sandbox.Runtime(name="else"))),
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
    Case(
        "several", update(ELSE, "spec", "labels.b"), changed(spec=TWO, labels={"a": "1", "b": "9"})
    ),
)
async def test_update(door: Door, case: Case) -> None:
    store = door.stub(pb.Store)
    old = (await store.create(create(OLD))).sandbox
    expected = pb.StoreUpdateResponse(sandbox=case.answer)
    updated = (await case._replace(answer=expected).ask(store.update)).sandbox
    assert updated.created_at == old.created_at
    assert updated.updated_at.ToNanoseconds() > old.updated_at.ToNanoseconds()
    assert (await stored(door), door.told()) == ([updated], [])


BAD_FIELDS = ("id", "sandbox_id", "sandboxer", "runtime.name", "created_at", "labelsx", "")


UPDATE_REFUSED = (
    Case("a missing one", update(sandbox("x")), missing('bucket "x" not found')),
    Case(
        "a missing one, whatever the mask",
        update(sandbox("x"), "bad"),
        missing('bucket "x" not found'),
    ),
    Case("no id", update(sandbox("")), missing('bucket "" not found')),
    Case(
        "another runtime",
        update(ELSE),
        invalid("sandbox.Runtime.Name field is immutable"),
    ),
    *(
        Case(
            f"field {field!r}",
            update(NEW, "labels", field),
            invalid(f'cannot update "{field}" field on sandbox "old"'),
        )
        for field in BAD_FIELDS
    ),
    Case(
        "a label too long",
        update(changed(labels=TOO_LONG), "labels"),
        invalid(f"sandbox.Labels: {TOO_LONG_TEXT}"),
    ),
    Case(
        "a nameless extension",
        update(OLD, "extensions."),
        invalid("sandbox.Extension keys must not be zero-length"),
    ),
)


async def test_update_refused(door: Door) -> None:
    store = door.stub(pb.Store)
    old = (await store.create(create(OLD))).sandbox
    await ask_all(store.update, UPDATE_REFUSED)
    assert await stored(door) == [old]


GOT = (
    Case(
        "one that is there", pb.StoreGetRequest(sandbox_id="old"), pb.StoreGetResponse(sandbox=OLD)
    ),
    Case("a missing one", pb.StoreGetRequest(sandbox_id="x"), missing('bucket "x" not found')),
    Case("no id", pb.StoreGetRequest(), missing('bucket "" not found')),
)


async def test_get(door: Door) -> None:
    await door.stub(pb.Store).create(create(OLD))
    await ask_all(door.stub(pb.Store).get, GOT)


@cases(
    Case("one that is there", pb.StoreDeleteRequest(sandbox_id="old"), pb.StoreDeleteResponse()),
    Case("a missing one", pb.StoreDeleteRequest(sandbox_id="x"), missing('bucket "x" not found')),
    Case("no id", pb.StoreDeleteRequest(), missing('bucket "" not found')),
)
async def test_delete(door: Door, case: Case) -> None:
    store = door.stub(pb.Store)
    old = (await store.create(create(OLD))).sandbox
    await door.stub(pb.Store, "other").create(create(OLD))
    answer = await case.ask(store.delete)
    left = [old] if isinstance(answer, Refused) else []
    assert (await stored(door), door.told()) == (left, [])
    assert len(await stored(door, "other")) == 1


@cases(
    Case("get", pb.StoreGetRequest(sandbox_id="x"), missing("no sandbox buckets")),
    Case("update", update(sandbox("x")), missing("no sandbox buckets")),
    Case("delete", pb.StoreDeleteRequest(sandbox_id="x"), missing("no sandbox buckets")),
    Case("list", pb.StoreListRequest(), pb.StoreListResponse()),
)
async def test_a_namespace_without_sandboxes(door: Door, case: Case) -> None:
    await door.stub(pb.Store, "other").create(create(OLD))
    await case.ask(getattr(door.stub(pb.Store), case.what))


LISTED = {
    "a": sandbox("a", labels={"k": "v"}),
    "b": sandbox("b", labels={"io.kubernetes/x": "1"}),
    "c": sandbox("c"),
}

FILTERS = [
    ("nothing", [], "abc"),
    ("an empty one", [""], "abc"),
    ("id", ["id==b"], "b"),
    ("ids", ["id==c", "id==a"], "ac"),
    ("not an id", ["id!=b"], "ac"),
    ("a pattern", ["id~=[ab]"], "ab"),
    ("an id is there", ["id"], "abc"),
    ("a label", ["labels.k==v"], "a"),
    ("a label, quoted", ['labels."io.kubernetes/x"'], "b"),
    ("both", ["id!=a,labels.k!=v"], "bc"),
    ("no such field", ["sandbox_id==a"], ""),
]


LISTS = (
    *(
        Case(
            what,
            pb.StoreListRequest(filters=filters),
            pb.StoreListResponse(list=[LISTED[id] for id in found]),
        )
        for what, filters, found in FILTERS
    ),
    Case(
        "a filter that is none",
        pb.StoreListRequest(filters=["id="]),
        invalid('filters: parse error: [id >|=|< ]: unsupported operator "="'),
    ),
)


async def test_list(door: Door) -> None:
    store = door.stub(pb.Store)
    for id in "cab":
        await store.create(create(LISTED[id]))
    await door.stub(pb.Store, "other").create(create(OLD))
    await ask_all(store.list, LISTS)
