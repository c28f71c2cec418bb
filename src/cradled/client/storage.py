"""Async. What a namespace takes on disk, and getting rid of what is not needed.

Blobs count once, however many images have them, snapshots by what each adds. What is
*reclaimable* would go if the unused images were removed, the exited containers, or the uploads that
were broken off. A blob that several namespaces have is in the figures of each.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from cradled.client.containers import Container
from cradled.client.session import Session
from cradled.core.images import Image
from cradled.core.snapshots import SnapshotInfo
from cradled.core.tasks import Status
from cradled.core.values import Labels
from cradled.errors import Error, NotFound

RECOVERED = "recovered-"
"""How the names of leases begin that keep what was found after damage."""

_CONTENT = "containerd.io/gc.ref.content"
_SNAPSHOT = "containerd.io/gc.ref.snapshot."
_ROOT = "containerd.io/gc.root"
_PINNED = "io.cri-containerd.pinned"
_SUPERVISED = "containerd.io/restart.status"
_ALIVE = (Status.RUNNING, Status.PAUSED, Status.PAUSING)


@dataclass(frozen=True)
class Item:
    """One thing: its ``kind``, name, bytes, and whether something needs it."""

    kind: str
    name: str
    size: int
    used: bool


@dataclass(frozen=True)
class DiskUsage:
    """Of one namespace; ``items`` are images, containers, content, snapshots and ingests."""

    namespace: str
    items: Sequence[Item] = ()

    def totals(self) -> dict[str, tuple[int, int, int]]:
        """(count, bytes, reclaimable bytes) by kind."""
        found = {}
        for kind in ("image", "container", "content", "snapshot", "ingest"):
            these = [item for item in self.items if item.kind == kind]
            reclaimable = sum(item.size for item in these if not item.used)
            found[kind] = (len(these), sum(item.size for item in these), reclaimable)
        return found


@dataclass(frozen=True)
class Unneeded:
    """What ``prune`` takes away."""

    images: Sequence[Image] = ()
    containers: Sequence[Container] = ()
    ingests: Sequence[str] = ()
    leases: Sequence[str] = ()

    def __bool__(self) -> bool:
        return bool(self.images or self.containers or self.ingests or self.leases)


@dataclass
class _Inventory:
    """Everything a namespace has."""

    images: Sequence[Image] = ()
    containers: Sequence[Container] = ()
    alive: set[str] = field(default_factory=set)
    content: dict[str, tuple[int, Labels]] = field(default_factory=dict)
    snapshots: dict[tuple[str, str], SnapshotInfo] = field(default_factory=dict)
    sizes: dict[tuple[str, str], int] = field(default_factory=dict)
    ingests: dict[str, int] = field(default_factory=dict)

    def reach(self, digests: Iterable[str], keys: Iterable[tuple[str, str]]) -> set[object]:
        """Blobs (by digest) and snapshots (by snapshotter and key) that these lead to."""
        found: set[object] = set()
        left: list[str | tuple[str, str]] = [*digests, *keys]
        while left:
            node = left.pop()
            if node in found:
                continue
            if isinstance(node, str) and node in self.content:
                found.add(node)
                left += _links(self.content[node][1])
            elif isinstance(node, tuple) and node in self.snapshots:
                found.add(node)
                info = self.snapshots[node]
                left += [(node[0], info.parent)] if info.parent else []
                left += _links(info.labels)
        return found

    def of_images(self, images: Iterable[Image]) -> set[object]:
        keys = [link for image in images for link in _links(image.labels)]
        digests = [image.target.digest for image in images]
        return self.reach(
            [*digests, *(key for key in keys if isinstance(key, str))],
            [key for key in keys if isinstance(key, tuple)],
        )

    def size(self, nodes: Iterable[object]) -> int:
        return sum(
            self.sizes.get(node, 0) if isinstance(node, tuple) else self.content[str(node)][0]
            for node in nodes
        )

    def used_images(self, containers: Iterable[Container]) -> set[str]:
        """Names of images that containers were made of, or that must stay; and their equals."""
        names = {container.record.image for container in containers}
        digests = {image.target.digest for image in self.images if image.name in names}
        return {
            image.name
            for image in self.images
            if image.target.digest in digests or _PINNED in image.labels
        }

    def exited(self) -> list[Container]:
        """Containers without a live process that nobody will start again by itself."""
        return [
            one
            for one in self.containers
            if one.id not in self.alive and one.record.labels.get(_SUPERVISED) != "running"
        ]


async def usage(session: Session, snapshotters: Sequence[str]) -> DiskUsage:
    """Measure everything; ``snapshotters`` are those to be asked."""
    all = await _inventory(session, snapshotters, measured=True)
    exited = {container.id for container in all.exited()}
    used = all.used_images(all.containers)
    roots = [(c.record.snapshotter, c.record.snapshot_key) for c in all.containers]
    kept = all.reach((), roots)
    kept |= all.of_images([image for image in all.images if image.name in used])
    kept |= all.reach(
        [digest for digest, (_, labels) in all.content.items() if _ROOT in labels],
        [key for key, info in all.snapshots.items() if _ROOT in info.labels],
    )
    items = [_image_item(all, image, kept, image.name in used) for image in all.images]
    for one in all.containers:
        key = (one.record.snapshotter, one.record.snapshot_key)
        items.append(Item("container", one.id, all.sizes.get(key, 0), one.id not in exited))
    items += [Item("content", d, size, d in kept) for d, (size, _) in all.content.items()]
    items += [Item("snapshot", "/".join(k), all.sizes.get(k, 0), k in kept) for k in all.snapshots]
    items += [Item("ingest", ref, size, used=False) for ref, size in all.ingests.items()]
    return DiskUsage(session.scope.namespace, items)


async def unneeded(
    session: Session, *, containers: bool = False, recovered: bool = False
) -> Unneeded:
    """What ``prune`` would take away: images that no container was made of, and uploads.

    ``containers``: those that have exited as well, and their images; ``recovered``: the leases that
    keep what was found after damage.
    """
    all = await _inventory(session, ())
    gone = all.exited() if containers else []
    ids = {container.id for container in gone}
    used = all.used_images([one for one in all.containers if one.id not in ids])
    leases = [lease.id for lease in await session.leases.list()] if recovered else []
    return Unneeded(
        [image for image in all.images if image.name not in used],
        gone,
        list(all.ingests),
        [id for id in leases if id.startswith(RECOVERED)],
    )


async def prune(session: Session, what: Unneeded) -> list[str]:
    """Take it away, and collect; returns what could not be removed, and why.

    What came into use meanwhile stays.
    """
    failures = []
    for container in what.containers:
        try:
            await container.remove()
        except NotFound:
            continue
        except Error as error:
            failures.append(f"container {container.id}: {error.what or error}")
    made_of = {one.image for one in await session.containers.list()}
    for image in what.images:
        if image.name not in made_of:
            await _gone(session.images.delete(image.name))
    for ref in what.ingests:
        await _gone(session.content.abort(ref))
    for lease in what.leases:
        await _gone(session.leases.delete(lease))
    lease = (await session.leases.create("", {})).id
    await session.leases.delete(lease, sync=True)  # which is how one asks for a collection
    return failures


async def _gone(removal: Awaitable[object]) -> None:
    with suppress(NotFound):
        await removal


async def _inventory(
    session: Session, snapshotters: Sequence[str], *, measured: bool = False
) -> _Inventory:
    found = _Inventory()
    found.images = await session.images.list()
    found.containers = [Container(session, one) for one in await session.containers.list()]
    found.alive = {task.id for task in await session.tasks.list() if task.status in _ALIVE}
    found.ingests = {one.ref: one.offset for one in await session.content.list_statuses()}
    if not measured:
        return found
    async for blob in session.content.walk():
        found.content[blob.digest] = blob.size, blob.labels
    for name in snapshotters:
        snapshots = session.snapshots(name)
        async for info in snapshots.walk():
            found.snapshots[name, info.name] = info
            with suppress(NotFound):
                found.sizes[name, info.name] = (await snapshots.usage(info.name)).size
    return found


def _image_item(all: _Inventory, image: Image, kept: set[object], used: bool) -> Item:
    """An image's own bytes; of one that is not used those that nothing else needs."""
    nodes = all.of_images([image])
    return Item("image", image.name, all.size(nodes if used else nodes - kept), used)


def _links(labels: Labels) -> list[str | tuple[str, str]]:
    """What labels refer to: digests, and (snapshotter, key)."""
    found: list[str | tuple[str, str]] = []
    for key, value in labels.items():
        if key.startswith(_CONTENT):
            found.append(value)
        elif key.startswith(_SNAPSHOT):
            found.append((key[len(_SNAPSHOT) :].partition("/")[0], value))
    return found
