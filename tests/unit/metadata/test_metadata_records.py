"""Namespaces, containers, images and leases: rules, texts and events of the reference."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from dataclasses import replace

import pytest
from harness.metadata import World

from cradled import digest
from cradled.convert import containers as convert
from cradled.core.containers import Container, Runtime
from cradled.core.images import Image
from cradled.core.leases import Resource
from cradled.core.scope import Scope
from cradled.core.values import AnyValue, Descriptor
from cradled.errors import (
    AlreadyExists,
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unimplemented,
)
from cradled.metadata.db import ScopedDatabase

D = digest.of(b"target")
TARGET = Descriptor("application/x", D, 5)
SPEC = AnyValue("spec", b"{}")


def container(name: str = "c", **fields: object) -> Container:
    made = Container(name, image="img", runtime=Runtime("io.containerd.runc.v2"), spec=SPEC)
    return replace(made, **fields)  # type: ignore[arg-type]


async def refused(call: Awaitable[object], kind: type[Error], text: str) -> None:
    with pytest.raises(kind) as caught:
        await call
    assert str(caught.value) == f"{text}: {kind.text}"


class TestNamespaces:
    async def test_life(self, world: World) -> None:
        namespaces = world.db.namespaces
        assert await namespaces.get("absent") == {}
        await namespaces.create("b", {"k": "v", "empty": ""})
        await namespaces.create("a", {})
        assert await namespaces.list() == [("a", {}), ("b", {"k": "v"})]
        await refused(namespaces.create("a", {}), AlreadyExists, 'namespace "a"')
        await namespaces.update("b", {"x": "1", "k": "", "ignored": "2"}, ["labels.x", "labels.k"])
        assert await namespaces.get("b") == {"x": "1"}
        await namespaces.update("b", {"y": "2"})
        assert await namespaces.get("b") == {"y": "2"}
        await namespaces.update("new", {"z": "3"})
        assert await namespaces.get("new") == {"z": "3"}
        with pytest.raises(InvalidArgument, match=r'^cannot update "name" field$'):
            await namespaces.update("b", {}, ["name"])
        await namespaces.delete("b")
        await refused(namespaces.delete("b"), NotFound, 'namespace "b"')
        assert world.events.take() == [
            ("b", "/namespaces/create"),
            ("a", "/namespaces/create"),
            ("b", "/namespaces/update"),
            ("b", "/namespaces/update"),
            ("new", "/namespaces/update"),
            ("b", "/namespaces/delete"),
        ]

    async def test_names_and_labels_are_checked(self, world: World) -> None:
        namespaces = world.db.namespaces
        with pytest.raises(InvalidArgument, match='identifier "a b" must match'):
            await namespaces.create("a b", {})
        with pytest.raises(InvalidArgument, match=r"namespace.Labels: label key and value length"):
            await namespaces.create("a", {"k": "v" * 4096})
        with pytest.raises(InvalidArgument, match="identifier"):
            world.db.scoped(Scope("no way"))

    async def test_they_come_into_being_by_what_is_in_them(self, world: World) -> None:
        await world.scoped("one").containers.create(container())
        await world.scoped("two").leases.create("l")
        assert [name for name, _ in await world.db.namespaces.list()] == ["one", "two"]

    async def test_only_an_empty_one_is_deleted(self, world: World) -> None:
        ns = world.scoped("full")
        await ns.leases.create("l")
        await ns.content.writer("ingest")
        await ns.images.create(Image("i", TARGET))
        await ns.containers.create(container())
        await ns.snapshots("layers").prepare("k", "", {})
        writer = await ns.content.writer("r")
        await writer.commit(0, "", {})
        await refused(
            world.db.namespaces.delete("full"),
            FailedPrecondition,
            'namespace "full" must be empty, but it still has images, blobs, containers,'
            ' snapshots on "layers" snapshotter',
        )
        await ns.images.delete("i")
        await ns.containers.delete("c")
        await ns.content.delete(digest.EMPTY)
        await ns.snapshots("layers").remove("k")
        await world.db.namespaces.delete("full")
        assert await world.db.namespaces.list() == []
        assert await ns.leases.list() == []
        assert await ns.content.list_statuses() == []


class TestContainers:
    async def test_create_and_get(self, world: World, ns: ScopedDatabase) -> None:
        before = time.time_ns()
        made = await ns.containers.create(
            container(labels={"a": "1", "b": ""}, extensions={"e": AnyValue("t", b"1")})
        )
        assert before <= made.created_at == made.updated_at <= time.time_ns()
        assert made.labels == {"a": "1"}
        assert await ns.containers.get("c") == made
        assert convert.decode(await ns.containers.get_record("c")) == made
        assert await ns.containers.list() == [made]
        assert world.events.take() == [("ns", "/containers/create")]

    async def test_namespaces_do_not_meet(self, world: World, ns: ScopedDatabase) -> None:
        await ns.containers.create(container())
        other = world.scoped("other").containers
        assert await other.list() == []
        await other.create(container(image="another"))
        assert (await ns.containers.get("c")).image == "img"
        await other.delete("c")
        assert (await ns.containers.get("c")).image == "img"

    @pytest.mark.parametrize(
        ("bad", "text"),
        [
            (container(""), "container.ID: identifier must not be empty"),
            (container("a/b"), 'container.ID: identifier "a/b" must match '),
            (container(extensions={"": SPEC}), "container.Extension keys must not be zero-length"),
            (container(labels={"k": "v" * 4096}), "containers.Labels: label key and value"),
            (container(runtime=Runtime("")), "container.Runtime.Name must be set"),
            (container(spec=None), "container.Spec must be set"),
            (
                container(snapshot_key="k"),
                "container.Snapshotter must be set if container.SnapshotKey is set",
            ),
        ],
    )
    async def test_create_is_validated(self, ns: ScopedDatabase, bad: Container, text: str) -> None:
        with pytest.raises(InvalidArgument) as caught:
            await ns.containers.create(bad)
        assert str(caught.value).startswith(f"create container failed validation: {text}")
        assert await ns.containers.list() == []

    async def test_missing_and_existing(self, ns: ScopedDatabase) -> None:
        missing = 'container "c" in namespace "ns"'
        await refused(ns.containers.get("c"), NotFound, missing)
        await refused(ns.containers.delete("c"), NotFound, missing)
        await refused(ns.containers.update(container()), NotFound, missing)
        await ns.containers.create(container())
        await refused(ns.containers.create(container()), AlreadyExists, 'container "c"')

    async def test_update_everything(self, world: World, ns: ScopedDatabase) -> None:
        made = await ns.containers.create(container(labels={"a": "1"}, snapshotter="s"))
        world.events.take()
        new = container(labels={"b": "2"}, image="new", snapshotter="s", snapshot_key="k")
        updated = await ns.containers.update(replace(new, sandbox="ignored", created_at=5))
        assert updated == replace(new, created_at=made.created_at, updated_at=updated.updated_at)
        assert updated.updated_at > made.updated_at
        assert await ns.containers.get("c") == updated
        assert world.events.take() == [("ns", "/containers/update")]

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"snapshotter": "t"}, "container.Snapshotter field is immutable"),
            ({"runtime": Runtime("other")}, "container.Runtime.Name field is immutable"),
        ],
    )
    async def test_what_is_immutable(
        self, ns: ScopedDatabase, change: dict[str, object], text: str
    ) -> None:
        await ns.containers.create(container(snapshotter="s"))
        changed = container(**({"snapshotter": "s"} | change))
        await refused(ns.containers.update(changed), InvalidArgument, text)

    async def test_masks(self, ns: ScopedDatabase) -> None:
        extensions = {"x": AnyValue("x"), "y": AnyValue("y")}
        await ns.containers.create(container(labels={"a": "1", "b": "2"}, extensions=extensions))
        new = container(
            labels={"a": "", "c.d": "3", "no": "4"},
            extensions={"x": AnyValue("changed")},
            image="new",
            spec=AnyValue("newspec"),
        )
        paths = ["labels.a", "labels.c.d", "extensions.x", "extensions.y", "image"]
        updated = await ns.containers.update(new, paths)
        assert updated.labels == {"b": "2", "c.d": "3"}
        assert updated.extensions == {"x": AnyValue("changed"), "y": AnyValue("")}
        assert (updated.image, updated.spec) == ("new", SPEC)
        updated = await ns.containers.update(new, ["labels", "spec", "extensions"])
        assert updated.labels == {"c.d": "3", "no": "4"}
        assert updated.spec == AnyValue("newspec")
        for path in ("snapshot_key", "runtime", "id", "label"):
            text = f'cannot update "{path}" field on "c"'
            await refused(ns.containers.update(new, [path]), InvalidArgument, text)
        with pytest.raises(InvalidArgument, match=r"update failed validation: container\.Spec"):
            await ns.containers.update(container(spec=None), ["spec"])

    async def test_filters(self, ns: ScopedDatabase) -> None:
        await ns.containers.create(container("a", labels={"k.l": "1"}))
        await ns.containers.create(container("b", image="", runtime=Runtime("other")))

        async def listed(*filters: str) -> list[str]:
            return [each.id for each in await ns.containers.list(filters)]

        assert await listed() == ["a", "b"]
        assert await listed("labels.k.l==1") == ["a"]
        assert await listed('labels."k.l"') == ["a"]
        assert await listed("runtime.name==other") == ["b"]
        assert await listed("image") == ["a"]
        assert await listed("image==img", "id==b") == ["a", "b"]
        assert await listed("spec") == []
        with pytest.raises(InvalidArgument, match="filters: parse error"):
            await listed("id==")

    async def test_lists_are_in_bytewise_order(self, ns: ScopedDatabase) -> None:
        for name in ("b", "B", "a.1", "a"):
            await ns.containers.create(container(name))
        assert [c.id for c in await ns.containers.list()] == ["B", "a", "a.1", "b"]

    async def test_delete(self, world: World, ns: ScopedDatabase) -> None:
        await ns.containers.create(container())
        world.events.take()
        await ns.containers.delete("c")
        assert await ns.containers.list() == []
        assert world.events.take() == [("ns", "/containers/delete")]


class TestImages:
    async def test_life(self, world: World, ns: ScopedDatabase) -> None:
        made = await ns.images.create(Image("n", TARGET, {"a": "1", "b": ""}))
        assert made.labels == {"a": "1"}
        assert 0 < made.created_at == made.updated_at
        assert await ns.images.get("n") == made
        await refused(ns.images.create(made), AlreadyExists, 'image "n"')
        other = Descriptor("application/y", digest.EMPTY, 9)
        updated = await ns.images.update(Image("n", other, {"c": "3"}))
        assert (updated.target, updated.labels) == (other, {"c": "3"})
        assert updated.created_at == made.created_at < updated.updated_at
        assert await ns.images.list() == [updated]
        text = f'image "n" has target {digest.EMPTY}, not {D}'
        await refused(ns.images.delete("n", target=D), NotFound, text)
        await ns.images.delete("n", target=digest.EMPTY)
        for call in (ns.images.get("n"), ns.images.delete("n"), ns.images.update(made)):
            await refused(call, NotFound, 'image "n"')
        assert world.events.take() == [
            ("ns", "/images/create"),
            ("ns", "/images/update"),
            ("ns", "/images/delete"),
        ]

    async def test_source_date_epoch(self, ns: ScopedDatabase) -> None:
        made = await ns.images.create(Image("n", TARGET), source_date_epoch=123)
        assert (made.created_at, made.updated_at) == (123, 123)

    @pytest.mark.parametrize(
        ("bad", "text"),
        [
            (Image("", TARGET), "image name must not be empty"),
            (Image("n", replace(TARGET, digest="x")), 'target.Digest "x" invalid'),
            (Image("n", replace(TARGET, size=0)), "target.Size must be greater than zero"),
            (Image("n", replace(TARGET, media_type="")), "target.MediaType must be set"),
            (Image("n", TARGET, {"k": "v" * 4096}), "image.Labels: label key and value length"),
        ],
    )
    async def test_create_is_validated(self, ns: ScopedDatabase, bad: Image, text: str) -> None:
        with pytest.raises(InvalidArgument) as caught:
            await ns.images.create(bad)
        assert str(caught.value).startswith(text)

    async def test_masks(self, ns: ScopedDatabase) -> None:
        target = replace(TARGET, annotations={"x": "1", "y": "2"})
        await ns.images.create(Image("n", target, {"a": "1", "b": "2"}))
        other = Descriptor("application/y", digest.EMPTY, 9, {"x": "new", "z": "3"})
        new = Image("n", other, {"a": "", "c": "3"})
        updated = await ns.images.update(new, ["annotations.x", "annotations.y", "labels.a"])
        assert updated.target == replace(target, annotations={"x": "new"})
        assert updated.labels == {"b": "2"}
        updated = await ns.images.update(new, ["annotations"])
        assert updated.target == replace(target, annotations=other.annotations)
        updated = await ns.images.update(new, ["target", "labels"])
        assert (updated.target, updated.labels) == (other, {"c": "3"})
        text = 'cannot update "name" field on image "n"'
        await refused(ns.images.update(new, ["name"]), InvalidArgument, text)

    async def test_filters(self, ns: ScopedDatabase) -> None:
        annotated = replace(TARGET, annotations={"a.b": "1"})
        await ns.images.create(Image("docker.io/library/a:1", annotated))
        await ns.images.create(Image("b", Descriptor("other", digest.EMPTY, 1), {"l": "1"}))

        async def listed(*filters: str) -> list[str]:
            return [each.name for each in await ns.images.list(filters)]

        assert await listed("name==docker.io/library/a:1") == ["docker.io/library/a:1"]
        assert await listed("name~=/library/") == ["docker.io/library/a:1"]
        assert await listed(f"target.digest=={digest.EMPTY}") == ["b"]
        assert await listed("target.mediatype==other,labels.l") == ["b"]
        assert await listed('annotations."a.b"==1') == ["docker.io/library/a:1"]

    async def test_one_that_expires_joins_the_lease(self, world: World) -> None:
        await world.scoped().leases.create("l")
        ns = world.scoped(lease="l")
        await ns.images.create(Image("stays", TARGET))
        await ns.images.create(
            Image("goes", TARGET, {"containerd.io/gc.expire": "2030-01-01T00:00:00Z"})
        )
        assert await ns.leases.list_resources("l") == [Resource("goes", "images")]


class TestLeases:
    async def test_life(self, ns: ScopedDatabase) -> None:
        made = await ns.leases.create("l", {"a": "1", "b": ""})
        assert made.labels == {"a": "1"}
        assert made.created_at > 0
        await refused(ns.leases.create("l"), AlreadyExists, 'lease "l"')
        generated = await ns.leases.create()
        assert generated.id.split("-", 1)[0].isdecimal()
        assert [lease.id for lease in await ns.leases.list(["labels.a==1"])] == ["l"]
        assert len(await ns.leases.list()) == 2
        assert await ns.leases.list(["id==l"]) == [made]
        await ns.leases.delete("l")
        await refused(ns.leases.delete("l"), NotFound, 'lease "l"')

    async def test_resources(self, ns: ScopedDatabase) -> None:
        await ns.leases.create("l")
        wanted = [
            Resource(D, "content"),
            Resource("img", "images"),
            Resource("ref", "ingests"),
            Resource("key", "snapshots/layers"),
        ]
        for resource in [*reversed(wanted), *wanted]:
            await ns.leases.add_resource("l", resource)
        assert await ns.leases.list_resources("l") == wanted
        for _ in range(2):
            await ns.leases.delete_resource("l", wanted[0])
        assert await ns.leases.list_resources("l") == wanted[1:]
        for call in (
            ns.leases.add_resource("x", wanted[0]),
            ns.leases.delete_resource("x", wanted[0]),
            ns.leases.list_resources("x"),
        ):
            await refused(call, NotFound, 'lease "x"')

    @pytest.mark.parametrize(
        ("resource", "kind", "text"),
        [
            (Resource("x", "content"), InvalidArgument, "invalid content resource id x"),
            (Resource(D, "content/x"), InvalidArgument, "invalid resource type content/x"),
            (Resource("r", "ingests/x"), InvalidArgument, "invalid resource type ingests/x"),
            (Resource("k", "snapshots"), InvalidArgument, "invalid snapshot resource type snapsh"),
            (Resource("k", "snapshots/a/b"), InvalidArgument, "invalid snapshot resource type sn"),
            (Resource("k", "tasks"), Unimplemented, "resource type tasks not supported yet"),
        ],
    )
    async def test_bad_resources(
        self, ns: ScopedDatabase, resource: Resource, kind: type[Error], text: str
    ) -> None:
        await ns.leases.create("l")
        for call in (ns.leases.add_resource, ns.leases.delete_resource):
            with pytest.raises(kind) as caught:
                await call("l", resource)
            assert str(caught.value).startswith(text)

    async def test_what_is_made_under_a_lease_joins_it(self, world: World) -> None:
        await world.scoped().leases.create("l")
        ns = world.scoped(lease="l")
        layers = ns.snapshots("layers")
        await layers.prepare("k", "", {})
        await layers.commit("n", "k", {})
        await layers.view("v", "n", {})
        writer = await ns.content.writer("r")
        assert Resource("r", "ingests") in await ns.leases.list_resources("l")
        await writer.write(b"target")
        await writer.commit(0, "", {})
        assert await ns.leases.list_resources("l") == [
            Resource(D, "content"),
            Resource("n", "snapshots/layers"),
            Resource("v", "snapshots/layers"),
        ]
        await ns.content.delete(D)
        await layers.remove("v")
        assert await ns.leases.list_resources("l") == [Resource("n", "snapshots/layers")]

    async def test_a_lease_that_is_not_there(self, world: World) -> None:
        ns = world.scoped(lease="gone")
        layers = ns.snapshots("layers")
        image = Image("n", TARGET, {"containerd.io/gc.expire": "2030-01-01T00:00:00Z"})
        for call in (
            ns.content.writer("r"),
            layers.prepare("k", "", {}),
            layers.view("k", "", {}),
            ns.images.create(image),
        ):
            await refused(call, NotFound, "lease does not exist")
        await world.scoped().snapshots("layers").prepare("k", "", {})
        await refused(layers.commit("n", "k", {}), NotFound, "lease does not exist")
        assert await ns.images.list() == []
        assert [key.split("/")[-1] for key in world.layers.infos] == ["k"]
        writer = await world.scoped().content.writer("r")
        await writer.close()
