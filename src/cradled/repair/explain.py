"""Blocking. What every file under root and state is, how many bytes it has, and who holds it.

A holder is told as the way from what keeps itself (an image, a container, a lease, a running task,
a label that makes something a root) to the thing, like ``image docker.io/library/x:1 > content
sha256:...``. What nobody holds goes with the next collection, unless it is no object at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from cradled.core.values import Labels
from cradled.damage import Damaged
from cradled.linux import tree
from cradled.metadata import graph
from cradled.repair import ground as grounds
from cradled.repair.check import blob_path, bundles
from cradled.repair.ground import Ground, Known

UNKNOWN = "not one of ours"

_WAYS = 8  # to one thing that are told
_SELF_KEPT = (graph.IMAGE, graph.CONTAINER, graph.LEASE, "task")
_PLUGINS = {
    "io.containerd.metadata.v1.bolt": "metadata",
    "io.containerd.content.v1.content": "content store",
    "io.containerd.runtime.v2.task": "tasks",
    "io.containerd.sandbox.controller.v1.shim": "sandboxes",
    "io.containerd.grpc.v1.introspection": "the server's identity",
    "io.cradled.journal.v1.events": "journal of events",
}
_ENDINGS = (
    (".copy", "a copy, as it was when it was last closed"),
    (".rebuild", "notes of a rebuilding"),
    (".suspect", "a mark that damage was met"),
    ("-wal", "its log"),
    ("-shm", "its shared memory"),
    ("", "database"),
)
_FILES = {
    "lock": "the lock of the owner",
    "workers.lock": "the lock of unpack workers",
    "quarantine": "what repairs moved away",
    "tmpmounts": "temporary mounts",
    "runc": "the runtime's own state",
    "fifo": "streams of processes",
    "events.sock": "where shims tell events",
}


class Entry(NamedTuple):
    """``size`` are allocated bytes, ``held`` the ways by which it is kept."""

    path: str
    what: str
    size: int
    held: list[str]
    ids: tuple[str, ...] = ()

    def answers(self, wanted: str) -> bool:
        """Whether it is what somebody asks about: by path, digest, key, name or id."""
        path = wanted.rstrip("/")
        below = self.path == path or self.path.startswith(f"{path}/")
        return below or path.startswith(f"{self.path}/") or wanted in self.ids

    def told(self) -> dict[str, object]:
        return {"path": self.path, "what": self.what, "size": self.size, "held_by": self.held}


def explain(ground: Ground) -> Iterator[Entry]:
    """Everything there is, each byte once."""
    try:
        known = grounds.known(ground)
    except Damaged:
        known = grounds.known(ground._replace(metadata="/nonexistent"))
    holders = Holders(ground, known)
    done: set[str] = set()
    for entry in (
        *_blobs(ground, known, holders),
        *_ingests(ground, known),
        *_snapshots(ground, known, holders),
        *_tasks(ground),
        *_databases(ground),
    ):
        done.add(entry.path)
        yield entry
    yield from _rest(ground, done)


class Holders:
    """Who keeps what: the edges that collections follow, backwards."""

    def __init__(self, ground: Ground, known: Known) -> None:
        self._edges: dict[str, list[str]] = {}
        self._roots: set[str] = set()
        for (namespace, id), container in known.containers.items():
            node = f"{namespace}/{graph.CONTAINER}/{id}"
            if container.snapshot_key:
                key = f"{container.snapshotter}/{container.snapshot_key}"
                self._add(node, f"{namespace}/{graph.SNAPSHOT}/{key}")
            self._labels(namespace, node, container.labels)
        for (namespace, name), image in known.images.items():
            node = f"{namespace}/{graph.IMAGE}/{name}"
            self._add(node, f"{namespace}/{graph.CONTENT}/{image.digest}")
            self._labels(namespace, node, image.labels)
        for (namespace, digest), blob in known.content.items():
            self._labels(namespace, f"{namespace}/{graph.CONTENT}/{digest}", blob.labels)
        for (namespace, name, key), snapshot in known.snapshots.items():
            node = f"{namespace}/{graph.SNAPSHOT}/{name}/{key}"
            if snapshot.parent:
                self._add(node, f"{namespace}/{graph.SNAPSHOT}/{name}/{snapshot.parent}")
            self._labels(namespace, node, snapshot.labels)
        for namespace, lease, kind, id in known.resources:
            resource = graph.resource_node(kind, id)
            self._add(f"{namespace}/{graph.LEASE}/{lease}", f"{namespace}/{resource}")
        for namespace, id, _ in bundles(ground):
            self._add(f"{namespace}/task/{id}", f"{namespace}/{graph.CONTAINER}/{id}")

    def of(self, node: str) -> list[str]:
        """The ways to a node, the shortest first; a few if there are many."""
        found: list[str] = []
        ways: list[tuple[str, ...]] = [(node,)]
        seen = {node}
        while ways and len(found) < _WAYS:
            way = ways.pop(0)
            first = way[0]
            if first in self._roots or (first != node and first.split("/", 2)[1] in _SELF_KEPT):
                found.append(_told(way))
                continue
            for holder in self._edges.get(first, ()):
                if holder not in seen:
                    seen.add(holder)
                    ways.append((holder, *way))
        return found

    def _labels(self, namespace: str, node: str, labels: Labels) -> None:
        found = graph.links(namespace, labels)
        for target in (*found.references, *(target for target, _ in found.conditions)):
            self._add(node, target)
        for holder in found.back_references:
            self._add(holder, node)
        if graph.ROOT in labels:
            self._roots.add(node)

    def _add(self, holder: str, node: str) -> None:
        self._edges.setdefault(node, []).append(holder)


def _told(way: tuple[str, ...]) -> str:
    """Like ``ns: image x > content sha256:...``; the thing itself is left out where it is clear."""
    namespace = way[0].split("/", 1)[0]
    steps = [" ".join(node.split("/", 2)[1:]) for node in way]
    return f"{namespace}: {' > '.join(steps[:-1] or [f'{steps[0]} is a root'])}"


def _blobs(ground: Ground, known: Known, holders: Holders) -> Iterator[Entry]:
    owners: dict[str, list[str]] = {}
    for namespace, digest in known.content:
        owners.setdefault(digest, []).append(namespace)
    for algorithm in _names(f"{ground.content}/blobs"):
        for name in _names(f"{ground.content}/blobs/{algorithm}"):
            digest = f"{algorithm}:{name}"
            path = blob_path(ground, digest)
            spaces = owners.get(digest, [])
            held = [way for ns in spaces for way in holders.of(f"{ns}/{graph.CONTENT}/{digest}")]
            what = f"blob of {', '.join(sorted(spaces))}" if spaces else "blob of no namespace"
            yield Entry(path, what, _size(path), held, (digest, name))


def _ingests(ground: Ground, known: Known) -> Iterator[Entry]:
    refs = {ref: key for key, (ref, _) in known.ingests.items()}
    for name in _names(f"{ground.content}/ingest"):
        path = f"{ground.content}/ingest/{name}"
        ref = ""
        with suppress(OSError), open(f"{path}/ref", encoding="utf-8", errors="replace") as file:
            ref = file.read()
        namespace, key = refs.get(ref, ("", ""))
        held = [f"{namespace}: upload {key}"] if namespace else []
        yield Entry(path, f"upload {ref or 'without a name'}", _size(path), held, (ref, key))


def _snapshots(ground: Ground, known: Known, holders: Holders) -> Iterator[Entry]:
    for name, root in ground.snapshotters.items():
        rows = {row.backend_key: key for key, row in known.snapshots.items() if key[1] == name}
        try:
            records = {str(record.id): record for record in grounds.of_snapshotter(root)}
        except Damaged:
            records = {}
        for entry in _names(f"{root}/snapshots"):
            path = f"{root}/snapshots/{entry}"
            record = records.get(entry)
            if record is None:
                yield Entry(path, f"a directory that {name} does not know", _size(path), [])
                continue
            namespace, _, key = rows.get(record.key, ("", name, record.key))
            held = holders.of(f"{namespace}/{graph.SNAPSHOT}/{name}/{key}") if namespace else []
            what = f"{record.kind.name.lower()} snapshot {key} of {namespace or 'no namespace'}"
            yield Entry(path, what, _size(path), held, (key, record.key))


def _tasks(ground: Ground) -> Iterator[Entry]:
    alive = {(namespace, id) for namespace, id, _ in bundles(ground)}
    for base, what in ((ground.bundles, "bundle"), (ground.work, "work directory")):
        for namespace in _names(base):
            for id in _names(f"{base}/{namespace}"):
                path = f"{base}/{namespace}/{id}"
                held = [f"{namespace}: task {id}"] if (namespace, id) in alive else []
                yield Entry(path, f"{what} of {namespace}/{id}", _size(path), held, (id,))


def _databases(ground: Ground) -> Iterator[Entry]:
    files = {"metadata": ground.metadata}
    files |= {f"records of {n}": f"{root}/metadata.db" for n, root in ground.snapshotters.items()}
    for what, path in files.items():
        directory, base = os.path.split(path)
        for name in _names(directory):
            if name.startswith(base):
                ending = next(text for end, text in _ENDINGS if name.endswith(end))
                if ".damaged-" in name:
                    ending = "set aside because it was damaged"
                yield Entry(
                    f"{directory}/{name}", f"{what}: {ending}", _size(f"{directory}/{name}"), []
                )


def _rest(ground: Ground, done: set[str]) -> Iterator[Entry]:
    """All that is below root and state, and was not told yet, as high up as possible."""
    for base in dict.fromkeys((ground.root, ground.state, *ground.snapshotters.values())):
        yield from _below(base, base, ground, done)


def _below(path: str, base: str, ground: Ground, done: set[str]) -> Iterator[Entry]:
    for name in _names(path):
        inside = f"{path}/{name}"
        if inside in done:
            continue
        if any(one.startswith(f"{inside}/") for one in done):
            yield from _below(inside, base, ground, done)
        else:
            done.add(inside)
            yield Entry(inside, _what(inside, base, ground), _size(inside), [])


def _what(path: str, base: str, ground: Ground) -> str:
    first = os.path.relpath(path, base).split("/")[0]
    if path.startswith(f"{ground.sockets}/") or path == ground.sockets:
        return "sockets of shims"
    if first in _FILES or first in _PLUGINS:
        return _FILES.get(first) or _PLUGINS[first]
    if first.startswith("io.containerd.snapshotter."):
        return "snapshots"
    if first.startswith("lost-"):
        return "snapshots that nothing is known of, set aside"
    return "a plugin's" if first.startswith("io.") else UNKNOWN


def _size(path: str) -> int:
    """Allocated bytes; 0 for what went away meanwhile."""
    with suppress(OSError):
        if os.path.isdir(path) and not os.path.islink(path):
            return tree.usage(path)[0]
        return os.lstat(path).st_blocks * 512
    return 0


def _names(directory: str) -> list[str]:
    with suppress(FileNotFoundError, NotADirectoryError):
        return sorted(os.listdir(directory))
    return []
