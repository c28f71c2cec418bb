"""Unpacking: chain IDs, layers together and one by one, what is there already, failures."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Sequence

import pytest
from harness.transfers import (
    HOST,
    ExtractingApplier,
    Layer,
    Layout,
    config,
    dump,
    layers,
    pieces,
)

from cradled import digest
from cradled.core.snapshots import Kind
from cradled.core.transfer import ExtraReference, ImageDestination, Progress, Unpack
from cradled.errors import Error, InvalidArgument, NotFound
from cradled.metadata.db import ScopedDatabase
from cradled.oci import image as oci
from cradled.transfer.service import Transfers
from cradled.transfer.unpack import Unpacker

PLATFORM = f"linux/{HOST.architecture}"
DESTINATION = ImageDestination(
    extra_references=(ExtraReference("base", True, True),),
    unpacks=(Unpack(PLATFORM, "overlayfs"),),
)


@pytest.fixture
def applier() -> ExtractingApplier:
    return ExtractingApplier()


@pytest.fixture(params=["together", "one by one"])
def transfers(request: pytest.FixtureRequest, applier: ExtractingApplier) -> Transfers:
    rebasing = ("overlayfs",) if request.param == "together" else ()
    return Transfers(Unpacker(applier, apart=applier, rebasing=rebasing, width=2))


@pytest.fixture
def together(applier: ExtractingApplier) -> Transfers:
    return Transfers(Unpacker(applier, apart=applier, rebasing=("overlayfs",)))


async def import_(
    transfers: Transfers,
    stores: ScopedDatabase,
    parts: Sequence[Layer],
    architecture: str = HOST.architecture,
) -> list[Progress]:
    layout = Layout()
    named = {"annotations": {oci.IMAGE_NAME: "x.io/x:1"}}
    layout.manifests.append(layout.image(parts, architecture, **named))
    said: list[Progress] = []
    await transfers.import_archive(stores, pieces(layout.archive()), DESTINATION, said.append)
    return said


def chain(parts: Sequence[Layer]) -> list[str]:
    return digest.chain_ids(layer.diff_id for layer in parts)


async def snapshots(stores: ScopedDatabase) -> list[tuple[str, str, Kind]]:
    walk = stores.snapshots("overlayfs").walk()
    return [(info.name, info.parent, info.kind) async for info in walk]


async def stacked(stores: ScopedDatabase, name: str) -> list[str]:
    """The files of a committed snapshot's layers, nearest first."""
    store = stores.snapshots("overlayfs")
    mount = (await store.view("look", name, {}))[-1]
    await store.remove("look")
    lowers = [option for option in mount.options if option.startswith("lowerdir=")]
    return lowers[0].removeprefix("lowerdir=").split(":") if lowers else [mount.source]


async def test_all_layers(
    transfers: Transfers, stores: ScopedDatabase, applier: ExtractingApplier
) -> None:
    parts = layers(4)
    said = await import_(transfers, stores, parts)
    ids = chain(parts)
    expected = [(ids[n], ids[n - 1] if n else "", Kind.COMMITTED) for n in range(4)]
    assert sorted(await snapshots(stores)) == sorted(expected)
    assert len(await stacked(stores, ids[-1])) == 4
    applied = [line for line in applier.log if not line.startswith("settle")]
    assert sorted(line.split()[1] for line in applied) == [f"file{n}" for n in range(4)]
    events = [step.event for step in said]
    assert events.count("extracting") == events.count("extracted") == 4
    assert events[-2:] == ["saved", "Completed import"]
    info = await stores.content.info(digest.of(parts[2].blob))
    assert info.labels["containerd.io/uncompressed"] == parts[2].diff_id
    info = await stores.content.info(digest.of(config(parts)))
    assert info.labels["containerd.io/gc.ref.snapshot.overlayfs"] == ids[-1]
    info2 = await stores.snapshots("overlayfs").stat(ids[1])
    assert info2.labels["containerd.io/snapshot.ref"] == ids[1]


async def test_layers_settle_bottom_up(
    together: Transfers, stores: ScopedDatabase, applier: ExtractingApplier
) -> None:
    await import_(together, stores, layers(3))
    assert [line for line in applier.log if line.startswith("settle")] == [
        "settle file1 on file0",
        "settle file2 on file1 file0",
    ]


async def test_a_layer_that_needs_its_lowers_is_applied_again(
    together: Transfers, stores: ScopedDatabase, applier: ExtractingApplier
) -> None:
    applier.needs_lowers = {"file1"}
    parts = layers(3)
    await import_(together, stores, parts)
    assert "apply file1" in applier.log
    ids = chain(parts)
    assert [name for name, _, kind in await snapshots(stores) if kind != Kind.COMMITTED] == []
    assert len(await stacked(stores, ids[-1])) == 3


async def test_what_is_there_is_used(
    transfers: Transfers, stores: ScopedDatabase, applier: ExtractingApplier
) -> None:
    parts = layers(4)
    await import_(transfers, stores, parts[:2])
    applier.log.clear()
    await import_(transfers, stores, parts)
    applied = [line for line in applier.log if not line.startswith("settle")]
    assert sorted(line.split()[1] for line in applied) == ["file2", "file3"]
    if any(line.startswith("settle") for line in applier.log):
        assert "settle file2 on file1 file0" in applier.log
    applier.log.clear()
    await import_(transfers, stores, parts)
    assert applier.log == []
    assert len(await snapshots(stores)) == 4


async def test_a_wrong_diff_id(transfers: Transfers, stores: ScopedDatabase) -> None:
    parts = layers(3)
    parts[1] = dataclasses.replace(parts[1], raw=b"something else")
    with pytest.raises(Error, match="wrong diff id sha256"):
        await import_(transfers, stores, parts)
    assert [name for name, _, kind in await snapshots(stores) if kind != Kind.COMMITTED] == []
    with pytest.raises(NotFound):
        await stores.images.get("x.io/x:1")


@pytest.mark.parametrize("bad", ["file0", "file2"])
async def test_a_failing_layer_leaves_nothing_active(
    transfers: Transfers, stores: ScopedDatabase, applier: ExtractingApplier, bad: str
) -> None:
    applier.fail = {bad}
    with pytest.raises(OSError, match="No space left"):
        await import_(transfers, stores, layers(4))
    assert [name for name, _, kind in await snapshots(stores) if kind != Kind.COMMITTED] == []
    applier.fail = set()
    await import_(transfers, stores, layers(4))
    assert len(await snapshots(stores)) == 4


async def test_images_for_other_hosts_are_not_unpacked(
    transfers: Transfers, stores: ScopedDatabase
) -> None:
    await import_(transfers, stores, layers(2), architecture="s390x")
    assert await snapshots(stores) == []
    await stores.images.get("x.io/x:1")


async def test_an_image_without_layers(transfers: Transfers, stores: ScopedDatabase) -> None:
    await import_(transfers, stores, [])
    assert await snapshots(stores) == []


async def test_diff_ids_must_match_layers(transfers: Transfers, stores: ScopedDatabase) -> None:
    layout = Layout()
    parts = layers(2)
    manifest = {
        "schemaVersion": 2,
        "config": layout.blob(oci.CONFIG, config(parts)),
        "layers": [layout.blob(oci.LAYER_GZIP, parts[0].blob)],
    }
    named = {"annotations": {oci.IMAGE_NAME: "x.io/x:1"}}
    layout.manifests.append(layout.blob(oci.MANIFEST, dump(manifest), **named))
    with pytest.raises(InvalidArgument, match="1 layers for 2 diff ids"):
        await transfers.import_archive(
            stores, pieces(layout.archive()), DESTINATION, lambda _: None
        )


async def test_layers_are_unpacked_while_the_archive_arrives(
    together: Transfers, stores: ScopedDatabase, applier: ExtractingApplier
) -> None:
    layout = Layout()
    layout.manifests.append(layout.image(layers(2), annotations={oci.IMAGE_NAME: "x.io/x:1"}))
    archive = layout.archive()

    async def held_back() -> AsyncIterator[bytes]:
        yield archive[:-5000]
        while len(applier.log) < 2:  # noqa: ASYNC110 - the importer goes on meanwhile
            await asyncio.sleep(0)
        yield archive[-5000:]

    await together.import_archive(stores, held_back(), DESTINATION, lambda _: None)
    assert len(await snapshots(stores)) == 2


async def test_layers_of_other_platforms_are_dropped(
    together: Transfers, stores: ScopedDatabase, applier: ExtractingApplier
) -> None:
    layout = Layout()
    both = [
        layout.image(parts, arch, platform={"os": "linux", "architecture": arch})
        for parts, arch in ((layers(2), HOST.architecture), (layers(4)[2:], "s390x"))
    ]
    named = {"annotations": {oci.IMAGE_NAME: "x.io/x:1"}}
    layout.manifests.append(layout.index(both, **named))
    await together.import_archive(stores, pieces(layout.archive()), DESTINATION, lambda _: None)
    assert {name for name, _, _ in await snapshots(stores)} == set(chain(layers(2)))


async def test_an_import_that_fails_drops_what_it_unpacked(
    together: Transfers, stores: ScopedDatabase, applier: ExtractingApplier
) -> None:
    layout = Layout()
    layout.image(layers(3))
    archive = layout.archive()

    async def broken() -> AsyncIterator[bytes]:
        yield archive[:-5000]
        while not applier.log:  # noqa: ASYNC110 - the importer goes on meanwhile
            await asyncio.sleep(0)
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        await together.import_archive(stores, broken(), DESTINATION, lambda _: None)
    assert await snapshots(stores) == []


async def test_images_that_share_layers(
    together: Transfers, stores: ScopedDatabase, applier: ExtractingApplier
) -> None:
    layout = Layout()
    parts = layers(4)
    for number, chosen in enumerate((parts[:3], [*parts[:2], parts[3]], [parts[0], parts[0]])):
        named = {"annotations": {oci.IMAGE_NAME: f"x.io/x:{number}"}}
        layout.manifests.append(layout.image(chosen, **named))
    await together.import_archive(stores, pieces(layout.archive()), DESTINATION, lambda _: None)
    assert {name for name, _, kind in await snapshots(stores) if kind == Kind.COMMITTED} == {
        *chain(parts[:3]),
        *chain([*parts[:2], parts[3]]),
        *chain([parts[0], parts[0]]),
    }
    assert len(await snapshots(stores)) == 5


async def test_no_snapshotter_means_the_usual_one(
    together: Transfers, stores: ScopedDatabase
) -> None:
    layout = Layout()
    layout.manifests.append(layout.image(layers(2)))
    destination = ImageDestination("x.io/x:1", unpacks=(Unpack("", ""),))
    await together.import_archive(stores, pieces(layout.archive()), destination, lambda _: None)
    assert len(await snapshots(stores)) == 2
