"""The filter language as clients meet it, and the fields of lists that have no suite of their own.

Reference, services.md section 2. The grammar is asked of leases: their filters see any text as an
id and any map as labels. Lists of records show their fields in their own suites.
"""

from __future__ import annotations

from typing import Any

import pytest
from harness.contract import Case, Door, answered, ask_all
from harness.records import invalid

from cradled import digest
from cradled.api import content_pb2, leases_pb2, snapshots_pb2

ODD = 'a,b "c" /d/ |e| é\n'

IDS = {
    "one": {"k": "v", "foo.bar": "1"},
    "two": {"containerd.io/gc.root": "2001", "k": "w"},
    "a,b": {"odd": ODD},
    "é": {"n": "10", "e.x-y": "q"},
}


@pytest.fixture
async def leases(door: Door) -> Any:
    stub = door.stub(leases_pb2.Leases)
    for id, labels in IDS.items():
        await stub.create(leases_pb2.CreateRequest(id=id, labels=labels))
    return stub


def found(*ids: str) -> leases_pb2.ListResponse:
    listed = [leases_pb2.Lease(id=id, labels=IDS[id]) for id in sorted(ids)]
    return leases_pb2.ListResponse(leases=listed)


EVERY = tuple(IDS)

SELECTED = [
    # lists of expressions
    ("no expression", [], EVERY),
    ("an empty one", [""], EVERY),
    ("alternatives", ["id==one", "id==two"], ("one", "two")),
    ("the same twice", ["id==one", "id==one"], ("one",)),
    ("an empty one among others", ["id==one", ""], EVERY),
    # several selectors
    ("all must match", ["id~=o,labels.k==v"], ("one",)),
    ("and may contradict", ["id==one,id==two"], ()),
    ("with a space behind the comma", ["id~=o, labels.k==v"], ("one",)),
    # presence
    ("a field is there", ["id"], EVERY),
    ("a label is there", ["labels.k"], ("one", "two")),
    ("no such label", ["labels.none"], ()),
    ("no such field", ["nothing"], ()),
    # ==
    ("equal", ["id==one"], ("one",)),
    ("equal is exact", ["id==on"], ()),
    ("equal to nothing", ['labels.none==""'], ()),
    ("equal, quoted", ['id=="one"'], ("one",)),
    ("equal, with what is special elsewhere", ['id=="a,b"'], ("a,b",)),
    ("equal, not ASCII", ["id==é"], ("é",)),
    ("spaces around the operator", ["id == one"], ("one",)),
    ("spaces in front", ["  id==one"], ("one",)),
    # !=
    ("unequal", ["id!=one"], ("two", "a,b", "é")),
    ("an absent label is unequal to something", ["labels.k!=v"], ("two", "a,b", "é")),
    ("but equal to nothing", ['labels.none!=""'], ()),
    # ~=
    ("a pattern is searched", ["id~=n"], ("one",)),
    ("anchored", ["id~=^o"], ("one",)),
    ("at the end", ["id~=o$"], ("two",)),
    ("quoted", ['id~="^(one|two)$"'], ("one", "two")),
    ("between slashes", ["id~=/^(one|two)$/"], ("one", "two")),
    ("between bars", ["id~=|^.n|"], ("one",)),
    ("a slash in slashes", [r"labels.odd~=/\/d\//"], ("a,b",)),
    ("a bar in bars is one of the pattern", [r"labels.n~=|x\|1|"], ("é",)),
    ("a class", [r"labels.n~=/^\\d+$/"], ("é",)),
    ("a class, not quoted", [r"labels.n~=^\d+$"], ("é",)),
    ("ignoring case", ["id~=(?i)ONE"], ("one",)),
    ("every pattern that nothing matches", ["labels.none~=/.*/"], EVERY),
    ("no pattern", ["id~=["], ()),
    ("no pattern, quoted", ['id~="(?<x>"'], ()),
    ("not what RE2 knows", [r"id~=/(o)\\1/"], ()),
    # paths
    ("a label with dots", ["labels.foo.bar==1"], ("one",)),
    ("a quoted label", ['labels."containerd.io/gc.root"==2001'], ("two",)),
    ("a label quoted in part", ['labels.foo."bar"==1'], ("one",)),
    ("a label quoted at its end", ['labels.e."x-y"'], ("é",)),
    ("a quoted field", ['"id"==one'], ("one",)),
    # quoted values
    ("a quote", [r'labels.odd=="a,b \"c\" /d/ |e| é\n"'], ("a,b",)),
    ("hexadecimal", [r'id=="\x6fne"'], ("one",)),
    ("octal", [r'id=="\157ne"'], ("one",)),
    ("four digits", [r'id=="\u00e9"'], ("é",)),
    ("eight digits", [r'id=="\U000000e9"'], ("é",)),
    # unquoted values
    ("an operator in a value", ["id==a==b"], ()),
    ("a dash", ["id==a-b/c:d@e"], ()),
]

OPERATORS = '("=="|"!="|"~=")'

REFUSED = [
    ("only a comma", ",", "[ >|,|< ]: expected field or quoted"),
    ("only an operator", "==a", "[ >|=|< =a]: expected field or quoted"),
    ("a comma at the end", "id==one,", "[id==one,]: expected field or quoted"),
    ("a dot at the end", "labels.", "[labels.]: expected field or quoted"),
    ("two dots", "labels..k", "[labels. >|.|< k]: expected field or quoted"),
    ("one equals sign", "id=one", '[id >|=|< one]: unsupported operator "="'),
    ("three equals signs", "id===one", '[id >|=|< ==one]: unsupported operator "==="'),
    ("an operator that is none", "id~~one", '[id >|~|< ~one]: unsupported operator "~~"'),
    ("a dash in a field", "gc-root", f"[gc >|-|< root]: expected an operator {OPERATORS}"),
    ("no value", "id==", "[id==]: expected value or quoted"),
    ("a comma for a value", "id==,id", "[id== >|,|< id]: expected value or quoted"),
    ("a dot for a value", "id==.a", "[id== >|.|< a]: expected value or quoted"),
    ("two values", "id==a b", "[id==a >| |< b]: unexpected input:  "),
    ("a space behind", "id==a ", "[id==a >| |< ]: unexpected input:  "),
    ("a space before a comma", "id==a ,id", "[id==a >| |< ,id]: unexpected input:  "),
    ("more behind a quote", 'id=="a"b', '[id=="a" >|b|< ]: unexpected input: b'),
    ("two fields", "id id", f"[id  >|i|< d]: expected an operator {OPERATORS}"),
    ("a quote without end", 'id=="one', '[id== >|"|< one]: quoted literal not terminated'),
    ("slashes after ==", "id==/one/", "[id== >|/|< one/]: invalid quote encountered"),
    ("bars after !=", "id!=|one|", "[id!= >|||< one|]: invalid quote encountered"),
    ("a bad escape", r'id=="\q"', r'[id== >|"|< \q"]: illegal escape sequence'),
    (
        "an escape of too little",
        r'id=="\x1"',
        r'[id== >|"|< \x1"]: illegal numeric escape sequence',
    ),
    ("a class between slashes", r"id~=/\d/", r"[id~= >|/|< \d/]: illegal escape sequence"),
]


SELECTIONS = [
    Case(what, leases_pb2.ListRequest(filters=filters), found(*ids))
    for what, filters, ids in SELECTED
]


async def test_what_is_selected(leases: Any) -> None:
    await ask_all(leases.list, SELECTIONS)


REFUSALS = [
    Case(
        what,
        leases_pb2.ListRequest(filters=["id", text]),
        invalid(f"filters: parse error: {why}"),
    )
    for what, text, why in REFUSED
]


async def test_what_is_refused(leases: Any) -> None:
    """One bad expression is enough, wherever it stands."""
    await ask_all(leases.list, REFUSALS)


X, Y = b"x", b"yy"

CONTENT = [
    Case(what, content_pb2.ListContentRequest(filters=filters), expected)
    for what, filters, expected in (
        ("nothing", [], [X, Y]),
        ("digest", [f"digest=={digest.of(X)}"], [X]),
        ("a pattern of digests", ["digest~=^sha256:"], [X, Y]),
        ("a digest is there", ["digest"], [X, Y]),
        ("a label", ["labels.k==v"], [Y]),
        ("a label, quoted", ['labels."containerd.io/gc.root"'], [Y]),
        ("size is never there", ["size"], []),
        ("nor equal to itself", ["size==1"], []),
        ("no such field", ["ref"], []),
    )
]


async def test_fields_of_content(door: Door) -> None:
    content = door.stub(content_pb2.Content)
    labels = {"k": "v", "containerd.io/gc.root": "1"}
    for data, given in ((X, {}), (Y, labels)):
        commit = content_pb2.WriteContentRequest(
            action=content_pb2.COMMIT, ref="r", data=data, labels=given
        )
        await answered(content.write, [commit])
    for case in CONTENT:
        pages = await answered(content.list, case.request)
        listed = {info.digest for page in pages for info in page.info}
        assert listed == {digest.of(data) for data in case.answer}, case.what


INGESTS = [
    Case(what, content_pb2.ListStatusesRequest(filters=filters), expected)
    for what, filters, expected in (
        ("nothing", [], ["one", "two"]),
        ("ref", ["ref==one"], ["one"]),
        ("a pattern", ["ref~=^t"], ["two"]),
        ("a ref is there", ["ref"], ["one", "two"]),
        ("no such field", ["digest"], []),
    )
]


async def test_fields_of_ingests(door: Door) -> None:
    content = door.stub(content_pb2.Content)
    for ref in ("one", "two"):
        stat = content_pb2.WriteContentRequest(action=content_pb2.STAT, ref=ref)
        await answered(content.write, [stat])
    for case in INGESTS:
        response = await content.list_statuses(case.request)
        assert sorted(status.ref for status in response.statuses) == case.answer, case.what


SNAPSHOTS = [
    Case(
        what,
        snapshots_pb2.ListSnapshotsRequest(snapshotter="native", filters=filters),
        expected,
    )
    for what, filters, expected in (
        ("nothing", [], {"base", "top", "look"}),
        ("name", ["name==base"], {"base"}),
        ("a name is there", ["name"], {"base", "top", "look"}),
        ("parent", ["parent==base"], {"top", "look"}),
        ("no parent is an empty one", ['parent==""'], {"base"}),
        ("and is there", ["parent"], {"base", "top", "look"}),
        ("active", ["kind==active"], {"top"}),
        ("view", ["kind==view"], {"look"}),
        ("committed", ["kind==committed"], {"base"}),
        ("a label", ["labels.k==v"], {"top"}),
        ("no such field", ["key==top"], set()),
    )
]


async def test_fields_of_snapshots(door: Door) -> None:
    pb = snapshots_pb2
    snapshots = door.stub(pb.Snapshots)
    await snapshots.prepare(pb.PrepareSnapshotRequest(snapshotter="native", key="k"))
    await snapshots.commit(pb.CommitSnapshotRequest(snapshotter="native", name="base", key="k"))
    above = {"snapshotter": "native", "parent": "base"}
    await snapshots.prepare(pb.PrepareSnapshotRequest(key="top", labels={"k": "v"}, **above))
    await snapshots.view(pb.ViewSnapshotRequest(key="look", **above))
    for case in SNAPSHOTS:
        pages = await answered(snapshots.list, case.request)
        assert {info.name for page in pages for info in page.info} == case.answer, case.what
