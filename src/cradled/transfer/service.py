"""Async. The transfers there are: what is imported, exported or tagged, in whose stores."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from cradled.core.content import ContentStore
from cradled.core.images import Image
from cradled.core.transfer import ImageDestination, Progress, Tell, Unpack
from cradled.core.values import Descriptor
from cradled.errors import AlreadyExists, InvalidArgument, NotFound
from cradled.oci import image as oci
from cradled.oci import platforms
from cradled.spans import span
from cradled.transfer import exporter, graph, importer, naming
from cradled.transfer.exporter import ExportOptions
from cradled.transfer.graph import Stores
from cradled.transfer.unpack import Unpacker

_log = logging.getLogger(__name__)


class Transfers:
    """``stores`` are those of a namespace, bound to a lease that outlives the call.

    ``snapshotter`` is meant where a client names none.
    """

    def __init__(self, unpacker: Unpacker, snapshotter: str = "overlayfs") -> None:
        self._unpacker = unpacker
        self._snapshotter = snapshotter

    async def import_archive(
        self,
        stores: Stores,
        chunks: AsyncIterator[bytes],
        destination: ImageDestination,
        tell: Tell,
        *,
        compress: bool = False,
    ) -> list[Image]:
        """Store an archive's images, unpack them where that is asked for, then record them.

        ``compress``: plain layers of a Docker archive become gzip ones. Raises InvalidArgument for
        what is no archive of images, NotFound when none has a name.
        """
        tell(Progress("Importing"))
        wanted = _preferred(destination.platforms)
        unpacks = [
            replace(unpack, snapshotter=unpack.snapshotter or self._snapshotter)
            for unpack in destination.unpacks
            if _runs_here(unpack)
        ]
        async with contextlib.AsyncExitStack() as stack:
            early = self._unpacker.early(stores, unpacks[0].snapshotter) if unpacks else None
            begin = (await stack.enter_async_context(early)).begin if early else None
            with span("import.read"):
                index = await importer.take_in(stores.content, chunks, begin, compress=compress)
            with span("import.label"):
                await graph.label_tree(stores.content, index, wanted)
            data = await graph.read_document(stores.content, index.digest)
            found = graph.children(index.media_type, data, wanted)
            for unpack in unpacks:
                manifests = await _manifests(stores.content, found, _platforms_of(unpack))
                if early is not None:
                    await early.drop(but=await _children(stores.content, manifests))
                for manifest in manifests:
                    await self._unpacker.unpack(stores, manifest, unpack.snapshotter, tell, early)
                early = None
        images = [await _put(stores, image) for image in _named(index, found, destination)]
        for image in images:
            tell(Progress("saved", image.name, descriptor=image.target))
        tell(Progress("Completed import"))
        return images

    async def export_archive(
        self, stores: Stores, names: Sequence[str], options: ExportOptions, tell: Tell
    ) -> AsyncIterator[bytes]:
        """An archive of stored images, in pieces. Raises NotFound."""
        tell(Progress("Exporting"))
        images = [await stores.images.get(name) for name in names]
        async for piece in exporter.export_archive(stores.content, images, options):
            yield piece
        tell(Progress("Completed export"))

    async def tag(self, stores: Stores, source: str, destination: ImageDestination) -> list[Image]:
        """Give a stored image other names. Raises NotFound."""
        image = await stores.images.get(source)
        named = naming.named_by_destination(image.target, destination)
        return [await _put(stores, made) for made in named]


def _platforms_of(unpack: Unpack) -> list[platforms.Platform]:
    return _preferred((unpack.platform,)) if unpack.platform else _host()


def _runs_here(unpack: Unpack) -> bool:
    if any(platforms.rank(_host(), one) is not None for one in _platforms_of(unpack)):
        return True
    _log.warning("images for %s are not unpacked on this host", unpack.platform)
    return False


def _host() -> list[platforms.Platform]:
    return platforms.preference(platforms.default())


def _preferred(wanted: Sequence[str]) -> list[platforms.Platform]:
    return [one for text in wanted for one in platforms.preference(platforms.parse(text))]


async def _manifests(
    content: ContentStore, found: Sequence[Descriptor], wanted: Sequence[platforms.Platform]
) -> list[Descriptor]:
    """What is to be unpacked of all that an archive holds."""
    chosen = [await _for_platform(content, described, wanted) for described in found]
    return [manifest for manifest in chosen if manifest is not None]


async def _children(content: ContentStore, manifests: Sequence[Descriptor]) -> set[str]:
    """Digests of all that the manifests are made of."""
    digests = set()
    for manifest in manifests:
        data = await graph.read_document(content, manifest.digest)
        digests |= {child.digest for child in graph.children(manifest.media_type, data, ())}
    return digests


async def _for_platform(
    content: ContentStore, described: Descriptor, wanted: Sequence[platforms.Platform]
) -> Descriptor | None:
    """The manifest to unpack of what an archive holds; None for what is not for the platform."""
    try:
        if described.media_type in oci.INDEXES:
            view = oci.index(await graph.read_document(content, described.digest))
            return oci.choose(view, wanted)
        if described.media_type not in oci.MANIFESTS:
            return None
        manifest = oci.manifest(await graph.read_document(content, described.digest))
        if manifest.config.media_type not in (oci.CONFIG, oci.DOCKER_CONFIG):
            return None
        config = oci.config(await graph.read_document(content, manifest.config.digest))
    except NotFound:
        return None
    fits = not config.os or platforms.rank(wanted, config.platform) is not None
    return described if fits else None


def _named(
    index: Descriptor, found: Sequence[Descriptor], destination: ImageDestination
) -> list[Image]:
    images: dict[str, Image] = {}
    error: NotFound | None = None
    plans = [(naming.named_by_destination, index)]
    plans += [(naming.named_by_archive, described) for described in found]
    for name, described in plans:
        try:
            images |= {image.name: image for image in name(described, destination)}
        except NotFound as unnamed:
            error = unnamed
    if not images:
        raise error or InvalidArgument("the archive holds no images")
    return list(images.values())


async def _put(stores: Stores, image: Image) -> Image:
    try:
        return await stores.images.create(image)
    except AlreadyExists:
        return await stores.images.update(image)
