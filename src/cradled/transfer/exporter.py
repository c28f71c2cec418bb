"""Async. Exporting images as a tar archive: an OCI layout that ``docker load`` reads as well."""

from __future__ import annotations

import tarfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from cradled import digest as digests
from cradled import references
from cradled.core.content import ContentStore
from cradled.core.images import Image
from cradled.core.values import Descriptor
from cradled.errors import InvalidArgument, NotFound
from cradled.oci import image as oci
from cradled.oci.platforms import Platform
from cradled.transfer import graph

_PIECE = 1 << 20
_LAYOUT = {"imageLayoutVersion": "1.0.0"}
_NON_DISTRIBUTABLE = ("nondistributable", "foreign")


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """``wanted`` platforms, the best first; none of them stands for all."""

    wanted: tuple[Platform, ...] = ()
    compatibility_manifest: bool = True
    non_distributable: bool = True


@dataclass(slots=True)
class _Plan:
    """What goes into the archive: blobs by digest, entries of both indexes."""

    blobs: dict[str, int] = field(default_factory=dict)
    manifests: list[dict[str, Any]] = field(default_factory=list)
    docker: dict[str, dict[str, Any]] = field(default_factory=dict)


async def export_archive(
    content: ContentStore, images: Sequence[Image], options: ExportOptions
) -> AsyncIterator[bytes]:
    """The archive in pieces. Raises NotFound for a blob that is not in the store."""
    plan = await _planned(content, images, options)
    yield _header("oci-layout", len(graph.dump(_LAYOUT))) + _padded(graph.dump(_LAYOUT))
    for directory in _directories(plan.blobs):
        yield _header(directory, 0, directory=True)
    for digest, size in sorted(plan.blobs.items()):
        yield _header(_path(digest), size, mode=0o444)
        reader = await content.open(digest)
        try:
            offset = 0
            while data := await reader.read(offset, _PIECE):
                offset += len(data)
                yield data
        finally:
            reader.close()
        yield bytes(-size % tarfile.BLOCKSIZE)
    index = {"schemaVersion": 2, "mediaType": oci.INDEX, "manifests": plan.manifests}
    yield _header("index.json", len(graph.dump(index))) + _padded(graph.dump(index))
    if options.compatibility_manifest and plan.docker:
        data = graph.dump(list(plan.docker.values()))
        yield _header("manifest.json", len(data)) + _padded(data)
    yield bytes(2 * tarfile.BLOCKSIZE)


async def _planned(content: ContentStore, images: Sequence[Image], options: ExportOptions) -> _Plan:
    plan = _Plan()
    for image in images:
        annotations = {**image.target.annotations, oci.IMAGE_NAME: image.name}
        if tag := _tag(image.name):
            annotations[oci.REF_NAME] = tag
        plan.manifests.append({**_entry(image.target), "annotations": annotations})
        await _add_tree(plan, content, image.target, options)
        await _add_docker(plan, content, image, options)
    return plan


async def _add_tree(
    plan: _Plan, content: ContentStore, described: Descriptor, options: ExportOptions
) -> None:
    """Add a blob and all below it."""
    if described.digest in plan.blobs:
        return
    plan.blobs[described.digest] = (await content.info(described.digest)).size
    if described.media_type not in oci.MANIFESTS | oci.INDEXES:
        return
    data = await graph.read_document(content, described.digest)
    for child in graph.children(described.media_type, data, options.wanted):
        is_foreign = any(word in child.media_type for word in _NON_DISTRIBUTABLE)
        if is_foreign and not options.non_distributable:
            continue
        try:
            await _add_tree(plan, content, child, options)
        except NotFound:
            # Of an index without a choice of platforms only what is there can be exported.
            if options.wanted or described.media_type not in oci.INDEXES:
                raise


async def _add_docker(
    plan: _Plan, content: ContentStore, image: Image, options: ExportOptions
) -> None:
    """Add what ``docker load`` looks at: one platform's manifest, by its config."""
    target = image.target
    if target.media_type in oci.INDEXES:
        view = oci.index(await graph.read_document(content, target.digest))
        try:
            target = oci.choose(view, options.wanted or None)
        except NotFound:
            return
    if target.digest not in plan.blobs or target.media_type not in oci.MANIFESTS:
        return
    manifest = oci.manifest(await graph.read_document(content, target.digest))
    layers = [_path(v.digest) for v in manifest.layers if graph.is_layer(v.media_type)]
    entry = {"Config": _path(manifest.config.digest), "RepoTags": [], "Layers": layers}
    known = plan.docker.setdefault(target.digest, entry)
    if _tag(image.name):
        known["RepoTags"].append(references.familiar(image.name))


def _tag(name: str) -> str:
    try:
        return references.parse(name).tag
    except InvalidArgument:
        return ""


def _entry(described: Descriptor) -> dict[str, Any]:
    return {
        "mediaType": described.media_type,
        "digest": described.digest,
        "size": described.size,
    }


def _path(digest: str) -> str:
    return "blobs/" + "/".join(digests.split(digest))


def _directories(blobs: dict[str, int]) -> list[str]:
    algorithms = {digests.split(digest)[0] for digest in blobs}
    return ["blobs", *(f"blobs/{algorithm}" for algorithm in sorted(algorithms))]


def _header(name: str, size: int, *, mode: int = 0o644, directory: bool = False) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size = size
    entry.mode = 0o755 if directory else mode
    if directory:
        entry.type = tarfile.DIRTYPE
    return entry.tobuf(tarfile.PAX_FORMAT)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % tarfile.BLOCKSIZE)
