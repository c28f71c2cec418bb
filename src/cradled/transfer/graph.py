"""Async. The documents of an image in the content store, and the labels that hold it together."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Protocol

from cradled import digest as digests
from cradled.core.content import ContentInfo, ContentStore, Writer
from cradled.core.images import ImageStore
from cradled.core.scope import Scope
from cradled.core.snapshots import Snapshotter
from cradled.core.values import Descriptor, Labels
from cradled.errors import AlreadyExists, InvalidArgument, NotFound, Unavailable
from cradled.oci import image as oci
from cradled.oci import platforms

DOCUMENT_LIMIT = 8 << 20
"""Bytes of the biggest manifest, index or config that is read."""

UNCOMPRESSED = "containerd.io/uncompressed"
"""Label of a compressed layer: the digest of what is in it."""

_GC_REF = "containerd.io/gc.ref.content"
_LAYERS = (
    "application/vnd.oci.image.layer.",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
)
_CONFIGS = frozenset(
    {
        oci.CONFIG,
        oci.DOCKER_CONFIG,
        "application/vnd.containerd.container.checkpoint.config.v1+proto",
        "application/vnd.containerd.container.criu.checkpoint.criu.tar",
    }
)
_BUSY_TRIES = 12
_LONGEST_WAIT = 2.0


class Stores(Protocol):
    """What a namespace has, bound to the lease that keeps what is made."""

    @property
    def scope(self) -> Scope: ...

    @property
    def content(self) -> ContentStore: ...

    @property
    def images(self) -> ImageStore: ...

    def snapshots(self, name: str, /) -> Snapshotter:
        """Raises InvalidArgument for a name that is none."""
        ...


async def read_document(content: ContentStore, digest: str) -> bytes:
    """A blob that is small. Raises NotFound, InvalidArgument."""
    reader = await content.open(digest)
    try:
        if reader.size > DOCUMENT_LIMIT:
            raise InvalidArgument(f"content {digest}: {reader.size} bytes are no document")
        data = b""
        while len(data) < reader.size and (more := await reader.read(len(data), reader.size)):
            data += more
    finally:
        reader.close()
    return data


async def open_writer(
    content: ContentStore, ref: str, *, total: int = 0, expected: str = ""
) -> Writer:
    """A writer at offset 0, waited for while somebody else writes the ref.

    Raises AlreadyExists once the other has finished what is expected.
    """
    wait = 0.01
    for tries_left in reversed(range(_BUSY_TRIES)):
        try:
            writer = await content.writer(ref, total=total, expected=expected)
            break
        except Unavailable:
            if not tries_left:
                raise
        await asyncio.sleep(wait)
        wait = min(wait * 2, _LONGEST_WAIT)
    if writer.status().offset:
        await writer.truncate()
    return writer


async def store_bytes(
    content: ContentStore, ref: str, data: bytes, media_type: str, labels: Labels | None = None
) -> Descriptor:
    """Make data that is at hand a blob; one that exists gets the labels."""
    made = Descriptor(media_type, digests.of(data), len(data))
    try:
        writer = await open_writer(content, ref, total=made.size, expected=made.digest)
        await writer.write(data)
        await writer.commit(made.size, made.digest, labels or {})
    except AlreadyExists:
        await add_labels(content, made.digest, labels or {})
    return made


async def copy_pieces(pieces: AsyncIterator[bytes], writer: Writer) -> None:
    """Write all pieces, each while the next one is received."""
    writing: asyncio.Future[None] | None = None
    try:
        async for piece in pieces:
            if writing is not None:
                await writing
            writing = asyncio.ensure_future(writer.write(piece))
        if writing is not None:
            await writing
    finally:
        if writing is not None:
            await asyncio.gather(writing, return_exceptions=True)


async def add_labels(content: ContentStore, digest: str, labels: Labels) -> None:
    """Add labels to a blob."""
    if labels:
        paths = [f"labels.{key}" for key in labels]
        await content.update(ContentInfo(digest, 0, labels=labels), paths)


def dump(document: object) -> bytes:
    """A document of ours, the same for the same contents."""
    return json.dumps(document, separators=(",", ":")).encode()


def is_layer(media_type: str) -> bool:
    return media_type.startswith(_LAYERS)


def children(
    media_type: str, data: bytes, wanted: Sequence[platforms.Platform]
) -> list[Descriptor]:
    """What a document refers to; of an index only what is ``wanted``, all when that is empty."""
    if media_type in oci.MANIFESTS:
        manifest = oci.manifest(data)
        return [view.descriptor() for view in (manifest.config, *manifest.layers)]
    if media_type in oci.INDEXES:
        views = oci.index(data).manifests
        if wanted:
            views = [v for v in views if v.platform is None or _fits(wanted, v.platform)]
        return [view.descriptor() for view in views]
    return []


def gc_labels(descriptors: Iterable[Descriptor]) -> dict[str, str]:
    """The labels by which a blob keeps its children from being collected."""
    counts: Counter[str] = Counter()
    labels = {}
    for child in descriptors:
        if child.media_type in _CONFIGS:
            labels[f"{_GC_REF}.config"] = child.digest
            continue
        kind = ""
        if child.media_type in oci.MANIFESTS:
            kind = "m."
        elif is_layer(child.media_type):
            kind = "l."
        labels[f"{_GC_REF}.{kind}{counts[kind]}"] = child.digest
        counts[kind] += 1
    return labels


async def label_tree(
    content: ContentStore, top: Descriptor, wanted: Sequence[platforms.Platform] = ()
) -> None:
    """Have every document below ``top`` keep its children. Images in it may be missing."""
    if top.media_type not in oci.MANIFESTS | oci.INDEXES:
        return
    data = await read_document(content, top.digest)
    below = children(top.media_type, data, wanted)
    await add_labels(content, top.digest, gc_labels(below))
    for child in below:
        with contextlib.suppress(NotFound):
            await label_tree(content, child, wanted)


def _fits(wanted: Sequence[platforms.Platform], view: oci.PlatformView) -> bool:
    return platforms.rank(wanted, view.platform()) is not None
