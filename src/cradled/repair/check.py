"""Blocking. The check of all that a daemon keeps: what is missing, corrupt, nobody's or left over.

Nothing is changed. While a daemon is running things come and go under the check, so what is found
then must be found twice (``steady``).
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress

from cradled import damage
from cradled import digest as digests
from cradled.content import ingest as ingests
from cradled.core.snapshots import Kind as SnapshotKind
from cradled.damage import Damaged
from cradled.linux import mount
from cradled.metadata import backend_names
from cradled.repair import ground as grounds
from cradled.repair.bundles import containers
from cradled.repair.findings import Finding, Kind, Repair, Verb
from cradled.repair.ground import Ground, Known
from cradled.snapshotters.records import Record

_CHUNK = 1 << 20
_PARTS = ("containerd.io/gc.ref.content.config", "containerd.io/gc.ref.content.l.")
_REBUILD = Repair(Verb.REBUILD)


def steady(look: Callable[[], list[Finding]]) -> list[Finding]:
    """What is found twice."""
    first = {finding[:3] for finding in look()}
    return [finding for finding in look() if finding[:3] in first]


def check(ground: Ground, *, verify: bool = False, running: bool = False) -> list[Finding]:
    """All that is wrong. ``verify``: read all blobs; ``running``: a daemon is at work there."""
    found: list[Finding] = []
    try:
        known = grounds.known(ground)
    except Damaged as error:
        repair = Repair(Verb.SET_ASIDE, (ground.metadata,))
        found.append(Finding(Kind.CORRUPT, "metadata", ground.metadata, str(error), repair))
        known = None
    found += _ingests(ground, known)
    if known is not None:
        found += _metadata(ground, known)
        found += _blobs(ground, known, verify=verify)
        found += _names(known)
        found += _bundles(ground, known)
    for name, root in ground.snapshotters.items():
        found += _snapshots(name, root, known)
    if not running:  # a daemon's own ways are full of things that are about to go
        found += _leftovers(ground)
    return found


def _metadata(ground: Ground, known: Known) -> Iterator[Finding]:
    for table, key in known.unreadable:
        repair = Repair(Verb.UNLABEL, (table, *key))
        yield Finding(Kind.CORRUPT, table, "/".join(key), "its labels cannot be read", repair)
    rebuild = damage.Rebuild.load(ground.metadata)
    leases = [id for _, id in known.leases if id.startswith("recovered-")]
    if rebuild is not None and leases:
        text = (
            f"rebuilt because: {rebuild.reason}; what was taken in is kept until the leases go:"
            f" {', '.join(sorted(set(leases)))}"
        )
        yield Finding(Kind.NOTE, "metadata", ground.metadata, text)


def blob_path(ground: Ground, digest: str) -> str:
    return f"{ground.content}/blobs/{digest.replace(':', '/')}"


def _blobs(ground: Ground, known: Known, *, verify: bool) -> Iterator[Finding]:
    there = {f"{a}:{name}": size for a, name, size in _files(f"{ground.content}/blobs")}
    owned: dict[str, list[tuple[str, str]]] = {}
    for key in known.content:
        owned.setdefault(key[1], []).append(key)
    for digest, keys in owned.items():
        if digest not in there:
            for key in keys:
                repair = Repair(Verb.FORGET, ("content", *key))
                text = "the blob is gone: have its image pulled or imported again"
                yield Finding(Kind.MISSING, "content", "/".join(key), text, repair)
    expected = {expected for _, expected in known.ingests.values()}
    for digest, size in there.items():
        path = blob_path(ground, digest)
        if digests.fault(digest):
            repair = Repair(Verb.QUARANTINE, (path,))
            yield Finding(Kind.LEFTOVER, "content", path, "it is no blob", repair)
            continue
        sizes = {known.content[key].size for key in owned.get(digest, ())}
        if sizes and sizes != {size}:
            text = f"{size} bytes instead of {min(sizes - {size})}"
        elif verify and (actual := _digest(path, digest)) != digest:
            text = f"its digest is {actual}"
        elif digest not in owned and digest not in expected:
            text = "no namespace has it"
            yield Finding(Kind.ORPHANED, "content", path, text, _REBUILD)
            continue
        else:
            continue
        repair = Repair(Verb.QUARANTINE, (path,))
        yield Finding(Kind.CORRUPT, "content", path, text, repair)


def _files(directory: str) -> Iterator[tuple[str, str, int]]:
    """(directory's name, name, size) of each file in the directories below."""
    for below in _names_in(directory):
        for name in _names_in(f"{directory}/{below}"):
            with suppress(FileNotFoundError):
                yield below, name, os.lstat(f"{directory}/{below}/{name}").st_size


def _digest(path: str, digest: str) -> str:
    algorithm = digest.partition(":")[0]
    state = hashlib.new(algorithm)
    with suppress(FileNotFoundError), open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            state.update(chunk)
    return f"{algorithm}:{state.hexdigest()}"


def _ingests(ground: Ground, known: Known | None) -> Iterator[Finding]:
    refs = None if known is None else {ref for ref, _ in known.ingests.values()}
    for name in _names_in(f"{ground.content}/ingest"):
        path = f"{ground.content}/ingest/{name}"
        status = ingests.load(path)
        ref = "" if status is None else status.ref
        if hashlib.sha256(ref.encode(errors="replace")).hexdigest() != name:
            repair = Repair(Verb.QUARANTINE, (path,))
            yield Finding(Kind.LEFTOVER, "ingests", path, "an upload that is damaged", repair)
        elif refs is not None and ref not in refs:
            text = f"the upload {ref} is no namespace's"
            repair = _REBUILD if backend_names.parsed(ref) else Repair(Verb.QUARANTINE, (path,))
            yield Finding(Kind.ORPHANED, "ingests", path, text, repair)


def _snapshots(name: str, root: str, known: Known | None) -> Iterator[Finding]:
    path = f"{root}/metadata.db"
    try:
        records = grounds.of_snapshotter(root)
    except Damaged as error:
        repair = Repair(Verb.SET_ASIDE, (path,))
        yield Finding(Kind.CORRUPT, f"snapshots/{name}", path, str(error), repair)
        return
    yield from _directories(name, root, records)
    if known is None:
        return
    keys = {record.key for record in records}
    rows = {key: row for key, row in known.snapshots.items() if key[1] == name}
    settling = {backend_name for snapshotter, backend_name in known.intents if snapshotter == name}
    for key, row in rows.items():
        if row.backend_key not in keys and not settling:
            repair = Repair(Verb.FORGET, ("snapshots", *key))
            text = f"the snapshotter has no {row.backend_key}"
            yield Finding(Kind.MISSING, f"snapshots/{name}", f"{key[0]}/{key[2]}", text, repair)
        if row.parent and (key[0], name, row.parent) not in rows:
            text = f"its parent {row.parent} is gone"
            yield Finding(Kind.MISSING, f"snapshots/{name}", f"{key[0]}/{key[2]}", text)
    for alone in sorted(keys - {row.backend_key for row in rows.values()} - settling):
        again = _REBUILD if backend_names.parsed(alone) else None
        yield Finding(Kind.ORPHANED, f"snapshots/{name}", alone, "no namespace has it", again)


def _directories(name: str, root: str, records: list[Record]) -> Iterator[Finding]:
    what, directory = f"snapshots/{name}", f"{root}/snapshots"
    names = set(_names_in(directory))
    for record in records:
        if str(record.id) not in names and record.kind is SnapshotKind.COMMITTED:
            repair = Repair(Verb.DROP, (name, str(record.id)))
            text = f"its directory {directory}/{record.id} is gone"
            yield Finding(Kind.MISSING, what, record.key, text, repair)
    for entry in sorted(names - {str(record.id) for record in records}):
        repair = Repair(Verb.QUARANTINE, (f"{directory}/{entry}",))
        kind = Kind.ORPHANED if entry.isdecimal() else Kind.LEFTOVER
        text = "the snapshotter does not know it"
        yield Finding(kind, what, f"{directory}/{entry}", text, repair)


def _names(known: Known) -> Iterator[Finding]:
    """What refers to something by name, and it is not there."""
    for (namespace, name), image in known.images.items():
        if (namespace, image.digest) not in known.content:
            text = f"its target {image.digest} is gone: pull or import it again"
            yield Finding(Kind.MISSING, "images", f"{namespace}/{name}", text)
    for (namespace, id), container in known.containers.items():
        key = (namespace, container.snapshotter, container.snapshot_key)
        if container.snapshot_key and key not in known.snapshots:
            text = f"its root file system {container.snapshotter}/{container.snapshot_key} is gone"
            yield Finding(Kind.NOTE, "containers", f"{namespace}/{id}", text)
    for (namespace, digest), blob in known.content.items():
        parts = [v for k, v in blob.labels.items() if k.startswith(_PARTS)]
        gone = [part for part in parts if (namespace, part) not in known.content]
        if gone:
            text = f"it is not complete without {', '.join(gone)}"
            yield Finding(Kind.NOTE, "content", f"{namespace}/{digest}", text)
    for namespace, lease, *_ in sorted(set(known.resources)):
        if (namespace, lease) not in known.leases:
            repair = Repair(Verb.FORGET, ("lease_resources", namespace, lease))
            text = "it holds things, but does not exist"
            yield Finding(Kind.ORPHANED, "leases", f"{namespace}/{lease}", text, repair)


def bundles(ground: Ground) -> Iterator[tuple[str, str, str]]:
    """(namespace, id, path) of each."""
    for namespace in _names_in(ground.bundles):
        for id in _names_in(f"{ground.bundles}/{namespace}"):
            if not id.startswith("."):
                yield namespace, id, f"{ground.bundles}/{namespace}/{id}"


def _bundles(ground: Ground, known: Known) -> Iterator[Finding]:
    readable = {(namespace, one.id) for namespace, one in containers(ground.bundles)}
    for namespace, id, path in bundles(ground):
        if (namespace, id) not in known.containers:
            if (namespace, id) in readable:
                yield Finding(Kind.ORPHANED, "tasks", path, "it has no container", _REBUILD)
            else:
                text = "it has no container, and its spec cannot be read"
                yield Finding(Kind.ORPHANED, "tasks", path, text)


def _leftovers(ground: Ground) -> Iterator[Finding]:
    """What whoever was killed has left, and nobody listens at or looks for any more."""
    alive = {(namespace, id) for namespace, id, _ in bundles(ground)}
    for base in (ground.bundles, ground.work):
        for namespace in _names_in(base):
            for id in _names_in(f"{base}/{namespace}"):
                if (namespace, id) not in alive:
                    path = f"{base}/{namespace}/{id}"
                    repair = Repair(Verb.QUARANTINE, (path,))
                    yield Finding(Kind.LEFTOVER, "tasks", path, "of a task that is gone", repair)
    for name in _names_in(ground.sockets):
        path = f"{ground.sockets}/{name}"
        if not _is_served(path):
            repair = Repair(Verb.QUARANTINE, (path,))
            yield Finding(Kind.LEFTOVER, "sockets", path, "no shim listens there", repair)
    for path in _temporary(ground):
        repair = Repair(Verb.QUARANTINE, (path,))
        yield Finding(Kind.LEFTOVER, "files", path, "it was never finished", repair)
    for one in mount.mounts():
        if one.target.startswith(f"{ground.bundles}/"):
            bundle = tuple(one.target[len(ground.bundles) + 1 :].split("/")[:2])
            if bundle not in alive:
                text = f"nobody's mount: umount {one.target}"
                yield Finding(Kind.LEFTOVER, "mounts", one.target, text)


def _temporary(ground: Ground) -> Iterator[str]:
    """Files that were to be renamed once they were whole."""
    places = (os.path.dirname(ground.metadata), *ground.snapshotters.values(), ground.root)
    for place in places:
        for name in _names_in(place):
            if name.endswith((".tmp", ".new")):
                yield f"{place}/{name}"


def _is_served(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True  # it cannot be told
    return True


def _names_in(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
