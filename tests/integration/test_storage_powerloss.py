"""Loss of power: the daemon's root on a disk that forgets what was not flushed.

A daemon does what clients ask of it, on a disk that records all that is written to it. Then the
disk is made as it would be after a loss of power at many moments, and looked at: what a client was
told is done is there and whole, and nothing is there by half.

``CRADLED_POWERLOSS=all`` tries every flush, and many more parts of what comes after it.
"""

from __future__ import annotations

import json
import os
import random
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from harness.daemon import Daemon
from harness.flakydisk import Disk, Recording, serving
from harness.images import LayerTar, TestImage, busybox_layer
from harness.trees import Entry, read_tree

from cradled import digest as digests
from cradled.aio import threads
from cradled.content.local import open_store
from cradled.core.scope import Scope
from cradled.core.snapshots import Kind
from cradled.gc.scheduler import Scheduler
from cradled.linux import mount
from cradled.metadata.db import Database, ScopedDatabase
from cradled.snapshotters.overlay import OverlaySnapshotter

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

SIZE = 64 << 20
SAMPLES = 24
ALL = os.environ.get("CRADLED_POWERLOSS") == "all"
NAMESPACE = "n"

Tree = dict[str, Entry]


@dataclass
class Expected:
    """What is asked of a disk: by the mark with which it was done, and undone."""

    images: dict[int, str] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)
    containers: dict[int, str] = field(default_factory=dict)
    leases: dict[int, str] = field(default_factory=dict)
    snapshots: dict[int, str] = field(default_factory=dict)


class Work:
    """A client; every step that is done is marked on the disk."""

    def __init__(self, daemon: Daemon, disk: Disk) -> None:
        daemon.namespace = NAMESPACE
        self._daemon = daemon
        self._disk = disk
        self._marks = 0
        self.expected = Expected()

    def done(self) -> int:
        self._marks += 1
        self._disk.mark(self._marks)
        return self._marks

    def import_image(self, name: str, archive: Path) -> None:
        self._daemon.ctr("images", "import", str(archive))
        self.expected.images[self.done()] = name

    def remove_image(self, name: str) -> None:
        self.expected.removed[name] = self._marks  # from here on it may be gone
        self._daemon.ctr("images", "rm", "--sync", name)
        self.done()

    def create_container(self, image: str, id: str) -> None:
        self._daemon.ctr("containers", "create", image, id)
        self.expected.containers[self.done()] = id

    def create_lease(self, id: str) -> None:
        self._daemon.ctr("leases", "create", "--id", id)
        self.expected.leases[self.done()] = id

    def commit(self, name: str, files: dict[str, bytes]) -> None:
        """A snapshot that a client fills itself."""
        command = self._daemon.ctr("snapshots", "prepare", "-t", "/x", "key")
        source = Path(re.findall(r"-t bind (\S+)", command)[0])
        for path, data in files.items():
            (source / path).write_bytes(data)
        label = "containerd.io/gc.root=x"
        self._daemon.ctr("snapshots", "commit", name, "key")
        self._daemon.ctr("snapshots", "label", name, label)
        self.expected.snapshots[self.done()] = name


def images(directory: Path) -> Iterator[tuple[str, Path]]:
    """Two that have their lowest layer in common."""
    for name in ("a", "b"):
        top = LayerTar()
        top.directory("data")
        for number in range(20):
            top.add(f"data/{name}{number}", data=random.Random(number).randbytes(10_000 * number))
        top.symlink("data/link", "nowhere")
        top.add("bin/.wh.unlzma")
        full = f"docker.io/library/{name}:test"
        image = TestImage(full, [busybox_layer(), top.bytes()], {"Cmd": ["sh"]})
        yield full, image.write_oci_layout(directory / f"{name}.tar")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("p")
    (directory / "mounted").mkdir()
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def recorded(directory: Path) -> tuple[Recording, Expected]:
    """All that happens to a disk, and what it must have when."""
    disk = directory / "disk"
    with open(disk, "wb") as file:
        file.truncate(SIZE)
    subprocess.run(["mkfs.ext4", "-q", disk], check=True)
    before = disk.read_bytes()
    with serving(directory, disk) as served:
        expected = work(directory, served)
    return Recording(before, directory / "log"), expected


def work(directory: Path, disk: Disk) -> Expected:
    mounted = directory / "mounted"
    mount.mount("ext4", str(disk.path), ["loop"], str(mounted))
    daemon = Daemon(directory / "daemon", "cradled")
    daemon.directory.mkdir()
    daemon.root = mounted / "root"
    try:
        daemon.start()
        client = Work(daemon, disk)
        (a, archive_a), (b, archive_b) = images(directory)
        client.import_image(a, archive_a)
        client.create_container(a, "c1")
        client.import_image(b, archive_b)
        client.create_lease("l1")
        client.remove_image(a)
        client.commit("mine", {"x": b"x" * 100_000, "y": b""})
        client.create_container(b, "c2")
        client.import_image(a, archive_a)
        return client.expected
    finally:
        try:
            daemon.destroy()
        finally:
            mount.unmount(str(mounted), detach=True)


@dataclass
class Found:
    """What a disk has; that it is whole has been seen to."""

    images: set[str]
    containers: set[str]
    leases: set[str]
    blobs: set[str]
    snapshots: dict[str, Tree]


async def examine(root: Path) -> Found:
    """All that a daemon on this root would show, before and after it collects what is unused."""
    async with AsyncExitStack() as stack:
        stack.callback(threads.close)
        content = await open_store(f"{root}/io.containerd.content.v1.content")
        overlay = OverlaySnapshotter(f"{root}/io.containerd.snapshotter.v1.overlayfs")
        await overlay.start()
        stack.push_async_callback(overlay.aclose)
        path = f"{root}/io.containerd.metadata.v1.bolt/meta.db"
        os.makedirs(os.path.dirname(path), exist_ok=True)  # as the daemon does
        db = await Database.open(path, content=content, snapshotters={"overlayfs": overlay})
        stack.push_async_callback(db.aclose)
        scheduler = Scheduler(db)
        stack.push_async_callback(scheduler.aclose)
        stores = db.scoped(Scope(NAMESPACE))
        await look(stores, overlay)
        await scheduler.collect()
        found = await look(stores, overlay)
        await db.janitor.clean_snapshots("overlayfs")  # what was made to look
        begun = {status.expected for status in await stores.content.list_statuses()}
        assert {info.digest async for info in content.walk()} - begun == found.blobs - begun
        kept = [info.name async for info in overlay.walk()]
        assert len(os.listdir(f"{overlay.root}/snapshots")) == len(kept)
        return found


async def look(stores: ScopedDatabase, overlay: OverlaySnapshotter) -> Found:
    blobs = {info.digest: info.size async for info in stores.content.walk()}
    for digest, size in blobs.items():
        assert digests.of(await read(stores, digest)) == digest
        assert len(await read(stores, digest)) == size
    images = await stores.images.list()
    for image in images:
        await whole(stores, image.target.digest)
    snapshots: dict[str, Tree] = {}
    async for info in stores.snapshots("overlayfs").walk():
        if info.kind is Kind.COMMITTED:
            key = f"view of {info.name}"
            mounts = await stores.snapshots("overlayfs").view(key, info.name, {})
            (option,) = [word for word in mounts[0].options if word.startswith("lowerdir=")] or [""]
            own = option.removeprefix("lowerdir=").split(":")[0] or mounts[0].source
            snapshots[info.name] = read_tree(Path(own))
            await stores.snapshots("overlayfs").remove(key)
        else:
            await stores.snapshots("overlayfs").mounts(info.name)
    return Found(
        images={image.name for image in images},
        containers={found.id for found in await stores.containers.list()},
        leases={lease.id for lease in await stores.leases.list()},
        blobs=set(blobs),
        snapshots=snapshots,
    )


async def read(stores: ScopedDatabase, digest: str) -> bytes:
    reader = await stores.content.open(digest)
    try:
        return await reader.read(0, reader.size)
    finally:
        reader.close()


async def whole(stores: ScopedDatabase, digest: str) -> None:
    """An image that is there has all it refers to, unpacked where it says so."""
    document = json.loads(await read(stores, digest))
    for child in document.get("manifests", []):
        await whole(stores, child["digest"])
    if "config" not in document:
        return
    for layer in document["layers"]:
        assert len(await read(stores, layer["digest"])) == layer["size"]
    labels = (await stores.content.info(document["config"]["digest"])).labels
    await read(stores, document["config"]["digest"])
    if top := labels.get("containerd.io/gc.ref.snapshot.overlayfs"):
        await stores.snapshots("overlayfs").stat(top)


async def after_power_loss(directory: Path, disk: bytes) -> Found:
    """Look at a disk as it was left."""
    mounted = directory / "mounted"
    image = directory / secrets.token_hex()
    image.write_bytes(disk)
    mount.mount("ext4", str(image), ["loop"], str(mounted))
    try:
        return await examine(mounted / "root")
    finally:
        mount.unmount(str(mounted), detach=True)
        image.unlink()


def wrong(expected: Expected, marks: list[int], found: Found, trees: dict[str, Tree]) -> list[str]:
    """What a client was told and is not so; what is there and not as it should be."""
    last = max(marks, default=0)
    said: list[str] = []
    for what, wanted, there in (
        ("image", expected.images, found.images),
        ("container", expected.containers, found.containers),
        ("lease", expected.leases, found.leases),
        ("snapshot", expected.snapshots, set(found.snapshots)),
    ):
        for mark, name in wanted.items():
            begun = expected.removed.get(name, SIZE)
            if mark <= last and not mark <= begun <= last and name not in there:
                said.append(f"{what} {name} is lost")
    for name, tree in found.snapshots.items():
        for path in tree.keys() | trees[name].keys():
            if path != "." and tree.get(path) != trees[name].get(path):
                said.append(f"snapshot {name}: {path} is {tree.get(path)}")
    return said


async def test_what_is_done_survives(directory: Path, recorded: tuple[Recording, Expected]) -> None:
    recording, expected = recorded
    flushes = recording.flushes()
    end = await after_power_loss(directory, recording.after(len(recording.entries)))
    assert wrong(expected, recording.marks(len(recording.entries)), end, end.snapshots) == []
    assert len(end.snapshots) == 4
    chosen = random.Random(7)
    cuts = flushes if ALL else sorted(chosen.sample(flushes, min(SAMPLES, len(flushes))))
    failures = {}
    for cut in cuts:
        for part in (None, *(random.Random(n) for n in range(4 if ALL else 1))):
            disk = recording.after(cut, part)
            found = await after_power_loss(directory, disk)
            if said := wrong(expected, recording.marks(cut), found, end.snapshots):
                failures[cut, part is None] = said
    assert failures == {}
