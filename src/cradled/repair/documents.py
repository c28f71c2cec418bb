"""Pure. What image documents among blobs tell of each other, when no record does any more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from cradled import digest as digests
from cradled.core.values import Descriptor
from cradled.errors import InvalidArgument
from cradled.oci import image as oci
from cradled.transfer.graph import UNCOMPRESSED, gc_labels, is_layer

LIMIT = 4 << 20
"""Bytes of the largest blob that is looked into."""


class Document(NamedTuple):
    """An index, a manifest or a config; ``names`` are of children, ``diff_ids`` of a config."""

    digest: str
    size: int
    media_type: str
    children: list[Descriptor]
    names: dict[str, str]
    diff_ids: list[str]

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(self.media_type, self.digest, self.size)


def parse(digest: str, data: bytes) -> Document | None:
    """What a blob is; None if it is no such document, or not what its digest says."""
    if not data.startswith(b"{"):
        return None
    for read in (_index, _manifest, _config):
        try:
            found = read(digest, data)
        except InvalidArgument:
            continue
        return found if digests.of(data, digest.partition(":")[0]) == digest else None
    return None


def _index(digest: str, data: bytes) -> Document:
    view = oci.index(data)
    names = {}
    for entry in view.manifests:
        annotations = entry.annotations or {}
        reference = annotations.get(oci.REF_NAME, "")
        name = annotations.get(oci.IMAGE_NAME) or (reference if "/" in reference else "")
        if name:
            names[entry.digest] = name
    children = [entry.descriptor() for entry in view.manifests]
    return Document(digest, len(data), view.media_type, children, names, [])


def _manifest(digest: str, data: bytes) -> Document:
    view = oci.manifest(data)
    children = [entry.descriptor() for entry in (view.config, *view.layers)]
    return Document(digest, len(data), view.media_type, children, {}, [])


def _config(digest: str, data: bytes) -> Document:
    return Document(digest, len(data), oci.CONFIG, [], {}, oci.config(data).rootfs.diff_ids)


class Documents:
    """All that were found, by digest."""

    def __init__(self, found: Iterable[Document]) -> None:
        self.all = {one.digest: one for one in found}
        self._parents: dict[str, list[str]] = {}
        for one in self.all.values():
            for child in one.children:
                self._parents.setdefault(child.digest, []).append(one.digest)

    def tops(self) -> Iterator[Document]:
        """Indexes and manifests that no other document leads to."""
        for one in self.all.values():
            if one.children and one.digest not in self._parents:
                yield one

    def below(self, digest: str) -> set[str]:
        """The digests that a document leads to, its own included."""
        found, left = set(), [digest]
        while left:
            one = left.pop()
            if one not in found:
                found.add(one)
                left += [child.digest for child in self._children(one)]
        return found

    def chains(self, digest: str) -> list[str]:
        """The chain IDs of the layers of an image, the lowest first; of all images of an index."""
        return [
            chain
            for one in sorted(self.below(digest))
            if one in self.all
            for chain in digests.chain_ids(self.all[one].diff_ids)
        ]

    def top_chain(self, digest: str) -> str:
        """The chain ID of what a manifest's image is unpacked to; empty for none."""
        chains = self.chains(digest)
        return chains[-1] if chains else ""

    def named(self) -> dict[str, tuple[str, Descriptor]]:
        """Names that indexes give: by name the digest of the index, and what is named."""
        return {
            one.names[child.digest]: (one.digest, child)
            for one in self.all.values()
            for child in one.children
            if child.digest in one.names
        }

    def labels(self, snapshots: Mapping[str, str]) -> dict[str, dict[str, str]]:
        """The labels of blobs as clients set them. ``snapshots``: snapshotter by chain ID."""
        found: dict[str, dict[str, str]] = {}
        for one in self.all.values():
            found.setdefault(one.digest, {}).update(gc_labels(one.children))
            chains = digests.chain_ids(one.diff_ids)
            if chains and chains[-1] in snapshots:
                key = f"containerd.io/gc.ref.snapshot.{snapshots[chains[-1]]}"
                found[one.digest][key] = chains[-1]
            for layer, diff_id in self._layers(one):
                if layer != diff_id:
                    found.setdefault(layer, {})[UNCOMPRESSED] = diff_id
        return found

    def _layers(self, one: Document) -> Iterator[tuple[str, str]]:
        """(digest, diff ID) of a manifest's layers, where its config is there."""
        config = next((self.all[c.digest] for c in one.children if c.digest in self.all), None)
        layers = [child.digest for child in one.children if is_layer(child.media_type)]
        if config is not None and len(config.diff_ids) == len(layers):
            yield from zip(layers, config.diff_ids, strict=True)

    def _children(self, digest: str) -> list[Descriptor]:
        one = self.all.get(digest)
        return [] if one is None else one.children
