"""A small root and state as a daemon leaves them, over the real stores, without a daemon."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cradled import digest as digests
from cradled.aio import threads
from cradled.content.local import LocalContentStore, open_store
from cradled.core.containers import Container, Runtime
from cradled.core.images import Image
from cradled.core.scope import Scope
from cradled.core.values import AnyValue, Descriptor
from cradled.metadata.db import Database, ScopedDatabase
from cradled.oci import image as oci
from cradled.repair.ground import Ground
from cradled.snapshotters.native import NativeSnapshotter
from cradled.transfer.graph import gc_labels

LAYERS = [b"first layer " * 50, b"second layer " * 50]
NAME = "docker.io/library/small:1"


def ground_at(directory: Path) -> Ground:
    root, state = f"{directory}/root", f"{directory}/state"
    return Ground(
        root=root,
        state=state,
        metadata=f"{root}/io.containerd.metadata.v1.bolt/meta.db",
        content=f"{root}/io.containerd.content.v1.content",
        snapshotters={"native": f"{root}/io.containerd.snapshotter.v1.native"},
        bundles=f"{state}/io.containerd.runtime.v2.task",
        work=f"{root}/io.containerd.runtime.v2.task",
        sockets=f"{state}/s",
    )


@dataclass
class Stores:
    """What is open on a root."""

    db: Database
    content: LocalContentStore
    native: NativeSnapshotter

    def scoped(self, namespace: str = "ns") -> ScopedDatabase:
        return self.db.scoped(Scope(namespace))


@asynccontextmanager
async def opened(ground: Ground) -> AsyncIterator[Stores]:
    for path in (os.path.dirname(ground.metadata), ground.bundles, ground.work, ground.sockets):
        os.makedirs(path, exist_ok=True)
    native = NativeSnapshotter(ground.snapshotters["native"])
    await native.start()
    content = await open_store(ground.content)
    db = await Database.open(ground.metadata, content=content, snapshotters={"native": native})
    try:
        yield Stores(db, content, native)
    finally:
        await db.aclose()
        await native.aclose()
        threads.close()


async def write(ns: ScopedDatabase, data: bytes, labels: dict[str, str] | None = None) -> str:
    digest = digests.of(data)
    writer = await ns.content.writer(f"ref-{digest}", total=len(data))
    await writer.write(data)
    await writer.commit(len(data), digest, labels or {})
    return digest


def documents() -> tuple[bytes, bytes, bytes]:
    """Config, manifest and index of an image whose layers are not compressed."""
    diff_ids = [digests.of(layer) for layer in LAYERS]
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    ).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": oci.MANIFEST,
            "config": described(oci.CONFIG, config),
            "layers": [described(oci.LAYER, layer) for layer in LAYERS],
        }
    ).encode()
    entry = {**described(oci.MANIFEST, manifest), "annotations": {oci.IMAGE_NAME: NAME}}
    index = json.dumps({"schemaVersion": 2, "mediaType": oci.INDEX, "manifests": [entry]}).encode()
    return config, manifest, index


def described(media_type: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digests.of(data), "size": len(data)}


async def fill(stores: Stores) -> None:
    """An image in two layers, unpacked; a container of it; an upload; a bundle of the container."""
    ns = stores.scoped()
    config, manifest, index = documents()
    chains = digests.chain_ids([digests.of(layer) for layer in LAYERS])
    for layer in LAYERS:
        await write(ns, layer)
    await write(ns, config, {"containerd.io/gc.ref.snapshot.native": chains[-1]})
    await write(ns, manifest, gc_labels(_children(manifest)))
    digest = await write(ns, index, gc_labels(_children(index)))
    await ns.images.create(Image(NAME, Descriptor(oci.INDEX, digest, len(index)), {"a": "b"}))
    parent = ""
    for number, chain in enumerate(chains):
        (mount,) = await ns.snapshots("native").prepare(f"extract-{number}", parent, {})
        Path(mount.source, f"file{number}").write_text("data")
        await ns.snapshots("native").commit(chain, f"extract-{number}", {})
        parent = chain
    await ns.snapshots("native").prepare("box", parent, {})
    spec = AnyValue("types.containerd.io/opencontainers/runtime-spec/1/Spec", b'{"ociVersion":"1"}')
    runtime = Runtime("io.containerd.runc.v2")
    await ns.containers.create(Container("box", {"x": "y"}, NAME, runtime, spec, "native", "box"))
    upload = await ns.content.writer("upload", total=100)
    await upload.write(b"half")
    await upload.close()


def _children(data: bytes) -> list[Descriptor]:
    value = json.loads(data)
    entries = value.get("manifests") or [value["config"], *value["layers"]]
    return [Descriptor(e["mediaType"], e["digest"], e["size"]) for e in entries]


def make(directory: Path) -> Ground:
    """Everything ``fill`` makes, closed properly, with a bundle of the container."""
    ground = ground_at(directory)

    async def build() -> None:
        async with opened(ground) as stores:
            await fill(stores)

    asyncio.run(build())
    bundle = Path(ground.bundles, "ns", "box")
    bundle.mkdir(parents=True)
    (bundle / "config.json").write_bytes(b'{"ociVersion":"1"}')
    (bundle / "shim-binary-path").write_text("/usr/bin/containerd-shim-cradled-v2")
    Path(ground.work, "ns", "box").mkdir(parents=True)
    return ground


def copy(source: Path, target: Path) -> None:
    """With the attributes, by which snapshots tell what they are."""
    shutil.copytree(source, target, symlinks=True)
    for path in source.rglob("*"):
        shutil.copystat(path, target / path.relative_to(source), follow_symlinks=False)
        for name in os.listxattr(path, follow_symlinks=False):
            value = os.getxattr(path, name, follow_symlinks=False)
            os.setxattr(target / path.relative_to(source), name, value, follow_symlinks=False)


def use(ground: Ground, act: Callable[[Stores], Any]) -> Any:
    """What an async function of the open stores returns."""

    async def run() -> Any:
        async with opened(ground) as stores:
            return await act(stores)

    return asyncio.run(run())


def cradled(ground: Ground, *words: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    flags = ["--root", ground.root, "--state", ground.state]
    program = [str(Path(sys.executable).parent / "cradled"), *flags, *words]
    return subprocess.run(
        program, capture_output=True, text=True, check=False, timeout=60, **kwargs
    )


def every_file(directory: Path) -> dict[str, str]:
    """Digest of each file by where it is: nothing is to get lost from among these."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }
