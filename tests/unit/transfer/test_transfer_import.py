"""Importing archives into real stores: what is kept, labelled and named."""

import dataclasses
import gzip
from typing import Any

import pytest
from harness.transfers import (
    HOST,
    ExtractingApplier,
    Layout,
    config,
    docker_archive,
    dump,
    entry,
    layers,
    pieces,
    tar,
)

from cradled import digest
from cradled.core.transfer import ExtraReference, ImageDestination, Progress
from cradled.errors import InvalidArgument, NotFound
from cradled.gc.scheduler import Scheduler
from cradled.metadata.db import Database, ScopedDatabase
from cradled.oci import image as oci
from cradled.transfer.service import Transfers
from cradled.transfer.unpack import Unpacker

ANY = ImageDestination(extra_references=(ExtraReference("base", True, True),))


async def import_(
    stores: ScopedDatabase, archive: bytes, destination: ImageDestination = ANY
) -> dict[str, str]:
    """Import; returns names and digests of the images."""
    transfers = Transfers(Unpacker(ExtractingApplier()))
    images = await transfers.import_archive(stores, pieces(archive), destination, lambda _: None)
    for image in images:
        assert await stores.images.get(image.name) == image
    return {image.name: image.target.digest for image in images}


async def labels(stores: ScopedDatabase, digest: str) -> dict[str, str]:
    return dict((await stores.content.info(digest)).labels)


def one_image(**annotations: str) -> tuple[Layout, str]:
    layout = Layout()
    layout.manifests.append(layout.image(layers(2), annotations=annotations))
    return layout, layout.manifests[0]["digest"]


async def test_layout(stores: ScopedDatabase) -> None:
    layout, manifest = one_image(**{oci.IMAGE_NAME: "docker.io/library/x:1"})
    said: list[Progress] = []
    transfers = Transfers(Unpacker(ExtractingApplier()))
    images = await transfers.import_archive(stores, pieces(layout.archive()), ANY, said.append)
    assert [image.name for image in images] == ["docker.io/library/x:1"]
    assert images[0].target.annotations == {oci.IMAGE_NAME: "docker.io/library/x:1"}
    assert [step.event for step in said] == ["Importing", "saved", "Completed import"]
    for name, data in layout.blobs.items():
        assert (await stores.content.info(name)).size == len(data)
    parts = layers(2)
    assert await labels(stores, manifest) == {
        "containerd.io/gc.ref.content.config": digest.of(config(parts)),
        "containerd.io/gc.ref.content.l.0": digest.of(parts[0].blob),
        "containerd.io/gc.ref.content.l.1": digest.of(parts[1].blob),
    }
    assert await stores.content.list_statuses() == []


async def test_twice_and_compressed(stores: ScopedDatabase) -> None:
    layout, manifest = one_image(**{oci.IMAGE_NAME: "x.io/x:1"})
    for archive in (layout.archive(), gzip.compress(layout.archive())):
        assert await import_(stores, archive) == {"x.io/x:1": manifest}


async def test_what_is_named_is_all_that_stays(db: Database, stores: ScopedDatabase) -> None:
    layout, manifest = one_image(**{oci.IMAGE_NAME: "x.io/x:1"})
    kept = set(layout.blobs)
    layout.blob("application/x", b"left over")
    layout.manifests.append(layout.image(layers(1), "riscv64"))
    await import_(stores, layout.archive())
    await stores.leases.delete("importing")
    scheduler = Scheduler(db)
    await scheduler.collect()
    assert {info.digest async for info in stores.content.walk()} == kept
    assert await labels(stores, manifest)


@pytest.mark.parametrize(
    ("annotations", "extra", "names"),
    [
        ({oci.IMAGE_NAME: "x.io/x:1"}, ExtraReference("base", True, True), ["x.io/x:1"]),
        ({oci.IMAGE_NAME: "x.io/x:1"}, ExtraReference("x.io/x", True), ["x.io/x:1"]),
        ({oci.IMAGE_NAME: "x.io/xy:1"}, ExtraReference("x.io/x", True), []),
        ({oci.REF_NAME: "1"}, ExtraReference("base", True, True), ["base:1"]),
        ({oci.REF_NAME: "1"}, ExtraReference("base", True), ["base:1"]),
        ({oci.REF_NAME: "1"}, ExtraReference("", True, True), []),
        ({oci.REF_NAME: "x.io/x:1"}, ExtraReference("", True, True), ["x.io/x:1"]),
        ({oci.REF_NAME: "x.io/x:1"}, ExtraReference("base", True), []),
        ({oci.IMAGE_NAME: "tag"}, ExtraReference("base", True, True), []),
        ({}, ExtraReference("base", True, True, add_digest=True), ["base@{digest}"]),
        (
            {oci.REF_NAME: "1"},
            ExtraReference("base", True, True, add_digest=True),
            ["base:1", "base@{digest}"],
        ),
        (
            {oci.REF_NAME: "1"},
            ExtraReference("base", True, True, add_digest=True, skip_named_digest=True),
            ["base:1"],
        ),
        ({oci.IMAGE_NAME: "x.io/x:1"}, ExtraReference("base"), []),
    ],
)
async def test_names_by_the_archive(
    stores: ScopedDatabase, annotations: dict[str, str], extra: ExtraReference, names: list[str]
) -> None:
    layout, manifest = one_image(**annotations)
    destination = ImageDestination(labels={"a": "b"}, extra_references=(extra,))
    wanted = {name.format(digest=manifest): manifest for name in names}
    if not extra.is_prefix:
        found = await import_(stores, layout.archive(), destination)
        assert list(found) == ["base"]
        assert found["base"] != manifest  # it names the index
    elif wanted:
        assert await import_(stores, layout.archive(), destination) == wanted
        for name in wanted:
            assert (await stores.images.get(name)).labels == {"a": "b"}
    else:
        with pytest.raises(NotFound, match="no image name found"):
            await import_(stores, layout.archive(), destination)


async def test_names_by_the_destination(stores: ScopedDatabase) -> None:
    layout, _ = one_image()
    extras = (ExtraReference("other:1"), ExtraReference("third", add_digest=True))
    destination = ImageDestination("main:1", {"a": "b"}, extra_references=extras)
    found = await import_(stores, layout.archive(), destination)
    index = found["main:1"]
    assert found == {"main:1": index, "other:1": index, f"third@{index}": index}
    assert (await stores.images.get("main:1")).labels == {"a": "b"}
    other = (await stores.images.get("other:1")).labels
    assert other["containerd.io/gc.bref.image"] == "main:1"
    assert other["containerd.io/gc.expire"].endswith("Z")
    target = (await stores.images.get("main:1")).target
    assert target.media_type == oci.INDEX
    assert list(await labels(stores, index)) == ["containerd.io/gc.ref.content.m.0"]


def platform(architecture: str) -> dict[str, Any]:
    return {"platform": {"os": "linux", "architecture": architecture}}


async def test_an_index_of_platforms_some_of_which_are_missing(stores: ScopedDatabase) -> None:
    layout = Layout()
    here = layout.image(layers(1), **platform(HOST.architecture))
    other = layout.image(layers(2), "riscv64", **platform("riscv64"))
    gone = entry(oci.MANIFEST, b"not in the archive", **platform("s390x"))
    nested = layout.index([here, other, gone], annotations={oci.IMAGE_NAME: "x.io/x:1"})
    layout.manifests.append(nested)
    assert await import_(stores, layout.archive()) == {"x.io/x:1": nested["digest"]}
    assert await labels(stores, nested["digest"]) == {
        f"containerd.io/gc.ref.content.m.{number}": one["digest"]
        for number, one in enumerate((here, other, gone))
    }
    assert await labels(stores, other["digest"])


async def test_only_some_platforms_are_kept(stores: ScopedDatabase) -> None:
    layout = Layout()
    here = layout.image(layers(1), **platform(HOST.architecture))
    other = layout.image(layers(2), "riscv64", **platform("riscv64"))
    nested = layout.index([other, here], annotations={oci.IMAGE_NAME: "x.io/x:1"})
    layout.manifests.append(nested)
    destination = dataclasses.replace(ANY, platforms=(f"linux/{HOST.architecture}",))
    await import_(stores, layout.archive(), destination)
    assert await labels(stores, nested["digest"]) == {
        "containerd.io/gc.ref.content.m.0": here["digest"]
    }


@pytest.mark.parametrize("shared", [False, True])
async def test_docker_archive(stores: ScopedDatabase, shared: bool) -> None:
    parts = layers(2)
    archive = docker_archive(parts, "busybox:1", "reg.io/a/b:2", shared=shared)
    found = await import_(stores, archive)
    assert list(found) == ["docker.io/library/busybox:1", "reg.io/a/b:2"]
    target = (await stores.images.get("reg.io/a/b:2")).target
    assert target.annotations == {oci.IMAGE_NAME: "reg.io/a/b:2", oci.REF_NAME: "2"}
    assert target.media_type == oci.DOCKER_MANIFEST
    reader = await stores.content.open(target.digest)
    manifest = oci.manifest(await reader.read(0, reader.size))
    reader.close()
    assert manifest.config.digest == digest.of(config(parts))
    assert [(view.digest, view.media_type) for view in manifest.layers] == [
        (layer.diff_id, "application/vnd.docker.image.rootfs.diff.tar") for layer in parts
    ]
    assert len(await labels(stores, target.digest)) == 3


async def test_docker_archive_with_compressed_layers(stores: ScopedDatabase) -> None:
    parts = [dataclasses.replace(layer, raw=layer.blob) for layer in layers(1)]
    found = await import_(stores, docker_archive(parts, "x.io/x:1"))
    reader = await stores.content.open(found["x.io/x:1"])
    manifest = oci.manifest(await reader.read(0, reader.size))
    reader.close()
    wanted = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    assert [view.media_type for view in manifest.layers] == [wanted]


async def test_docker_archive_without_tags(stores: ScopedDatabase) -> None:
    with pytest.raises(NotFound, match="no image name found"):
        await import_(stores, docker_archive(layers(1)))
    found = await import_(stores, docker_archive(layers(1)), ImageDestination("main:1"))
    assert list(found) == ["main:1"]


@pytest.mark.parametrize(
    ("archive", "reason"),
    [
        (b"", "unrecognized image format"),
        (tar({"file": b"x"}), "unrecognized image format"),
        (tar({"oci-layout": b"{}", "index.json": b"{}"}), "unsupported OCI version"),
        (tar({"oci-layout": dump({"imageLayoutVersion": "1.0.0"})}), "missing index.json"),
        (tar({"oci-layout": b"nonsense"}), "oci-layout"),
        (tar({"manifest.json": b"{}"}), "manifest.json"),
        (tar({"manifest.json": dump([{"Config": "x", "Layers": []}])}), "no file x"),
        (
            tar({"x": "y", "y": "x", "manifest.json": dump([{"Config": "x", "Layers": []}])}),
            "no file x",
        ),
    ],
)
async def test_no_image_archive(stores: ScopedDatabase, archive: bytes, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        await import_(stores, archive)


async def test_a_blob_that_is_not_what_it_is_called(stores: ScopedDatabase) -> None:
    layout, _ = one_image(**{oci.IMAGE_NAME: "x.io/x:1"})
    victim = next(iter(layout.blobs))
    layout.blobs[victim] += b"x"
    with pytest.raises(Exception, match="unexpected commit digest"):
        await import_(stores, layout.archive())
    assert await stores.content.list_statuses() == []
    assert await stores.images.list() == []


async def test_an_archive_that_breaks_off(stores: ScopedDatabase) -> None:
    layout, _ = one_image(**{oci.IMAGE_NAME: "x.io/x:1"})
    with pytest.raises(InvalidArgument, match="unexpected EOF"):
        await import_(stores, layout.archive()[:2100])
    assert await stores.content.list_statuses() == []


async def test_plain_layers_of_a_docker_archive_are_compressed(stores: ScopedDatabase) -> None:
    transfers = Transfers(Unpacker(ExtractingApplier()))
    for _ in range(2):
        archive = pieces(docker_archive(layers(2), "x.io/x:1"))
        images = await transfers.import_archive(stores, archive, ANY, print, compress=True)
    reader = await stores.content.open(images[0].target.digest)
    manifest = oci.manifest(await reader.read(0, reader.size))
    reader.close()
    for view, layer in zip(manifest.layers, layers(2), strict=True):
        assert view.media_type.endswith(".tar.gzip")
        reader = await stores.content.open(view.digest)
        assert gzip.decompress(await reader.read(0, reader.size)) == layer.raw
        assert reader.size == view.size < len(layer.raw)
        reader.close()
        assert await labels(stores, view.digest) == {"containerd.io/uncompressed": layer.diff_id}
