"""Async. Importing image archives: OCI layouts, and what ``docker save`` writes.

The stream is stored as it comes: which files are blobs of what image is known only when the
archive's index has been read, which may be its last entry. What turns out to be of no use is
collected with the lease.
"""

from __future__ import annotations

import contextlib
import posixpath
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import msgspec

from cradled import digest as digests
from cradled import references
from cradled.aio import threads
from cradled.archive import decompress, tar
from cradled.core.content import ContentStore, Reader
from cradled.core.values import Descriptor
from cradled.errors import AlreadyExists, InvalidArgument, NotFound
from cradled.oci import image as oci
from cradled.oci import platforms
from cradled.transfer import graph
from cradled.transfer.archive import PIECE, Archive, open_archive

_LAYOUT = "oci-layout"
_INDEX = "index.json"
_DOCKER = "manifest.json"
_DOCUMENTS = frozenset({_LAYOUT, _INDEX, _DOCKER})
_BLOB = re.compile(r"blobs/(sha256|sha384|sha512)/([0-9a-f]+)").fullmatch
_IGNORED = re.compile(r"repositories|.*/(?:VERSION|json)").fullmatch
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_LAYER_TYPES = {"": _DOCKER_LAYER, "gzip": f"{_DOCKER_LAYER}.gzip", "zstd": oci.LAYER_ZSTD}
_MAX_LINKS = 16
_SNIFFED = 4
_GZIP = 31  # zlib's window bits, and 16 for a gzip header


class _DockerImage(msgspec.Struct, frozen=True, rename="pascal"):
    config: str
    layers: list[str] | None = None
    repo_tags: list[str] | None = None


class _Layout(msgspec.Struct, frozen=True, rename="camel"):
    image_layout_version: str = ""


async def take_in(
    content: ContentStore,
    chunks: AsyncIterator[bytes],
    found_layer: Callable[[Descriptor], None] | None = None,
    *,
    compress: bool = False,
) -> Descriptor:
    """Store an archive's blobs; returns its index, whose manifests say what they are called.

    ``found_layer`` hears of each new blob that looks like a layer as soon as it is stored.
    ``compress``: plain layers of a Docker archive become gzip ones. Raises InvalidArgument for
    what is no archive of images.
    """
    archive = await open_archive(chunks)
    intake = _Intake(content, found_layer, compress)
    while (entry := await archive.next()) is not None:
        await intake.take(entry, archive)
    await archive.drain()
    return await intake.index()


class _Intake:
    def __init__(
        self,
        content: ContentStore,
        found_layer: Callable[[Descriptor], None] | None,
        compress: bool,
    ) -> None:
        self._content = content
        self._found_layer = None if compress else found_layer
        self._compress = compress
        self._documents: dict[str, bytes] = {}
        self._files: dict[str, Descriptor] = {}
        self._links: dict[str, str] = {}

    async def take(self, entry: tar.Entry, archive: Archive) -> None:
        """Store one entry."""
        name = _clean(entry.name)
        if entry.kind == tar.SYMLINK:
            target = posixpath.join(posixpath.dirname(name), entry.link.decode(errors="replace"))
            self._links[name] = posixpath.normpath(target)
        elif entry.kind == tar.LINK:
            self._links[name] = _clean(entry.link)
        elif entry.kind != tar.REGULAR or _IGNORED(name):
            return
        elif name in _DOCUMENTS:
            self._documents[name] = await archive.read(graph.DOCUMENT_LIMIT)
        else:
            self._files[name] = await self._store(name, entry.size, archive)

    async def index(self) -> Descriptor:
        """The index of what was stored, kept with it."""
        if _LAYOUT in self._documents:
            layout = _decode(self._documents[_LAYOUT], _Layout, _LAYOUT)
            if not layout.image_layout_version.startswith("1."):
                raise InvalidArgument(f"unsupported OCI version {layout.image_layout_version}")
            if _INDEX not in self._documents:
                raise InvalidArgument("missing index.json in OCI layout")
            data = self._documents[_INDEX]
        elif _DOCKER in self._documents:
            data = await self._docker_index()
        else:
            raise InvalidArgument("unrecognized image format")
        labels = graph.gc_labels(graph.children(oci.INDEX, data, ()))
        ref = f"index-{digests.of(data)}"
        return await graph.store_bytes(self._content, ref, data, oci.INDEX, labels)

    async def _store(self, name: str, size: int, archive: Archive) -> Descriptor:
        blob = _BLOB(name)
        expected = f"{blob[1]}:{blob[2]}" if blob else ""
        ref = f"tar-{name}"
        try:
            writer = await graph.open_writer(self._content, ref, total=size, expected=expected)
        except AlreadyExists:
            return Descriptor("", expected, size)
        try:
            await graph.copy_pieces(archive.pieces(), writer)
            digest = expected or writer.digest()
            await writer.commit(size, expected, {})
        except AlreadyExists:
            pass
        except BaseException:
            await writer.close()
            with contextlib.suppress(NotFound):
                await self._content.abort(ref)
            raise
        else:
            await self._tell_of_layer(name, Descriptor("", digest, size))
        return Descriptor("", digest, size)

    async def _tell_of_layer(self, name: str, blob: Descriptor) -> None:
        """Compressed is nothing but layers; a plain tar is known by its name."""
        if self._found_layer is None:
            return
        media_type = _LAYER_TYPES[await self._compression(blob.digest)]
        if media_type != _DOCKER_LAYER or name.endswith("/layer.tar"):
            self._found_layer(replace(blob, media_type=media_type))

    async def _compression(self, digest: str) -> str:
        reader = await self._content.open(digest)
        try:
            return decompress.compression(await reader.read(0, _SNIFFED))
        finally:
            reader.close()

    async def _docker_index(self) -> bytes:
        described = _decode(self._documents[_DOCKER], list[_DockerImage], _DOCKER)
        manifests = [entry for image in described for entry in await self._docker_image(image)]
        return graph.dump({"schemaVersion": 2, "mediaType": oci.INDEX, "manifests": manifests})

    async def _docker_image(self, image: _DockerImage) -> list[dict[str, Any]]:
        """Make a manifest; returns its entry in an index for every name it has."""
        config = self._find(image.config)
        layers = [await self._docker_layer(path) for path in image.layers or ()]
        manifest = {
            "schemaVersion": 2,
            "mediaType": oci.DOCKER_MANIFEST,
            "config": _entry(oci.DOCKER_CONFIG, config),
            "layers": layers,
        }
        data = graph.dump(manifest)
        labels = graph.gc_labels(graph.children(oci.DOCKER_MANIFEST, data, ()))
        ref = f"manifest-{digests.of(data)}"
        stored = await graph.store_bytes(self._content, ref, data, oci.DOCKER_MANIFEST, labels)
        entry = _entry(oci.DOCKER_MANIFEST, stored)
        view = oci.config(await graph.read_document(self._content, config.digest))
        entry["platform"] = _platform(view.platform)
        if not image.repo_tags:
            return [entry]
        return [{**entry, "annotations": _annotations(tag)} for tag in image.repo_tags]

    async def _docker_layer(self, path: str) -> dict[str, Any]:
        found = self._find(path)
        kind = await self._compression(found.digest)
        if self._compress and not kind:
            kind, found = "gzip", await self._compressed(found)
        return _entry(_LAYER_TYPES[kind], found)

    async def _compressed(self, plain: Descriptor) -> Descriptor:
        """A gzip blob of a plain one."""
        ref = "compress-blob-" + plain.digest.replace(":", "-")
        writer = await graph.open_writer(self._content, ref)
        reader = await self._content.open(plain.digest)
        try:
            await graph.copy_pieces(_gzipped(reader), writer)
            status, digest = writer.status(), writer.digest()
            await writer.commit(status.offset, digest, {graph.UNCOMPRESSED: plain.digest})
        except AlreadyExists:
            await graph.add_labels(self._content, digest, {graph.UNCOMPRESSED: plain.digest})
        finally:
            reader.close()
            await writer.close()
        return Descriptor("", digest, status.offset)

    def _find(self, path: str) -> Descriptor:
        name = posixpath.normpath(path)
        for _ in range(_MAX_LINKS):
            if name in self._files:
                return self._files[name]
            if name not in self._links:
                break
            name = self._links[name]
        raise InvalidArgument(f"image archive: no file {path}")


async def _gzipped(reader: Reader) -> AsyncIterator[bytes]:
    from isal import isal_zlib  # wanted by few

    compressor = isal_zlib.compressobj(wbits=_GZIP)
    offset = 0
    while data := await reader.read(offset, PIECE):
        offset += len(data)
        if packed := await threads.run("bulk", compressor.compress, data):
            yield packed
    yield await threads.run("bulk", compressor.flush)


def _clean(name: bytes) -> str:
    return posixpath.normpath(name.decode(errors="replace")).lstrip("/")


def _decode(data: bytes, kind: Any, what: str) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"image archive: {what}: {error}") from error


def _entry(media_type: str, blob: Descriptor) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": blob.digest, "size": blob.size}


def _annotations(tag: str) -> dict[str, str]:
    name = references.normalise(tag)
    return {oci.IMAGE_NAME: name, oci.REF_NAME: references.parse(name).tag}


def _platform(platform: platforms.Platform) -> dict[str, str]:
    known = platforms.normalise(platform)
    view = {"architecture": known.architecture, "os": known.os, "variant": known.variant}
    return {key: value for key, value in view.items() if value}
