"""What a client does through the API: import an image, and a container's life, call by call."""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import json
import tarfile
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.targets import NAMESPACE, Target
from cradled.api import (
    containers_pb2,
    content_pb2,
    diff_pb2,
    images_pb2,
    leases_pb2,
    runc_options_pb2,
    snapshots_pb2,
    tasks_pb2,
    types_pb2,
    wellknown_pb2,
)
from cradled.digest import chain_ids
from cradled.errors import AlreadyExists
from cradled.oci import spec as oci_spec

OCI = "application/vnd.oci.image."
SPEC_URL = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
CHUNK = 1 << 20
PHASES = (
    "prepare",
    "container create",
    "task create",
    "task start",
    "exit seen",
    "task delete",
    "container delete",
    "snapshot remove",
)
_sequence = itertools.count(1)


@dataclass
class Layout:
    """An OCI image layout tar, read where it lies."""

    tar: tarfile.TarFile
    name: str
    manifest_descriptor: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> Layout:
        tar = tarfile.open(path)  # noqa: SIM115 - kept open for the layout's life
        index = json.load(tar.extractfile("index.json"))  # type: ignore[arg-type]
        descriptor = index["manifests"][0]
        return cls(tar, descriptor["annotations"]["io.containerd.image.name"], descriptor)

    def blob(self, digest: object) -> bytes:
        member = self.tar.extractfile("blobs/sha256/" + str(digest)[7:])
        assert member is not None
        return member.read()

    @property
    def manifest(self) -> dict[str, Any]:
        return json.loads(self.blob(self.manifest_descriptor["digest"]))

    def layer(self) -> tarfile.TarFile:
        """The first layer, unpacked in memory."""
        blob = self.blob(self.manifest["layers"][0]["digest"])
        return tarfile.open(fileobj=io.BytesIO(gzip.decompress(blob)))

    def diff_ids(self) -> list[str]:
        config = self.manifest["config"]["digest"]
        return json.loads(self.blob(config))["rootfs"]["diff_ids"]


def small_layout(path: Path, busybox: str = "/bin/busybox") -> Layout:
    """A one-layer busybox image, made on the spot."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name in ("bin", "dev", "etc", "proc", "run", "sys", "tmp"):
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
        tar.add(busybox, "bin/busybox")
        for name in ("sh", "true", "sleep", "cat"):
            info = tarfile.TarInfo("bin/" + name)
            info.type, info.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(info)
    layer = gzip.compress(raw.getvalue(), 1, mtime=0)
    rootfs = {"type": "layers", "diff_ids": [sha256(raw.getvalue())]}
    config = encode({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs})
    manifest = encode(
        {
            "schemaVersion": 2,
            "mediaType": OCI + "manifest.v1+json",
            "config": describe("config.v1+json", config),
            "layers": [describe("layer.v1.tar+gzip", layer)],
        }
    )
    named = {"io.containerd.image.name": "docker.io/library/bench:latest"}
    entry = describe("manifest.v1+json", manifest) | {"annotations": named}
    index = encode({"schemaVersion": 2, "manifests": [entry]})
    with tarfile.open(path, "w") as tar:
        for blob in (layer, config, manifest):
            add_bytes(tar, "blobs/sha256/" + sha256(blob)[7:], blob)
        add_bytes(tar, "index.json", index)
        add_bytes(tar, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    return Layout.open(path)


def encode(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()


def describe(kind: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": OCI + kind, "digest": sha256(blob), "size": len(blob)}


def descriptor(described: dict[str, Any]) -> types_pb2.Descriptor:
    return types_pb2.Descriptor(
        media_type=described["mediaType"], digest=described["digest"], size=described["size"]
    )


def add_bytes(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


async def write_blob(
    target: Target, lease: str, blob: bytes, labels: dict[str, str] | None = None
) -> None:
    digest, ref = sha256(blob), f"bench-{next(_sequence)}"
    request = content_pb2.WriteContentRequest
    common: dict[str, Any] = {"ref": ref, "total": len(blob), "expected": digest}
    try:
        async with target.stub(content_pb2.Content, lease).write() as stream:
            for offset in range(0, len(blob), CHUNK):
                data = blob[offset : offset + CHUNK]
                await stream.send(request(action=1, offset=offset, data=data, **common))
            await stream.send(request(action=2, offset=len(blob), labels=labels or {}, **common))
            await stream.done()
            while await stream.recv() is not None:
                pass
    except AlreadyExists:
        pass


async def import_image(target: Target, layout: Layout) -> str:
    """Blobs, image record, then layer by layer Prepare, Apply, Commit; returns the chain ID."""
    lease = f"bench-{next(_sequence)}"
    leases = target.stub(leases_pb2.Leases)
    await leases.create(leases_pb2.CreateRequest(id=lease))
    manifest, chain = layout.manifest, chain_ids(layout.diff_ids())
    children = [manifest["config"], *manifest["layers"]]
    for child in manifest["layers"]:
        await write_blob(target, lease, layout.blob(child["digest"]))
    await write_blob(
        target,
        lease,
        layout.blob(manifest["config"]["digest"]),
        {"containerd.io/gc.ref.snapshot.overlayfs": chain[-1]},
    )
    labels = {f"containerd.io/gc.ref.content.{n}": str(c["digest"]) for n, c in enumerate(children)}
    top = layout.manifest_descriptor
    await write_blob(target, lease, layout.blob(top["digest"]), labels)
    image = images_pb2.Image(name=layout.name, target=descriptor(top))
    try:
        await target.stub(images_pb2.Images).create(images_pb2.CreateImageRequest(image=image))
    except AlreadyExists:
        pass
    await unpack(target, lease, manifest["layers"], chain)
    await leases.delete(leases_pb2.DeleteRequest(id=lease))
    return chain[-1]


async def unpack(
    target: Target, lease: str, layers: list[dict[str, Any]], chain: list[str]
) -> None:
    snapshots = target.stub(snapshots_pb2.Snapshots, lease)
    for number, (layer, chain_id) in enumerate(zip(layers, chain, strict=True)):
        key, parent = f"extract-{next(_sequence)}", chain[number - 1] if number else ""
        try:
            prepared = await snapshots.prepare(
                snapshots_pb2.PrepareSnapshotRequest(
                    snapshotter="overlayfs", key=key, parent=parent
                )
            )
            apply = diff_pb2.ApplyRequest(diff=descriptor(layer), mounts=prepared.mounts)
            await target.stub(diff_pb2.Diff, lease).apply(apply, timeout=600)
            commit = snapshots_pb2.CommitSnapshotRequest(
                snapshotter="overlayfs", name=chain_id, key=key
            )
            await snapshots.commit(commit)
        except AlreadyExists:
            continue


def record(target: Target, name: str, chain: str, args: list[str]) -> containers_pb2.Container:
    spec = json.dumps(oci_spec.build(NAMESPACE, name, oci_spec.args(args))).encode()
    runtime = containers_pb2.Container.Runtime(name="io.containerd.runc.v2")
    if target.runtime != "runc":
        options = runc_options_pb2.Options(binary_name=target.runtime)
        value = options.SerializeToString()
        runtime.options.CopyFrom(
            wellknown_pb2.Any(type_url="containerd.runc.v1.Options", value=value)
        )
    return containers_pb2.Container(
        id=name,
        image="bench",
        runtime=runtime,
        snapshotter="overlayfs",
        snapshot_key=name,
        spec=wellknown_pb2.Any(type_url=SPEC_URL, value=spec),
    )


class Life:
    """The calls of one container's life, with the milliseconds of each phase."""

    def __init__(self, target: Target, chain: str, args: list[str], name: str = "") -> None:
        self.target, self.chain, self.args = target, chain, args
        self.name = name or target.container(next(_sequence))
        self.tasks = target.stub(tasks_pb2.Tasks)
        self.snapshots = target.stub(snapshots_pb2.Snapshots)
        self.containers = target.stub(containers_pb2.Containers)
        self.phases: dict[str, float] = {}
        self.pid = 0

    async def _timed(self, phase: str, call: Awaitable[Any]) -> Any:
        began = time.perf_counter()
        result = await call
        self.phases[phase] = (time.perf_counter() - began) * 1e3
        return result

    async def start(self) -> None:
        name = self.name
        prepare = snapshots_pb2.PrepareSnapshotRequest(
            snapshotter="overlayfs",
            key=name,
            parent=self.chain,
            labels={"containerd.io/gc.root": "bench"},
        )
        prepared = await self._timed("prepare", self.snapshots.prepare(prepare))
        container = containers_pb2.CreateContainerRequest(
            container=record(self.target, name, self.chain, self.args)
        )
        await self._timed("container create", self.containers.create(container))
        create = tasks_pb2.CreateTaskRequest(container_id=name, rootfs=prepared.mounts)
        created = await self._timed("task create", self.tasks.create(create))
        self.pid = created.pid
        await self._timed("task start", self.tasks.start(tasks_pb2.StartRequest(container_id=name)))

    async def wait(self) -> int:
        wait = self.tasks.wait(tasks_pb2.WaitRequest(container_id=self.name))
        return (await self._timed("exit seen", wait)).exit_status

    async def remove(self) -> None:
        name = self.name
        await self._timed(
            "task delete", self.tasks.delete(tasks_pb2.DeleteTaskRequest(container_id=name))
        )
        await self._timed(
            "container delete",
            self.containers.delete(containers_pb2.DeleteContainerRequest(id=name)),
        )
        await self._timed(
            "snapshot remove",
            self.snapshots.remove(
                snapshots_pb2.RemoveSnapshotRequest(snapshotter="overlayfs", key=name)
            ),
        )

    async def kill(self) -> None:
        await self.tasks.kill(tasks_pb2.KillRequest(container_id=self.name, signal=9, all=True))
        await self.wait()
        await self.remove()


async def whole_life(target: Target, chain: str) -> dict[str, float]:
    """Milliseconds of each phase of a container that does nothing."""
    life = Life(target, chain, ["true"])
    await life.start()
    status = await life.wait()
    assert status == 0, status
    await life.remove()
    return life.phases


async def whole_exec(life: Life) -> dict[str, float]:
    """Milliseconds of each phase of a process that does nothing in a running container."""
    ids: dict[str, Any] = {"container_id": life.name, "exec_id": f"e{next(_sequence)}"}
    process = oci_spec.default(NAMESPACE, life.name)["process"] | {"args": ["true"]}
    spec = wellknown_pb2.Any(type_url=oci_spec.PROCESS_TYPE_URL, value=json.dumps(process).encode())
    tasks, clock = life.tasks, time.perf_counter
    began = clock()
    await tasks.exec(tasks_pb2.ExecProcessRequest(spec=spec, **ids))
    await tasks.start(tasks_pb2.StartRequest(**ids))
    started = clock()
    status = (await tasks.wait(tasks_pb2.WaitRequest(**ids))).exit_status
    assert status == 0, status
    ended = clock()
    await tasks.delete_process(tasks_pb2.DeleteProcessRequest(**ids))
    return {
        "start": (started - began) * 1e3,
        "exit seen": (ended - started) * 1e3,
        "delete": (clock() - ended) * 1e3,
    }
