"""Snapshots (reference, services.md section 7 and storage.md section 3)."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from harness.contract import Case, Door, Refused, answered, cases
from harness.records import (
    BAD_NAMESPACE,
    LONGEST,
    NO_NAMESPACE,
    TOO_LONG,
    TOO_LONG_TEXT,
    exists,
    invalid,
    missing,
)

from cradled.api import events_pb2, leases_pb2
from cradled.api import snapshots_pb2 as pb
from cradled.api.wellknown_pb2 import Empty, FieldMask
from cradled.rpc.status import Code

NATIVE = "native"
REF = "containerd.io/snapshot.ref"
on_overlay = pytest.mark.stores("overlayfs")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
FOR_BACKEND = {"containerd.io/snapshot/x": "1"}


def prepare(key: str, parent: str = "", **labels: str) -> pb.PrepareSnapshotRequest:
    return pb.PrepareSnapshotRequest(snapshotter=NATIVE, key=key, parent=parent, labels=labels)


def view(key: str, parent: str = "", **labels: str) -> pb.ViewSnapshotRequest:
    return pb.ViewSnapshotRequest(snapshotter=NATIVE, key=key, parent=parent, labels=labels)


def commit(name: str, key: str, parent: str = "", **labels: str) -> pb.CommitSnapshotRequest:
    return pb.CommitSnapshotRequest(
        snapshotter=NATIVE, name=name, key=key, parent=parent, labels=labels
    )


def update(name: str, *paths: str, **labels: str) -> pb.UpdateSnapshotRequest:
    mask = FieldMask(paths=paths)
    info = pb.Info(name=name, labels=labels, parent="ignored", kind=pb.VIEW)
    return pb.UpdateSnapshotRequest(snapshotter=NATIVE, info=info, update_mask=mask)


def stat(key: str) -> pb.StatSnapshotRequest:
    return pb.StatSnapshotRequest(snapshotter=NATIVE, key=key)


def remove(key: str) -> pb.RemoveSnapshotRequest:
    return pb.RemoveSnapshotRequest(snapshotter=NATIVE, key=key)


def listing(*filters: str) -> pb.ListSnapshotsRequest:
    return pb.ListSnapshotsRequest(snapshotter=NATIVE, filters=filters)


def refused(text: str) -> Refused:
    return Refused(Code.FAILED_PRECONDITION, f"{text}: failed precondition")


def mounted(kind: str, *options: str) -> Any:
    """One mount of this kind with these options; directories aside."""

    def fits(answer: Any) -> bool:
        (mount,) = answer.mounts
        return mount.type == kind and list(mount.options) == list(options)

    return fits


async def stored(door: Door, namespace: str = "ns") -> dict[str, pb.Info]:
    pages = door.stub(pb.Snapshots, namespace).list(listing())
    return {info.name: info async for page in pages for info in page.info}


async def fill(door: Door) -> Any:
    """A chain of ``bottom`` and ``top``, an active ``a`` on it, a view ``v`` of ``bottom``."""
    snapshots = door.stub(pb.Snapshots)
    await snapshots.prepare(prepare("1"))
    await snapshots.commit(commit("bottom", "1", layer="1"))
    await snapshots.prepare(prepare("2", "bottom"))
    await snapshots.commit(commit("top", "2", layer="2", other="x"))
    await snapshots.prepare(prepare("a", "top", mine="yes"))
    await snapshots.view(view("v", "bottom"))
    door.events()
    return snapshots


KINDS = {"bottom": pb.COMMITTED, "top": pb.COMMITTED, "a": pb.ACTIVE, "v": pb.VIEW}


@cases(
    Case("without a parent", prepare("n"), mounted("bind", "rbind", "rw"), pb.Info(name="n")),
    Case("on a parent", prepare("n", "bottom"), mounted("bind", "rbind", "rw"),
         pb.Info(name="n", parent="bottom")),
    Case("with labels", prepare("n", a="1", b="", **FOR_BACKEND), mounted("bind", "rbind", "rw"),
         pb.Info(name="n", labels={"a": "1", **FOR_BACKEND})),
    Case("the longest label", prepare("n", **LONGEST), mounted("bind", "rbind", "rw"),
         pb.Info(name="n", labels=LONGEST)),
    Case("a key of any kind", prepare("é x/y\t"), mounted("bind", "rbind", "rw"),
         pb.Info(name="é x/y\t")),
    Case("no key", prepare(""), Refused(Code.INVALID_ARGUMENT, re.compile("required"))),
    Case("a key that is there", prepare("a"), exists('snapshot "a"')),
    Case("a name that is there", prepare("top"), exists('snapshot "top"')),
    Case("a parent that is not there", prepare("n", "x"),
         missing("parent snapshot x does not exist")),
    Case("a parent that is active", prepare("n", "a"),
         invalid('parent "a" is not committed snapshot')),
    Case("a parent that is a view", prepare("n", "v"),
         invalid('parent "v" is not committed snapshot')),
    Case("a label too long", prepare("n", **TOO_LONG), invalid(f"info.Labels: {TOO_LONG_TEXT}")),
    Case("a target that is there", prepare("n", "bottom", **{REF: "top"}),
         exists('target snapshot "top"')),
    Case("a target that is not", prepare("n", **{REF: "x"}), mounted("bind", "rbind", "rw"),
         pb.Info(name="n", labels={REF: "x"})),
)  # fmt: skip
async def test_prepare(door: Door, case: Case) -> None:
    await _made(door, case, "prepare", pb.ACTIVE)


@cases(
    Case("without a parent", view("n"), mounted("bind", "rbind", "ro"), pb.Info(name="n")),
    Case("of a parent", view("n", "bottom", a="1"), mounted("bind", "rbind", "ro"),
         pb.Info(name="n", parent="bottom", labels={"a": "1"})),
    Case("no key", view(""), Refused(Code.INVALID_ARGUMENT, re.compile("required"))),
    Case("a key that is there", view("v"), exists('snapshot "v"')),
    Case("a parent that is not there", view("n", "x"), missing("parent snapshot x does not exist")),
    Case("a parent that is active", view("n", "a"),
         invalid('parent "a" is not committed snapshot')),
    Case("a label too long", view("n", **TOO_LONG), invalid(f"info.Labels: {TOO_LONG_TEXT}")),
    Case("a target is of no meaning", view("n", "bottom", **{REF: "top"}),
         mounted("bind", "rbind", "ro"), pb.Info(name="n", parent="bottom", labels={REF: "top"})),
)  # fmt: skip
async def test_view(door: Door, case: Case) -> None:
    await _made(door, case, "view", pb.VIEW)


async def _made(door: Door, case: Case, rpc: str, kind: Any) -> None:
    snapshots = await fill(door)
    await case.ask(getattr(snapshots, rpc))
    after = await stored(door)
    if case.then is None:
        assert set(after) == set(KINDS)
        assert door.told() == []
        return
    name, parent = case.then.name, case.then.parent
    made = after[name]
    assert made.created_at.ToNanoseconds() == made.updated_at.ToNanoseconds() > 0
    wanted = pb.Info(name=name, parent=parent, kind=kind, labels=case.then.labels)
    await Case("", stat(name), pb.StatSnapshotResponse(info=wanted)).ask(snapshots.stat)
    event = events_pb2.SnapshotPrepare(key=name, parent=parent, snapshotter=NATIVE)
    assert door.told() == ([("ns", "/snapshot/prepare", event)] if rpc == "prepare" else [])


@cases(
    Case("an active one", "a", mounted("bind", "rbind", "rw")),
    Case("a view", "v", mounted("bind", "rbind", "ro")),
    Case("a committed one", "top", refused("requested snapshot top not active or view")),
    Case("a missing one", "x", missing("snapshot x does not exist")),
    Case("none", "", missing("snapshot  does not exist")),
)
async def test_mounts(door: Door, case: Case) -> None:
    snapshots = await fill(door)
    request = pb.MountsRequest(snapshotter=NATIVE, key=case.request)
    first = await case._replace(request=request).ask(snapshots.mounts)
    assert first == await answered(snapshots.mounts, request)


@cases(
    Case("an active one", commit("n", "a"), Empty(), pb.Info(name="n", parent="top")),
    Case("with labels", commit("n", "a", a="1", b=""), Empty(),
         pb.Info(name="n", parent="top", labels={"a": "1"})),
    Case("its parent told again", commit("n", "a", "top"), Empty(),
         pb.Info(name="n", parent="top")),
    Case("another parent", commit("n", "a", "bottom"),
         invalid("cannot change parent of active snapshot")),
    Case("a view", commit("n", "v"), refused("snapshot v is not active")),
    Case("a committed one", commit("n", "top"), refused("snapshot top is not active")),
    Case("a missing one", commit("n", "x"), missing("snapshot x does not exist")),
    Case("no key", commit("n", ""), missing("snapshot  does not exist")),
    Case("no name", commit("", "a"), Refused(Code.INVALID_ARGUMENT, re.compile("required"))),
    Case("a name that is there", commit("top", "a"), exists('snapshot "top"')),
    Case("a key's name", commit("v", "a"), exists('snapshot "v"')),
    Case("its own key", commit("a", "a"), exists('snapshot "a"')),
    Case("a label too long", commit("n", "a", **TOO_LONG),
         invalid(f"info.Labels: {TOO_LONG_TEXT}")),
)  # fmt: skip
async def test_commit(door: Door, case: Case) -> None:
    snapshots = await fill(door)
    await case.ask(snapshots.commit)
    after = await stored(door)
    if case.then is None:
        assert {name: info.kind for name, info in after.items()} == KINDS
        assert after["a"].labels == {"mine": "yes"}
        assert door.told() == []
        return
    assert "a" not in after
    made = after[case.then.name]
    assert (made.kind, made.parent, made.labels) == (
        pb.COMMITTED, case.then.parent, case.then.labels,
    )  # fmt: skip
    event = events_pb2.SnapshotCommit(key="a", name="n", snapshotter=NATIVE)
    assert door.told() == [("ns", "/snapshot/commit", event)]


@cases(
    Case("an active one", remove("a"), Empty()),
    Case("a view", remove("v"), Empty()),
    Case("one with a child", remove("bottom"), refused("cannot remove snapshot with child")),
    Case("one with an active child", remove("top"), refused("cannot remove snapshot with child")),
    Case("a missing one", remove("x"), missing("snapshot x does not exist")),
    Case("none", remove(""), missing("snapshot  does not exist")),
)
async def test_remove(door: Door, case: Case) -> None:
    snapshots = await fill(door)
    await case.ask(snapshots.remove)
    if case.answer == Empty():
        event = events_pb2.SnapshotRemove(key=case.request.key, snapshotter=NATIVE)
        assert door.told() == [("ns", "/snapshot/remove", event)]
        assert set(await stored(door)) == set(KINDS) - {case.request.key}
    else:
        assert door.told() == []
        assert set(await stored(door)) == set(KINDS)


async def test_a_chain_goes_from_its_top(door: Door) -> None:
    snapshots = await fill(door)
    for key in ("a", "v", "top", "bottom"):
        await snapshots.remove(remove(key))
    assert await stored(door) == {}
    await snapshots.prepare(prepare("a"))  # the key is free again


@cases(
    Case("a committed one", stat("top"),
         pb.Info(name="top", parent="bottom", kind=pb.COMMITTED,
                 labels={"layer": "2", "other": "x"})),
    Case("an active one", stat("a"),
         pb.Info(name="a", parent="top", kind=pb.ACTIVE, labels={"mine": "yes"})),
    Case("a view", stat("v"), pb.Info(name="v", parent="bottom", kind=pb.VIEW)),
    Case("a missing one", stat("x"), missing("snapshot x does not exist")),
    Case("none", stat(""), missing("snapshot  does not exist")),
    Case("another namespace's", stat("theirs"), missing("snapshot theirs does not exist")),
)  # fmt: skip
async def test_stat(door: Door, case: Case) -> None:
    snapshots = await fill(door)
    await door.stub(pb.Snapshots, "others").prepare(prepare("theirs"))
    if not isinstance(case.answer, Refused):
        case = case._replace(answer=pb.StatSnapshotResponse(info=case.answer))
    await case.ask(snapshots.stat)


TOP = {"layer": "2", "other": "x"}


@cases(
    Case("without a mask all labels", update("top", a="1", b=""), {"a": "1"}),
    Case("without mask and labels", update("top"), {}),
    Case("labels", update("top", "labels", a="1"), {"a": "1"}),
    Case("one label", update("top", "labels.layer", layer="9", a="1"), {**TOP, "layer": "9"}),
    Case("a label away", update("top", "labels.layer"), {"other": "x"}),
    Case("a new label", update("top", "labels.x.y/z", **{"x.y/z": "1"}), {**TOP, "x.y/z": "1"}),
    Case("one for the snapshotter", update("top", "labels", **FOR_BACKEND), FOR_BACKEND),
    Case("the longest label", update("top", **LONGEST), LONGEST),
    Case("a label too long", update("top", **TOO_LONG), invalid(f"info.Labels: {TOO_LONG_TEXT}")),
    *(Case(f"path {path}", update("top", "labels", path),
           invalid(f'cannot update "{path}" field on snapshot "top"'))
      for path in ("kind", "parent", "name", "label", "")),
    Case("a missing one", update("x"), missing("snapshot x does not exist")),
    Case("no name", update(""), Refused(Code.INVALID_ARGUMENT, re.compile("invalid argument$"))),
    Case("no info", pb.UpdateSnapshotRequest(snapshotter=NATIVE),
         Refused(Code.INVALID_ARGUMENT, re.compile("invalid argument$"))),
)  # fmt: skip
async def test_update(door: Door, case: Case) -> None:
    snapshots = await fill(door)
    before = (await stored(door))["top"]
    if isinstance(case.answer, Refused):
        await case.ask(snapshots.update)
        assert (await stored(door))["top"] == before
    else:
        answer = await snapshots.update(case.request)
        after = (await stored(door))["top"]
        assert answer.info == after
        assert after.labels == case.answer
        assert (after.kind, after.parent) == (before.kind, before.parent)
        assert after.created_at == before.created_at
        assert after.updated_at.ToNanoseconds() > before.updated_at.ToNanoseconds()
    assert door.told() == []


def named(*names: str) -> Any:
    def fits(pages: Any) -> bool:
        return [info.name for page in pages for info in page.info] == sorted(names) and len(
            pages
        ) == bool(names)

    return fits


@cases(
    Case("all", listing(), named(*KINDS)),
    Case("by kind: committed", listing("kind==committed"), named("bottom", "top")),
    Case("by kind: active", listing("kind==active"), named("a")),
    Case("by kind: view", listing("kind==view"), named("v")),
    Case("kinds are in small letters", listing("kind==View"), named()),
    Case("by name", listing("name==top"), named("top")),
    Case("by parent", listing("parent==bottom"), named("top", "v")),
    Case("by a label", listing("labels.layer"), named("bottom", "top")),
    Case("by a label's value", listing("labels.layer==2"), named("top")),
    Case("any of the filters", listing("name==a", "kind==view"), named("a", "v")),
    Case("all of a filter", listing("kind==committed,labels.other==x"), named("top")),
    Case("nothing", listing("name==x"), named()),
    Case("a bad filter", listing("=="), lambda a: isinstance(a, Refused)),
)
async def test_list(door: Door, case: Case) -> None:
    snapshots = await fill(door)
    await door.stub(pb.Snapshots, "others").prepare(prepare("theirs"))
    await case.ask(snapshots.list)


async def test_a_list_comes_in_pages_of_a_hundred(door: Door) -> None:
    snapshots = door.stub(pb.Snapshots)
    for number in range(101):
        await snapshots.view(view(f"{number:03}"))
    pages = await answered(snapshots.list, listing())
    assert [len(page.info) for page in pages] == [100, 1]


def usage(key: str) -> pb.UsageRequest:
    return pb.UsageRequest(snapshotter=NATIVE, key=key)


@cases(
    Case("a missing one", usage("x"), missing("snapshot x does not exist")),
    Case("a view", usage("v"), pb.UsageResponse()),
    Case("an empty one", usage("bottom"), lambda a: a.inodes == 1),
)
async def test_usage(door: Door, case: Case) -> None:
    await case.ask((await fill(door)).usage)


async def test_usage_is_measured_while_active_and_kept_when_committed(door: Door) -> None:
    snapshots = door.stub(pb.Snapshots)
    root = Path((await snapshots.prepare(prepare("a"))).mounts[0].source)
    (root / "file").write_bytes(bytes(100_000))
    os.link(root / "file", root / "link")
    (root / "d").mkdir()
    active = await snapshots.usage(usage("a"))
    assert active.inodes == 3
    assert active.size >= 100_000
    await snapshots.commit(commit("c", "a"))
    (root / "later").touch()
    committed = await snapshots.usage(usage("c"))
    assert (committed.size, committed.inodes) == (active.size, active.inodes)


async def test_cleanup_is_hidden_behind_the_namespaces(door: Door) -> None:
    answer = await answered(door.stub(pb.Snapshots).cleanup, pb.CleanupRequest(snapshotter=NATIVE))
    text = "snapshotter does not implement Cleanup method: not implemented"
    assert answer == Refused(Code.UNIMPLEMENTED, text)


async def test_namespaces_do_not_meet(door: Door) -> None:
    snapshots, others = door.stub(pb.Snapshots), door.stub(pb.Snapshots, "others")
    for stub in (snapshots, others):
        await stub.prepare(prepare("k"))
        await stub.commit(commit("c", "k"))
    await others.remove(remove("c"))
    assert list(await stored(door)) == ["c"]
    answer = await answered(others.prepare, prepare("n", "c"))
    assert missing("parent snapshot c does not exist").fits(answer, exact=False)


@on_overlay
@needs_root
class TestRebase:
    """A parent that a commit names (2.2), where the snapshotter can do that."""

    async def test_a_parent_given_late(self, door: Door) -> None:
        snapshots = door.stub(pb.Snapshots)
        for request in (prepare("1"), prepare("2"), prepare("3")):
            request.snapshotter = "overlayfs"
            await snapshots.prepare(request)
        for request in (commit("bottom", "1"), commit("top", "2", "bottom")):
            request.snapshotter = "overlayfs"
            await snapshots.commit(request)
        request = pb.StatSnapshotRequest(snapshotter="overlayfs", key="top")
        assert (await snapshots.stat(request)).info.parent == "bottom"
        late = commit("x", "3", "missing")
        late.snapshotter = "overlayfs"
        answer = await answered(snapshots.commit, late)
        assert missing("parent snapshot missing does not exist").fits(answer, exact=False)


@on_overlay
@needs_root
class TestOverlay:
    """The shapes of overlay's mounts (storage.md section 4)."""

    async def test_shapes(self, door: Door) -> None:
        snapshots = door.stub(pb.Snapshots)

        async def made(rpc: str, request: Any) -> Any:
            request.snapshotter = "overlayfs"
            (mount,) = (await getattr(snapshots, rpc)(request)).mounts
            return mount

        async def committed(name: str, key: str) -> None:
            request = commit(name, key)
            request.snapshotter = "overlayfs"
            await snapshots.commit(request)

        first = await made("prepare", prepare("1"))
        assert (first.type, list(first.options)) == ("bind", ["rw", "rbind"])
        bottom = first.source
        assert (os.stat(bottom).st_mode & 0o7777, os.path.basename(bottom)) == (0o755, "fs")
        await committed("bottom", "1")
        seen = await made("view", view("v1", "bottom"))
        assert (seen.type, seen.source, list(seen.options)) == ("bind", bottom, ["ro", "rbind"])
        active = await made("prepare", prepare("2", "bottom"))
        words = dict(word.split("=", 1) for word in active.options)
        assert (active.type, active.source) == ("overlay", "overlay")
        assert list(words)[:3] == ["workdir", "upperdir", "lowerdir"]
        assert words["lowerdir"] == bottom
        assert os.stat(words["workdir"]).st_mode & 0o7777 == 0o711
        await committed("top", "2")
        both = await made("view", view("v2", "top"))
        assert (both.type, both.options[0]) == (
            "overlay", f"lowerdir={words['upperdir']}:{bottom}",
        )  # fmt: skip
        assert not [word for word in both.options if word.startswith(("upperdir", "workdir"))]


class TestLeases:
    async def held(self, door: Door) -> set[tuple[str, str]]:
        leases = door.stub(leases_pb2.Leases)
        found = await leases.list_resources(leases_pb2.ListResourcesRequest(id="l"))
        return {(resource.type, resource.id) for resource in found.resources}

    async def test_what_a_lease_gets(self, door: Door) -> None:
        await fill(door)
        await door.stub(leases_pb2.Leases).create(leases_pb2.CreateRequest(id="l"))
        leased = door.stub(pb.Snapshots, lease="l")
        await leased.prepare(prepare("n"))
        await leased.view(view("w"))
        assert await self.held(door) == {("snapshots/native", "n"), ("snapshots/native", "w")}
        await leased.commit(commit("c", "n"))
        await leased.remove(remove("w"))
        assert await self.held(door) == {("snapshots/native", "c")}
        assert isinstance(await answered(leased.prepare, prepare("z", "bottom", **{REF: "top"})),
                          Refused)  # fmt: skip
        assert await self.held(door) == {("snapshots/native", "c"), ("snapshots/native", "top")}

    async def test_a_lease_that_is_not_there(self, door: Door) -> None:
        leased = door.stub(pb.Snapshots, lease="x")
        for rpc, request in ((leased.prepare, prepare("n")), (leased.view, view("n"))):
            answer = await answered(rpc, request)
            assert missing("lease does not exist").fits(answer, exact=False)
        assert await stored(door) == {}


REQUESTS = (
    ("prepare", prepare("n")),
    ("view", view("n")),
    ("mounts", pb.MountsRequest(snapshotter=NATIVE, key="n")),
    ("commit", commit("n", "m")),
    ("remove", remove("n")),
    ("stat", stat("n")),
    ("update", update("n")),
    ("list", listing()),
    ("usage", usage("n")),
    ("cleanup", pb.CleanupRequest(snapshotter=NATIVE)),
)


async def test_every_request_names_snapshotter_and_namespace(door: Door) -> None:
    for rpc, request in REQUESTS:
        refusals = {"": NO_NAMESPACE, "a b": BAD_NAMESPACE}
        for namespace, refusal in refusals.items():
            answer = await answered(getattr(door.stub(pb.Snapshots, namespace), rpc), request)
            assert refusal.fits(answer, exact=False), (rpc, namespace, answer)
        nameless, unknown = type(request)(), type(request)()
        for made, name in ((nameless, ""), (unknown, "x")):
            made.CopyFrom(request)
            made.snapshotter = name
        answer = await answered(getattr(door.stub(pb.Snapshots), rpc), nameless)
        assert invalid("snapshotter argument missing").fits(answer, exact=False), (rpc, answer)
        if (rpc, door.name) == ("cleanup", "proxy"):
            continue  # who stands before another server learns names only by asking it
        answer = await answered(getattr(door.stub(pb.Snapshots), rpc), unknown)
        assert invalid("snapshotter not loaded: x").fits(answer, exact=False), (rpc, answer)
