"""Async. Images: bringing them in, naming them, and what they say about their containers."""

from __future__ import annotations

import io
import os
import secrets
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Generator,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cradled import digest as digests
from cradled import references
from cradled.aio import threads
from cradled.client.session import Session
from cradled.core.content import ContentInfo
from cradled.core.images import Image
from cradled.core.snapshots import Snapshotter
from cradled.core.transfer import ExtraReference, ImageDestination, Progress, Tell, Unpack
from cradled.core.values import Descriptor, Labels
from cradled.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from cradled.oci import image as oci
from cradled.oci import platforms

_CHUNK = 1 << 20
_KEPT = 64
_UNCOMPRESSED = "containerd.io/uncompressed"
_SNAPSHOT_REF = "containerd.io/gc.ref.snapshot"

Source = str | os.PathLike[str] | BinaryIO | Iterable[bytes] | AsyncIterable[bytes]


@dataclass(frozen=True, slots=True)
class Contents:
    """An image read for this host's platform; ``chain_id`` is empty for one without layers."""

    manifest: oci.Manifest
    config_descriptor: Descriptor
    config: oci.Config
    chain_id: str


class Images:
    """The images of one namespace."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._contents: dict[str, Contents] = {}  # by digest: what it names never changes

    async def list(self, *filters: str) -> list[Image]:
        """All images, or those that one of the filters matches."""
        return await self._session.images.list(filters)

    async def get(self, name: str) -> Image:
        """By the stored name or a short form of it. Raises NotFound."""
        candidates = [name]
        with suppress(InvalidArgument):  # not every record is called what a registry could serve
            candidates.append(references.normalise(name))
        for candidate in dict.fromkeys(candidates):
            try:
                return await self._session.images.get(candidate)
            except NotFound:
                continue
        raise NotFound(f'image "{name}"')

    async def import_(
        self,
        source: Source,
        *,
        name: str = "",
        unpack: bool = True,
        tell: Tell | None = None,
    ) -> Sequence[Image]:
        """Store the images of an archive: a path, an open file, or the bytes in pieces.

        OCI layouts and Docker's archives, plain or compressed. ``name`` is for what the archive
        gives no name. ``unpack`` makes them ready to run. ``tell`` hears of each step. Raises
        InvalidArgument for what is no such archive.
        """
        saved: dict[str, None] = {}

        def listen(progress: Progress) -> None:
            if progress.event == "saved" and progress.name:
                saved[progress.name] = None
            if tell is not None:
                tell(progress)

        here = Unpack(str(platforms.default()), self._session.snapshotter)
        prefix = time.strftime("import-%Y-%m-%d", time.gmtime())
        image = ImageDestination(
            name=name,
            extra_references=(ExtraReference(prefix, is_prefix=True, allow_overwrite=True),),
            unpacks=(here,) if unpack else (),
        )
        async with aclosing(_chunks(source)) as chunks:
            await self._session.transfer.import_archive(chunks, image, listen)
        return [await self._session.images.get(known) for known in saved]

    async def pack(
        self,
        directory: str | os.PathLike[str],
        name: str,
        *,
        config: Mapping[str, Any] | None = None,
        tell: Tell | None = None,
    ) -> Image:
        """Make an image of one layer from a directory and store it under ``name``.

        ``config`` is the image's: ``Cmd``, ``Entrypoint``, ``Env``, ``WorkingDir``, ``User``,
        ``Labels``, ``StopSignal``. Raises InvalidArgument.
        """
        from cradled.client import pack  # with its compressor, wanted by few

        full = references.normalise(name)
        layer = await threads.run("bulk", pack.pack_layer, Path(directory))
        with layer.file:
            await self.import_(pack.archive(layer, full, config or {}), tell=tell)
        return await self._session.images.get(full)

    async def tag(self, source: str, target: str) -> Image:
        """Give an image another name; what had the name before loses it."""
        image = await self.get(source)
        tagged = Image(references.normalise(target), image.target, image.labels)
        try:
            return await self._session.images.create(tagged)
        except AlreadyExists:
            return await self._session.images.update(tagged)

    async def remove(self, name: str, *, sync: bool = False) -> Image:
        """Drop a name; what nothing names any more is collected, with ``sync`` at once."""
        image = await self.get(name)
        await self._session.images.delete(image.name, sync=sync)
        return image

    async def contents(self, image: Image) -> Contents:
        """Manifest and config for this host. Raises NotFound when parts are not in the store."""
        known = self._contents.get(image.target.digest)
        if known is None:
            known = await self._read(image)
            if len(self._contents) >= _KEPT:
                self._contents.clear()
            self._contents[image.target.digest] = known
        return known

    async def unpack(self, image: Image, snapshotter: str = "") -> None:
        """Make an image ready to run where it is not yet."""
        contents = await self.contents(image)
        session = self._session.using(snapshotter) if snapshotter else self._session
        if contents.chain_id and not await _exists(session.snapshots(), contents.chain_id):
            async with session.leased() as leased:
                await _unpack(leased, contents)

    async def _read(self, image: Image) -> Contents:
        content, target = self._session.content, image.target
        if target.media_type in oci.INDEXES:
            target = oci.choose(oci.index(await content.read_all(target.digest)))
        manifest = oci.manifest(await content.read_all(target.digest))
        described = manifest.config.descriptor()
        config = oci.config(await content.read_all(described.digest))
        diff_ids = config.rootfs.diff_ids
        if len(diff_ids) != len(manifest.layers):
            counts = f"{len(manifest.layers)} layers and {len(diff_ids)} diff ids"
            raise InvalidArgument(f'image "{image.name}" has {counts}')
        chain = digests.chain_ids(diff_ids)
        return Contents(manifest, described, config, chain[-1] if chain else "")


async def _unpack(session: Session, contents: Contents) -> None:
    """Apply what is missing, layer by layer, lowest first."""
    snapshots = session.snapshots()
    diff_ids = contents.config.rootfs.diff_ids
    parent = ""
    layers = zip(contents.manifest.layers, diff_ids, digests.chain_ids(diff_ids), strict=True)
    for layer, diff_id, chain_id in layers:
        if not await _exists(snapshots, chain_id):
            await _unpack_layer(session, layer.descriptor(), diff_id, chain_id, parent)
        parent = chain_id
    config = contents.config_descriptor
    label = {f"{_SNAPSHOT_REF}.{session.snapshotter}": contents.chain_id}
    await _label(session, config.digest, label)


async def _unpack_layer(
    session: Session, layer: Descriptor, diff_id: str, chain_id: str, parent: str
) -> None:
    snapshots = session.snapshots()
    key = f"extract-{time.time_ns()}-{secrets.token_urlsafe(3)} {chain_id}"
    try:
        mounts = await snapshots.prepare(key, parent, {"containerd.io/snapshot.ref": chain_id})
    except AlreadyExists:  # somebody else was faster
        return
    try:
        applied = await session.diff.apply(layer, None, mounts)
        if applied.digest != diff_id:
            text = f"wrong diff id {diff_id} calculated on extraction {applied.digest}"
            raise FailedPrecondition(text)
        with suppress(AlreadyExists):
            await snapshots.commit(chain_id, key, {})
            key = ""
    finally:
        if key:
            await snapshots.remove(key)
    if applied.digest != layer.digest:
        await _label(session, layer.digest, {_UNCOMPRESSED: diff_id})


async def _label(session: Session, digest: str, labels: Labels) -> None:
    paths = [f"labels.{key}" for key in labels]
    await session.content.update(ContentInfo(digest, 0, labels=labels), paths)


async def _exists(snapshots: Snapshotter, name: str) -> bool:
    try:
        await snapshots.stat(name)
    except NotFound:
        return False
    return True


async def _chunks(source: Source) -> AsyncGenerator[bytes, None]:
    """The bytes of whatever was given; all but async iterators are read in a thread."""
    if isinstance(source, AsyncIterable):
        async for chunk in source:
            yield chunk
        return
    pieces = _pieces(source)
    try:
        while (piece := await threads.run("bulk", next, pieces, None)) is not None:
            yield piece
    finally:
        pieces.close()


def _pieces(
    source: str | os.PathLike[str] | BinaryIO | Iterable[bytes],
) -> Generator[bytes, None, None]:
    """Blocking: files by reads, anything else as it comes."""
    if isinstance(source, str | os.PathLike):
        with open(source, "rb", buffering=0) as file:
            yield from iter(lambda: file.read(_CHUNK), b"")
    elif isinstance(source, io.IOBase):
        yield from iter(lambda: source.read(_CHUNK), b"")
    else:
        yield from source
