"""What lies on a daemon's disk against what its metadata says."""

from __future__ import annotations

import os
from pathlib import Path

from harness.daemon import Daemon

CONTENT = "io.containerd.content.v1.content"
SNAPSHOTS = "io.containerd.snapshotter.v1.overlayfs/snapshots"
TASKS = "io.containerd.runtime.v2.task"


def collect(daemon: Daemon) -> None:
    """One whole garbage collection, over when this returns."""
    daemon.ctr("leases", "create", "--id", "collect")
    daemon.ctr("leases", "rm", "--sync", "collect")


def differences(daemon: Daemon) -> list[str]:
    """Blobs, snapshot directories and bundles that only one side knows, in words.

    What nothing refers to is collected first.
    """
    collect(daemon)
    found = []
    blobs, tasks, snapshots = set[str](), set[str](), list[str]()
    for namespace in daemon.ctr("namespaces", "ls", "-q").split():
        blobs |= set(in_namespace(daemon, namespace, "content", "ls", "-q").split())
        snapshots += snapshot_keys(daemon, namespace)
        listed = in_namespace(daemon, namespace, "tasks", "ls", "-q").split()
        tasks |= {f"{namespace}/{task}" for task in listed}
    content = daemon.root / CONTENT / "blobs"
    on_disk = {f"{path.parent.name}:{path.name}" for path in content.glob("*/*")}
    found += compare("blob", on_disk, blobs)
    directories = names(daemon.root / SNAPSHOTS)
    if len(directories) != len(snapshots):
        found.append(f"directories {directories} for snapshots {snapshots}")
    for top in (daemon.state, daemon.root):
        bundles = {f"{path.parent.name}/{path.name}" for path in (top / TASKS).glob("*/*")}
        found += compare("bundle", bundles, tasks)
    sockets = names(daemon.state / "s")
    if len(sockets) != len(tasks):
        found.append(f"{len(sockets)} sockets of shims for {len(tasks)} tasks")
    states = {f"{path.parent.name}/{path.name}" for path in (daemon.state / "runc").glob("*/*")}
    found += [f"runtime's state only on disk: {name}" for name in sorted(states - tasks)]
    return found


def unused(daemon: Daemon) -> list[str]:
    """What never outlives the work it was made for."""
    places = (daemon.root / CONTENT / "ingest", daemon.root / "tmpmounts")
    return [f"{place}/{name}" for place in places for name in names(place)]


def snapshot_keys(daemon: Daemon, namespace: str) -> list[str]:
    """Keys as they are listed; they may have spaces in them."""
    header, *listed = in_namespace(daemon, namespace, "snapshots", "ls").splitlines()
    return [line[: header.index("PARENT")].strip() for line in listed]


def in_namespace(daemon: Daemon, namespace: str, *words: str) -> str:
    return daemon.ctr("-n", namespace, *words)


def compare(what: str, disk: set[str], metadata: set[str]) -> list[str]:
    return [
        *(f"{what} only on disk: {name}" for name in sorted(disk - metadata)),
        *(f"{what} only in metadata: {name}" for name in sorted(metadata - disk)),
    ]


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory)) if directory.exists() else []
