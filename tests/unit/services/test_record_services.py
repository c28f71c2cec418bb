"""The services of records over a real database, called as clients call them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cradled import digest, errors
from cradled.api import (
    containers_pb2,
    images_pb2,
    leases_pb2,
    namespaces_pb2,
    sandbox_pb2,
    snapshots_pb2,
    types_pb2,
)
from cradled.content.local import open_store
from cradled.gc.scheduler import Scheduler
from cradled.metadata.db import Database
from cradled.rpc.inprocess import InProcess
from cradled.rpc.service import Router
from cradled.rpc.stub import Stub
from cradled.services.containers import ContainersService
from cradled.services.images import ImagesService
from cradled.services.leases import LeasesService
from cradled.services.namespaces import NamespacesService
from cradled.services.sandboxes import SandboxStoreService
from cradled.services.snapshots import SnapshotsService

SPEC = {"type_url": "types.containerd.io/opencontainers/runtime-spec/1/Spec", "value": b"{}"}


@pytest.fixture
async def stubs(tmp_path: Path) -> AsyncIterator[Any]:
    content = await open_store(str(tmp_path / "content"))
    db = await Database.open(str(tmp_path / "meta.db"), content=content, snapshotters={})
    scheduler = Scheduler(db)
    router = Router()
    router.add(namespaces_pb2.Namespaces, NamespacesService(db))
    router.add(containers_pb2.Containers, ContainersService(db))
    router.add(images_pb2.Images, ImagesService(db, scheduler))
    router.add(leases_pb2.Leases, LeasesService(db, scheduler))
    router.add(sandbox_pb2.Store, SandboxStoreService(db))
    router.add(snapshots_pb2.Snapshots, SnapshotsService(db))
    services = {
        service.name.rpartition(".")[2].lower(): Stub(
            InProcess(router), service, [("containerd-namespace", "ns")]
        )
        for service in router.services()
    }
    try:
        yield SimpleNamespace(**services)
    finally:
        await scheduler.aclose()
        await db.aclose()


def container(id: str, **fields: Any) -> containers_pb2.Container:
    made = containers_pb2.Container(id=id, **fields)
    made.runtime.name = "io.containerd.runc.v2"
    made.spec.type_url, made.spec.value = SPEC["type_url"], SPEC["value"]  # type: ignore[assignment]
    return made


async def create(stubs: Any, id: str, **fields: Any) -> containers_pb2.Container:
    request = containers_pb2.CreateContainerRequest(container=container(id, **fields))
    return (await stubs.containers.create(request)).container


async def test_stored_containers_are_served_as_they_were_created(stubs: Any) -> None:
    one = await create(stubs, "one", labels={"a": "b"}, image="i")
    two = await create(stubs, "two")
    got = await stubs.containers.get(containers_pb2.GetContainerRequest(id="one"))
    assert got.container == one
    listed = await stubs.containers.list(containers_pb2.ListContainersRequest())
    assert list(listed.containers) == [one, two]
    request = containers_pb2.ListContainersRequest(filters=["labels.a==b"])
    streamed = [message.container async for message in stubs.containers.list_stream(request)]
    assert streamed == [one]


async def test_no_containers_is_an_empty_list(stubs: Any) -> None:
    assert not (await stubs.containers.list(containers_pb2.ListContainersRequest())).containers
    stream = stubs.containers.list_stream(containers_pb2.ListContainersRequest())
    assert [message async for message in stream] == []


async def test_update_needs_an_id(stubs: Any) -> None:
    with pytest.raises(errors.InvalidArgument, match=r"^Container\.ID required"):
        await stubs.containers.update(containers_pb2.UpdateContainerRequest())


async def test_update_by_mask(stubs: Any) -> None:
    await create(stubs, "one", labels={"a": "b", "c": "d"})
    request = containers_pb2.UpdateContainerRequest(
        container=container("one", labels={"a": "x"}),
    )
    request.update_mask.paths.append("labels.a")
    updated = (await stubs.containers.update(request)).container
    assert dict(updated.labels) == {"a": "x", "c": "d"}


async def test_missing_container(stubs: Any) -> None:
    with pytest.raises(errors.NotFound, match=r'^container "x" in namespace "ns": not found$'):
        await stubs.containers.get(containers_pb2.GetContainerRequest(id="x"))
    with pytest.raises(errors.NotFound, match=r'^container "x" in namespace "ns": not found$'):
        await stubs.containers.delete(containers_pb2.DeleteContainerRequest(id="x"))


async def test_namespace_update_answers_without_the_namespace(stubs: Any) -> None:
    namespace = namespaces_pb2.Namespace(name="n", labels={"a": "b"})
    request = namespaces_pb2.CreateNamespaceRequest(namespace=namespace)
    assert (await stubs.namespaces.create(request)).namespace == namespace
    update = namespaces_pb2.UpdateNamespaceRequest(namespace=namespace)
    assert not (await stubs.namespaces.update(update)).HasField("namespace")
    listed = (await stubs.namespaces.list(namespaces_pb2.ListNamespacesRequest())).namespaces
    assert list(listed) == [namespace]


async def test_absent_namespace_has_no_labels(stubs: Any) -> None:
    got = await stubs.namespaces.get(namespaces_pb2.GetNamespaceRequest(name="absent"))
    assert (got.namespace.name, dict(got.namespace.labels)) == ("absent", {})


def image(name: str) -> images_pb2.Image:
    made = images_pb2.Image(name=name)
    made.target.media_type, made.target.digest, made.target.size = "m", digest.of(b"x"), 1
    return made


async def test_images_need_a_name(stubs: Any) -> None:
    with pytest.raises(errors.InvalidArgument, match=r"^Image\.Name required"):
        await stubs.images.create(images_pb2.CreateImageRequest(image=image("")))
    with pytest.raises(errors.InvalidArgument, match=r"^Image\.Name required"):
        await stubs.images.update(images_pb2.UpdateImageRequest(image=image("")))


async def test_source_date_epoch_dates_an_image(stubs: Any) -> None:
    request = images_pb2.CreateImageRequest(image=image("i"))
    request.source_date_epoch.seconds = 77
    created = (await stubs.images.create(request)).image
    assert (created.created_at.seconds, created.updated_at.seconds) == (77, 77)


async def test_image_delete_checks_the_target_and_collects_when_asked(stubs: Any) -> None:
    await stubs.images.create(images_pb2.CreateImageRequest(image=image("i")))
    wrong = images_pb2.DeleteImageRequest(name="i")
    wrong.target.digest = digest.of(b"other")
    with pytest.raises(errors.NotFound, match=r'^image "i" has target'):
        await stubs.images.delete(wrong)
    await stubs.images.delete(images_pb2.DeleteImageRequest(name="i", sync=True))
    assert not (await stubs.images.list(images_pb2.ListImagesRequest())).images


async def test_leases_hold_resources(stubs: Any) -> None:
    lease = (await stubs.leases.create(leases_pb2.CreateRequest(id="l", labels={"a": "b"}))).lease
    assert (lease.id, dict(lease.labels)) == ("l", {"a": "b"})
    resource = leases_pb2.Resource(id=digest.of(b"x"), type="content")
    await stubs.leases.add_resource(leases_pb2.AddResourceRequest(id="l", resource=resource))
    held = await stubs.leases.list_resources(leases_pb2.ListResourcesRequest(id="l"))
    assert list(held.resources) == [resource]
    await stubs.leases.delete_resource(leases_pb2.DeleteResourceRequest(id="l", resource=resource))
    held = await stubs.leases.list_resources(leases_pb2.ListResourcesRequest(id="l"))
    assert not held.resources
    await stubs.leases.delete(leases_pb2.DeleteRequest(id="l", sync=True))
    assert not (await stubs.leases.list(leases_pb2.ListRequest())).leases


async def test_snapshotter_must_be_named_and_known(stubs: Any) -> None:
    with pytest.raises(errors.InvalidArgument, match=r"^snapshotter argument missing"):
        await stubs.snapshots.stat(snapshots_pb2.StatSnapshotRequest(key="k"))
    with pytest.raises(errors.InvalidArgument, match=r"^snapshotter not loaded: x"):
        await stubs.snapshots.stat(snapshots_pb2.StatSnapshotRequest(snapshotter="x", key="k"))


def sandbox(id: str, **fields: Any) -> types_pb2.Sandbox:
    made = types_pb2.Sandbox(sandbox_id=id, sandboxer="shim", **fields)
    made.runtime.name = "io.containerd.runc.v2"
    return made


async def create_sandbox(stubs: Any, id: str, **fields: Any) -> types_pb2.Sandbox:
    request = sandbox_pb2.StoreCreateRequest(sandbox=sandbox(id, **fields))
    return (await stubs.store.create(request)).sandbox


async def test_sandboxes_are_kept(stubs: Any) -> None:
    one = await create_sandbox(stubs, "one", labels={"a": "b"})
    assert one.created_at == one.updated_at
    assert one.created_at.seconds > 0
    two = await create_sandbox(stubs, "two")
    assert (await stubs.store.get(sandbox_pb2.StoreGetRequest(sandbox_id="one"))).sandbox == one
    assert list((await stubs.store.list(sandbox_pb2.StoreListRequest())).list) == [one, two]
    for filters in (["id==one"], ["labels.a==b"]):
        listed = await stubs.store.list(sandbox_pb2.StoreListRequest(filters=filters))
        assert list(listed.list) == [one]
    await stubs.store.delete(sandbox_pb2.StoreDeleteRequest(sandbox_id="one"))
    assert list((await stubs.store.list(sandbox_pb2.StoreListRequest())).list) == [two]


async def test_sandbox_texts(stubs: Any) -> None:
    await create_sandbox(stubs, "one")
    with pytest.raises(errors.AlreadyExists, match=r'^sandbox bucket "one" already exists'):
        await create_sandbox(stubs, "one")
    with pytest.raises(errors.InvalidArgument, match=r'identifier "a/b" must match'):
        await create_sandbox(stubs, "a/b")
    for rpc, request in [
        ("get", sandbox_pb2.StoreGetRequest(sandbox_id="x")),
        ("delete", sandbox_pb2.StoreDeleteRequest(sandbox_id="x")),
        ("update", sandbox_pb2.StoreUpdateRequest(sandbox=sandbox("x"))),
    ]:
        with pytest.raises(errors.NotFound, match=r'^bucket "x" not found'):
            await getattr(stubs.store, rpc)(request)


async def test_sandbox_update(stubs: Any) -> None:
    first = await create_sandbox(stubs, "one", labels={"a": "b", "c": "d"})
    new = sandbox("one", labels={"a": "x"}, extensions={"e": {"value": b"1"}})
    new.spec.value = b"s"
    request = sandbox_pb2.StoreUpdateRequest(sandbox=new, fields=["labels.a", "spec"])
    updated = (await stubs.store.update(request)).sandbox
    assert dict(updated.labels) == {"a": "x", "c": "d"}
    assert (updated.spec.value, len(updated.extensions)) == (b"s", 0)
    assert updated.created_at == first.created_at
    updated = (await stubs.store.update(sandbox_pb2.StoreUpdateRequest(sandbox=new))).sandbox
    assert (dict(updated.labels), updated.extensions["e"].value) == ({"a": "x"}, b"1")
    new.runtime.name = "other"
    with pytest.raises(errors.InvalidArgument, match=r"Runtime.Name field is immutable"):
        await stubs.store.update(sandbox_pb2.StoreUpdateRequest(sandbox=new))
    request = sandbox_pb2.StoreUpdateRequest(sandbox=new, fields=["sandboxer"])
    with pytest.raises(errors.InvalidArgument, match=r'^cannot update "sandboxer" field'):
        await stubs.store.update(request)


async def test_sandbox_labels_keep_what_they_refer_to(stubs: Any) -> None:
    expired = {"containerd.io/gc.expire": "2020-01-01T00:00:00Z"}

    async def images_after_collection() -> list[str]:
        await stubs.leases.create(leases_pb2.CreateRequest(id="l"))
        await stubs.leases.delete(leases_pb2.DeleteRequest(id="l", sync=True))
        found = (await stubs.images.list(images_pb2.ListImagesRequest())).images
        return [found.name for found in found]

    await create_sandbox(stubs, "one", labels={"containerd.io/gc.ref.image": "i"})
    for name in ("i", "other"):
        made = image(name)
        made.labels.update(expired)
        await stubs.images.create(images_pb2.CreateImageRequest(image=made))
    assert await images_after_collection() == ["i"]
    await stubs.store.delete(sandbox_pb2.StoreDeleteRequest(sandbox_id="one"))
    assert await images_after_collection() == []
