"""Layers unpacked at the same time come out as layers unpacked one on top of the other."""

import io
import os
import tarfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from harness.images import LayerTar, TestImage, sha256
from harness.transfers import pieces
from harness.trees import Entry, differences, read_tree

from cradled.aio import threads
from cradled.content.local import open_store
from cradled.core.scope import Scope
from cradled.core.transfer import ExtraReference, ImageDestination, Unpack
from cradled.differs.apply import WalkingApplier
from cradled.digest import chain_ids
from cradled.events.exchange import Exchange
from cradled.events.journal import Journal
from cradled.metadata.db import Database, ScopedDatabase
from cradled.oci import platforms
from cradled.snapshotters.overlay import OverlaySnapshotter
from cradled.testing.snapshot_suite import mounted
from cradled.transfer.service import Transfers
from cradled.transfer.unpack import Unpacker
from cradled.workers.pool import Pool
from cradled.zygote.client import Zygote

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

NAME = "docker.io/library/layers:test"
HOST = platforms.default()


@asynccontextmanager
async def stores_in(root: Path) -> AsyncIterator[ScopedDatabase]:
    root.mkdir()
    snapshotter = OverlaySnapshotter(f"{root}/overlayfs")
    await snapshotter.start()
    journal = Journal(f"{root}/state")
    db = await Database.open(
        f"{root}/meta.db",
        content=await open_store(f"{root}/content"),
        snapshotters={"overlayfs": snapshotter},
        publisher=Exchange(journal),
    )
    try:
        await db.scoped(Scope("test")).leases.create("lease", {})
        yield db.scoped(Scope("test", "lease"))
    finally:
        await db.aclose()
        journal.close()
        await snapshotter.aclose()


@pytest.fixture
async def applier(tmp_path: Path) -> AsyncIterator[WalkingApplier]:
    zygote = Zygote()
    pool = Pool(zygote, str(tmp_path))
    yield WalkingApplier(pool)
    await pool.aclose()
    await zygote.aclose()
    threads.close()


async def unpacked(
    applier: WalkingApplier, layers: Sequence[bytes], root: Path, *, together: bool
) -> dict[str, Entry]:
    image = TestImage(NAME, list(layers))
    archive = image.write_oci_layout(root.with_suffix(".tar"))
    destination = ImageDestination(
        extra_references=(ExtraReference("x", True, True),),
        unpacks=(Unpack(f"linux/{HOST.architecture}", "overlayfs"),),
    )
    unpacker = Unpacker(applier, apart=applier, rebasing=("overlayfs",) if together else ())
    async with stores_in(root) as stores:
        await Transfers(unpacker).import_archive(
            stores, pieces(archive.read_bytes()), destination, lambda _: None
        )
        snapshots = stores.snapshots("overlayfs")
        top = chain_ids(sha256(layer) for layer in layers)[-1]
        await snapshots.view("v", top, {})
        async with mounted(snapshots, "v", root / "mounted") as target:
            tree = read_tree(target)
        await snapshots.remove("v")
    return tree


def below() -> bytes:
    layer = LayerTar()
    for name in ("usr", "usr/bin", "usr/lib", "opaque", "gone", "gone/deep", "later"):
        layer.directory(name)
    layer.add("etc", tarfile.DIRTYPE, mode=0o710, uid=12, gid=34, mtime=1_600_000_000)
    layer.add("etc/deep", tarfile.DIRTYPE, mode=0o2775, uid=5, gid=6, mtime=1_500_000_000,
              pax_headers={"SCHILY.xattr.user.note": "kept"})  # fmt: skip
    layer.symlink("lib", "usr/lib")
    for name in ("usr/bin/tool", "opaque/hidden", "gone/x", "gone/deep/y", "later/l", "plain"):
        layer.add(name, data=name.encode())
    return layer.bytes()


def goes_through_directories() -> bytes:
    layer = LayerTar()
    layer.add("etc/deep/new", data=b"1").add("usr/bin/other", data=b"2")
    layer.add("fresh/made/here", data=b"3")
    layer.add(".wh.gone").add("opaque/.wh..wh..opq").add("opaque/shown", data=b"4")
    layer.add("opaque/sub/inner", data=b"5").add("usr/bin/.wh.tool")
    return layer.bytes()


def comes_back() -> bytes:
    layer = LayerTar()
    # No whiteouts of what may not be there: overlay lists those.
    layer.add("gone/again", data=b"6").directory("plain")
    layer.add("etc/deep/newer", data=b"7").add("fresh/made/more", data=b"7")
    return layer.bytes()


def goes_through_a_link() -> bytes:
    return LayerTar().add("lib/through", data=b"8").add("etc/x", data=b"9").bytes()


def links_to_a_lower_file() -> bytes:
    layer = LayerTar().add("etc/alias", tarfile.LNKTYPE, link="usr/bin/other")
    return layer.add("etc/y", data=b"10").bytes()


def hides_everything() -> bytes:
    return LayerTar().add(".wh..wh..opq").add("etc/only", data=b"11").bytes()


def takes_away_what_it_implied() -> bytes:
    layer = LayerTar().add("etc/deep/z", data=b"12").add("etc/.wh.deep")
    return layer.symlink("usr/lib", "bin").bytes()


STACKS = {
    "directories": [below(), goes_through_directories(), comes_back()],
    "link": [below(), goes_through_directories(), goes_through_a_link(), comes_back()],
    "hard link": [below(), goes_through_directories(), links_to_a_lower_file(), comes_back()],
    "opaque root": [below(), goes_through_directories(), hides_everything(), comes_back()],
    "changed mind": [below(), takes_away_what_it_implied(), comes_back()],
    "all": [
        below(),
        goes_through_directories(),
        goes_through_a_link(),
        links_to_a_lower_file(),
        comes_back(),
        takes_away_what_it_implied(),
        hides_everything(),
        below(),
        goes_through_directories(),
    ],
}


def settled(tree: dict[str, Entry]) -> dict[str, Entry]:
    """Without what is only as old as the unpacking: directories that no layer lists."""
    recent = 1_750_000_000 * 10**9
    return {p: e._replace(mtime=0) if e.mtime > recent else e for p, e in tree.items()}


@pytest.mark.parametrize("name", STACKS)
async def test_together_as_one_by_one(applier: WalkingApplier, tmp_path: Path, name: str) -> None:
    layers = STACKS[name]
    expected = await unpacked(applier, layers, tmp_path / "ordered", together=False)
    found = await unpacked(applier, layers, tmp_path / "together", together=True)
    assert differences(settled(found), settled(expected)) == []
    assert len(found) > 3


async def test_attributes_come_from_below(applier: WalkingApplier, tmp_path: Path) -> None:
    tree = await unpacked(applier, STACKS["directories"], tmp_path / "t", together=True)
    deep = tree["etc/deep"]
    assert (deep.mode, deep.uid, deep.gid) == (0o2775, 5, 6)
    assert dict(deep.xattrs) == {"user.note": b"kept"}
    assert (tree["etc"].mode, tree["etc"].uid) == (0o710, 12)
    assert tree["etc"].mtime == 1_600_000_000 * 10**9
    assert "opaque/hidden" not in tree
    assert "gone/deep" not in tree
    assert tree["plain"].kind == "dir"


def random_layer(number: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for file in range(300):
            info = tarfile.TarInfo(f"d{number % 3}/s{file % 7}/f{number}-{file}")
            info.size = 2000
            archive.addfile(info, io.BytesIO(os.urandom(2000)))
    return out.getvalue()


async def test_many_layers(applier: WalkingApplier, tmp_path: Path) -> None:
    layers = [random_layer(number) for number in range(12)]
    tree = await unpacked(applier, layers, tmp_path / "t", together=True)
    assert sum(entry.kind == "file" for entry in tree.values()) == 3600
