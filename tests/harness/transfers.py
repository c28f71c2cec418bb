"""Images made by hand for the tests of transfers, and an applier that needs no workers."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cradled import digest
from cradled.core.content import Reader
from cradled.core.diff import Apart
from cradled.core.mount import Mount
from cradled.core.values import AnyValue, Descriptor
from cradled.oci import image as oci
from cradled.oci import platforms

HOST = platforms.default()


def tar(files: Mapping[str, bytes | str]) -> bytes:
    """A tar archive; a text is the target of a symbolic link."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            if isinstance(data, str):
                info.type, info.linkname = tarfile.SYMTYPE, data
                archive.addfile(info)
            else:
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def dump(document: object) -> bytes:
    return json.dumps(document).encode()


@dataclass(frozen=True)
class Layer:
    raw: bytes
    blob: bytes

    @property
    def diff_id(self) -> str:
        return digest.of(self.raw)


def layers(count: int) -> list[Layer]:
    made = []
    for number in range(count):
        raw = tar({f"file{number}": str(number).encode() * 1000})
        made.append(Layer(raw, gzip.compress(raw, mtime=0)))
    return made


def config(parts: Sequence[Layer], architecture: str = HOST.architecture) -> bytes:
    rootfs = {"type": "layers", "diff_ids": [layer.diff_id for layer in parts]}
    return dump({"architecture": architecture, "os": "linux", "rootfs": rootfs})


def entry(media_type: str, data: bytes, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest.of(data), "size": len(data), **more}


class Layout:
    """An OCI layout that grows."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: list[dict[str, Any]] = []

    def blob(self, media_type: str, data: bytes, **more: Any) -> dict[str, Any]:
        self.blobs[digest.of(data)] = data
        return entry(media_type, data, **more)

    def image(
        self, parts: Sequence[Layer], architecture: str = HOST.architecture, **more: Any
    ) -> dict[str, Any]:
        """Add an image's blobs; returns the entry of its manifest."""
        manifest = {
            "schemaVersion": 2,
            "mediaType": oci.MANIFEST,
            "config": self.blob(oci.CONFIG, config(parts, architecture)),
            "layers": [self.blob(oci.LAYER_GZIP, layer.blob) for layer in parts],
        }
        return self.blob(oci.MANIFEST, dump(manifest), **more)

    def index(self, manifests: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
        document = {"schemaVersion": 2, "mediaType": oci.INDEX, "manifests": list(manifests)}
        return self.blob(oci.INDEX, dump(document), **more)

    def archive(self) -> bytes:
        files = {"oci-layout": dump({"imageLayoutVersion": "1.0.0"})}
        for name, data in self.blobs.items():
            files["blobs/" + name.replace(":", "/")] = data
        index = {"schemaVersion": 2, "manifests": self.manifests}
        return tar({**files, "index.json": dump(index)})


def docker_archive(parts: Sequence[Layer], *tags: str, shared: bool = False) -> bytes:
    """What ``docker save`` wrote before it knew of OCI layouts."""
    made = config(parts)
    name = digest.of(made).partition(":")[2] + ".json"
    files: dict[str, bytes | str] = {}
    paths = []
    for number, layer in enumerate(parts):
        files[f"id{number}/VERSION"] = b"1.0"
        files[f"id{number}/json"] = b"{}"
        files[f"id{number}/layer.tar"] = layer.raw
        paths.append(f"id{number}/layer.tar")
    if shared:
        files["id9/layer.tar"] = "../id0/layer.tar"
        paths[0] = "id9/layer.tar"
    files[name] = made
    manifest = [{"Config": name, "RepoTags": list(tags) or None, "Layers": paths}]
    files["manifest.json"] = dump(manifest)
    files["repositories"] = b"{}"
    return tar(files)


async def pieces(data: bytes, size: int = 10_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


class ExtractingApplier:
    """Unpacks plain files of gzip layers; ``needs_lowers`` names layers by what they contain."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.needs_lowers: set[str] = set()
        self.fail: set[str] = set()

    async def apply(
        self,
        layer: Descriptor,
        blob: Reader,
        mounts: Sequence[Mount],
        /,
        *,
        payloads: Mapping[str, AnyValue] | None = None,
        sync_fs: bool = False,
    ) -> Descriptor:
        words = dict(o.partition("=")[::2] for o in mounts[0].options)
        return await self._extract(blob, words.get("upperdir") or mounts[0].source, "apply")

    async def apply_apart(self, layer: Descriptor, blob: Reader, upper: str, /) -> Apart:
        applied = await self._extract(blob, upper, "apart")
        needs = bool(self.needs_lowers.intersection(os.listdir(upper)))
        return Apart(applied, (b"implied",), needs)

    async def settle(self, apart: Apart, upper: str, lowers: Sequence[str], /) -> bool:
        below = [name for lower in lowers for name in os.listdir(lower)]
        self.log.append(f"settle {os.listdir(upper)[0]} on {' '.join(below)}")
        return not apart.needs_lowers

    async def _extract(self, blob: Reader, target: str, how: str) -> Descriptor:
        raw = await blob.read(0, blob.size)
        if raw[:2] == b"\x1f\x8b":
            raw = zlib.decompress(raw, 31)
        with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
            names = archive.getnames()
            if self.fail.intersection(names):
                raise OSError(28, "No space left on device")
            archive.extractall(target, filter="fully_trusted")
        self.log.append(f"{how} {' '.join(names)}")
        return Descriptor(oci.LAYER, digest.of(raw), len(raw))
