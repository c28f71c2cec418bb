"""Async. Unpacking an image: a committed snapshot for every layer (reference, storage.md 3).

Where the snapshotter can rebase, layers are applied at the same time, each knowing nothing of the
others, and committed bottom up; else one after the other. Snapshots are named by chain ID, so what
is there already is used, whoever made it.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass

from cradled import digest as digests
from cradled.core.content import ContentStore
from cradled.core.diff import ApartApplier, Applier
from cradled.core.mount import Mount
from cradled.core.scope import bound
from cradled.core.snapshots import Snapshotter
from cradled.core.transfer import Progress, Tell
from cradled.core.values import Descriptor
from cradled.errors import AlreadyExists, Error, Internal, InvalidArgument, NotFound
from cradled.linux.mount import split_layers
from cradled.oci import image as oci
from cradled.spans import span, traced
from cradled.transfer.early import EarlyLayers, Unpacked, directory
from cradled.transfer.graph import UNCOMPRESSED, Stores, add_labels, is_layer, read_document

_SNAPSHOT_REF = "containerd.io/snapshot.ref"
_INHERITED = "containerd.io/snapshot/"
_GC_SNAPSHOT = "containerd.io/gc.ref.snapshot"
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of an image; ``parent`` is the chain ID of what lies below it."""

    blob: Descriptor
    diff_id: str
    chain_id: str
    parent: str

    def labels(self) -> dict[str, str]:
        """Labels of its snapshot, active and committed."""
        annotations = self.blob.annotations
        labels = {k: v for k, v in annotations.items() if k.startswith(_INHERITED)}
        return labels | {_SNAPSHOT_REF: self.chain_id}

    def check(self, applied: Descriptor) -> None:
        if applied.digest != self.diff_id:
            wrong = f"wrong diff id {self.diff_id} calculated on extraction {applied.digest}"
            raise Error(f"{wrong}, desc {self.blob.digest}")


class Unpacker:
    """``apart`` can apply layers in any order, for the snapshotters ``rebasing``, ``width`` at
    once; ``applier`` can where there is none, or where that is not enough."""

    def __init__(
        self,
        applier: Applier,
        *,
        apart: ApartApplier | None = None,
        rebasing: Collection[str] = (),
        width: int = 2,
    ) -> None:
        self._applier = applier
        self._apart = apart
        self._rebasing = rebasing
        self._width = width

    def early(self, stores: Stores, snapshotter: str) -> EarlyLayers | None:
        """What can unpack layers before their image is known; None where the snapshotter can't."""
        if self._apart is None or snapshotter not in self._rebasing:
            return None
        snapshots = stores.snapshots(snapshotter)
        return EarlyLayers(self._apart, stores.content, snapshots, self._width)

    @traced("unpack")
    async def unpack(
        self,
        stores: Stores,
        manifest: Descriptor,
        snapshotter: str,
        tell: Tell,
        early: EarlyLayers | None = None,
    ) -> str:
        """Unpack an image of one platform; returns the chain ID of its top, empty without layers.

        Raises NotFound for what is not in the content store, InvalidArgument for a bad image.
        """
        config, layers = await _plan(stores.content, manifest)
        snapshots = stores.snapshots(snapshotter)
        job = _Job(bound(self._applier, stores.scope), stores.content, snapshots, tell)
        missing = await job.missing(layers)
        if early is not None:
            await job.apply_together(missing, early)
        elif len(missing) > 1 and (early := self.early(stores, snapshotter)):
            async with early:
                await job.apply_together(missing, early)
        else:
            for layer in missing:
                job.say("extracting", layer)
                await job.apply_on_parent(layer)
        for layer in layers:
            if layer.diff_id != layer.blob.digest:
                label = {UNCOMPRESSED: layer.diff_id}
                await add_labels(stores.content, layer.blob.digest, label)
        top = layers[-1].chain_id if layers else ""
        if top:
            label = {f"{_GC_SNAPSHOT}.{snapshotter}": top}
            await add_labels(stores.content, config.digest, label)
        return top


async def _plan(content: ContentStore, described: Descriptor) -> tuple[Descriptor, list[Layer]]:
    manifest = oci.manifest(await read_document(content, described.digest))
    config = manifest.config.descriptor()
    diff_ids = oci.config(await read_document(content, config.digest)).rootfs.diff_ids
    blobs = [view.descriptor() for view in manifest.layers if is_layer(view.media_type)]
    if len(blobs) != len(diff_ids):
        raise InvalidArgument(f"{len(blobs)} layers for {len(diff_ids)} diff ids")
    chain = digests.chain_ids(diff_ids)
    plan = zip(blobs, diff_ids, chain, ["", *chain], strict=False)
    return config, [Layer(*parts) for parts in plan]


class _Job:
    def __init__(
        self,
        applier: Applier,
        content: ContentStore,
        snapshots: Snapshotter,
        tell: Tell,
    ) -> None:
        self._applier = applier
        self._content = content
        self._snapshots = snapshots
        self._tell = tell

    async def missing(self, layers: Sequence[Layer]) -> Sequence[Layer]:
        """The layers above the highest that has its snapshot."""
        for position in range(len(layers), 0, -1):
            if await self._exists(layers[position - 1].chain_id):
                return layers[position:]
        return layers

    async def apply_on_parent(self, layer: Layer) -> None:
        """Make one snapshot on top of its parent's."""
        async with self._active(layer, layer.parent) as active:
            if active is None:
                return
            key, mounts = active
            reader = await self._content.open(layer.blob.digest)
            try:
                with span("unpack.apply", layer=layer.blob.digest, size=layer.blob.size):
                    layer.check(await self._applier.apply(layer.blob, reader, mounts))
            finally:
                reader.close()
            await self._commit(layer, key, layer.parent)

    async def apply_together(self, layers: Sequence[Layer], early: EarlyLayers) -> None:
        """Make the snapshots of layers, the lowest first, while those above are applied."""
        for layer in layers:
            self.say("extracting", layer)
            early.begin(layer.blob)
        for layer in layers:
            unpacked = await early.take(layer.blob.digest)
            if unpacked is None or not await self._settle(layer, unpacked, early):
                await self.apply_on_parent(layer)

    async def _settle(self, layer: Layer, unpacked: Unpacked, early: EarlyLayers) -> bool:
        """Commit a layer that was applied apart; false when it has to be applied again."""
        layer.check(unpacked.apart.applied)
        if layer.parent:
            lowers = await self._lowers(layer.parent) if unpacked.apart.implied else []
            upper = directory(unpacked.mounts)
            with span("unpack.settle", layer=layer.blob.digest):
                if not await early.applier.settle(unpacked.apart, upper, lowers):
                    return False
        elif unpacked.apart.needs_lowers:
            return False
        await self._commit(layer, unpacked.key, layer.parent)
        return True

    async def _lowers(self, chain_id: str) -> list[str]:
        """The directories of a committed snapshot and those below it, nearest first."""
        key = _key(chain_id)
        mounts = await self._snapshots.view(key, chain_id, {})
        try:
            if mounts[-1].type == "bind":
                return [mounts[-1].source]
            for option in mounts[-1].options:
                if option.startswith("lowerdir="):
                    return split_layers(option.removeprefix("lowerdir="))
        finally:
            await self._snapshots.remove(key)
        raise Internal(f"snapshot {chain_id} is not made of directories")

    @contextlib.asynccontextmanager
    async def _active(
        self, layer: Layer, parent: str
    ) -> AsyncIterator[tuple[str, list[Mount]] | None]:
        """An active snapshot's key and mounts, None when the layer has its snapshot already.

        It is removed in the end unless it was committed.
        """
        active = await self._prepare(layer, parent)
        try:
            yield active
        finally:
            if active is not None:
                with contextlib.suppress(NotFound):
                    await self._snapshots.remove(active[0])

    async def _prepare(self, layer: Layer, parent: str) -> tuple[str, list[Mount]] | None:
        for _ in range(_TRIES):
            key = _key(layer.chain_id)
            try:
                return key, await self._snapshots.prepare(key, parent, layer.labels())
            except AlreadyExists:
                if await self._exists(layer.chain_id):
                    return None
        raise AlreadyExists(f'snapshot "{key}"')

    async def _commit(self, layer: Layer, key: str, parent: str) -> None:
        # AlreadyExists: somebody else unpacked the same layer meanwhile.
        with contextlib.suppress(AlreadyExists):
            await self._snapshots.commit(layer.chain_id, key, layer.labels(), parent=parent)
        self.say("extracted", layer)

    async def _exists(self, name: str) -> bool:
        try:
            await self._snapshots.stat(name)
        except NotFound:
            return False
        return True

    def say(self, event: str, layer: Layer) -> None:
        blob = layer.blob
        self._tell(Progress(event, f"layer-{blob.digest}", total=blob.size, descriptor=blob))


def _key(chain_id: str) -> str:
    return f"extract-{time.time_ns()}-{secrets.token_urlsafe(3)} {chain_id}"
