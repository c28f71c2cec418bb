"""Blocking. ``cradled fsck``, ``backup`` and ``restore``; each returns the exit status.

A check and a backup may be made beside a running daemon. Repairing and putting back may not: they
take the locks that a daemon holds.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from typing import Any

from cradled.daemon import builtins, listeners
from cradled.daemon.config import Config
from cradled.errors import Error
from cradled.plugin import types as t
from cradled.repair import backup, check, explain
from cradled.repair.findings import Finding
from cradled.repair.ground import Ground
from cradled.repair.mend import Mending

CLEAN, PROBLEMS = 0, 1


def fsck(config: Config, words: Sequence[str]) -> int:
    """Check, explain or repair; 0 if nothing is wrong, 1 if something is. Raises Error where it
    cannot be told."""
    parser = argparse.ArgumentParser("cradled fsck", description="Check all that a daemon keeps.")
    parser.add_argument("--verify", action="store_true", help="read all blobs")
    parser.add_argument("--repair", action="store_true", help="repair what can be; remove nothing")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--explain", nargs="?", const="", metavar="PATH|ID", default=None,
                        help="tell what everything is, and who holds it")  # fmt: skip
    options = parser.parse_args(list(words))
    ground = ground_of(config)
    if not os.path.isdir(ground.root):
        raise Error(f"there is no {ground.root}")
    if options.explain is not None:
        return _explain(ground, options.explain, as_json=options.json)
    locks = _lock(ground)
    try:
        return _fsck(ground, options, running=not locks)
    finally:
        for lock in locks:
            os.close(lock)


def write_backup(config: Config, words: Sequence[str]) -> int:
    """Copy the metadata into a file; 0 when it is there. Raises Error."""
    parser = argparse.ArgumentParser("cradled backup")
    parser.add_argument("file")
    path = os.path.abspath(parser.parse_args(list(words)).file)
    print(f"{path}\t{backup.write(ground_of(config), path)} bytes")
    return CLEAN


def restore(config: Config, words: Sequence[str]) -> int:
    """Put a backup back. Raises Error, StartError while a daemon runs."""
    parser = argparse.ArgumentParser("cradled restore")
    parser.add_argument("file")
    path = os.path.abspath(parser.parse_args(list(words)).file)
    ground = ground_of(config)
    for directory, mode, what in ((ground.root, 0o700, "root"), (ground.state, 0o711, "state")):
        listeners.make_directory(directory, mode, what)
        listeners.hold(directory, what)
    for restored in backup.restore(ground, path):
        print(restored)
    return CLEAN


def ground_of(config: Config) -> Ground:
    """Where the daemon of a configuration keeps what it has."""
    root, state = config.root, config.state
    sections: dict[str, Any] = {
        registration.id: config.section(registration)
        for registration in builtins.REGISTRATIONS
        if registration.type == t.SNAPSHOTTER
    }
    snapshotters = {
        name: section.root_path or f"{root}/{t.SNAPSHOTTER}.{name}"
        for name, section in sections.items()
    }
    shims = next(one for one in builtins.REGISTRATIONS if one.type == t.SHIM)
    return Ground(
        root=root,
        state=state,
        metadata=f"{root}/{t.METADATA}.bolt/meta.db",
        content=f"{root}/{t.CONTENT}.content",
        snapshotters={n: d for n, d in snapshotters.items() if os.path.isdir(f"{d}/snapshots")},
        bundles=f"{state}/{t.RUNTIME}.task",
        work=f"{root}/{t.RUNTIME}.task",
        sockets=config.section(shims).socket_dir or f"{state}/s",
    )


def _lock(ground: Ground) -> list[int]:
    """The locks of root and state; none when a daemon has them."""
    locks: list[int] = []
    try:
        for directory, what in ((ground.root, "root"), (ground.state, "state")):
            if os.path.isdir(directory):
                locks.append(listeners.hold(directory, what))
    except listeners.StartError:
        for lock in locks:
            os.close(lock)
        return []
    return locks


def _fsck(ground: Ground, options: argparse.Namespace, *, running: bool) -> int:
    def look() -> list[Finding]:
        return check.check(ground, verify=options.verify, running=running)

    if options.repair and running:
        raise Error("a daemon is running: stop it to have things repaired; containers run on")
    done: list[Finding] = []
    quarantine = ""
    if options.repair:
        mending = Mending(ground)
        found = mending.mend(look)
        done, quarantine = mending.done, mending.quarantine if mending.done else ""
    else:
        found = check.steady(look) if running else look()
    if options.json:
        told = [one.told() for one in found]
        print(json.dumps({
            "running": running, "found": told, "repaired": [one.told() for one in done],
            "quarantine": quarantine,
        }, indent=2))  # fmt: skip
    else:
        _print(found, done, quarantine)
    return PROBLEMS if any(one.is_problem for one in found) else CLEAN


def _print(found: Sequence[Finding], done: Sequence[Finding], quarantine: str) -> None:
    for one in done:
        assert one.repair is not None
        print(f"repaired: {one.what}: {one.subject}: {one.text}: {one.repair.verb.value}")
    if quarantine:
        print(f"what was moved or forgotten, and why: {quarantine}")
    for one in found:
        print(f"{one.kind.value}: {one.what}: {one.subject}: {one.text}")
    problems = [one for one in found if one.is_problem]
    repairable = sum(one.repair is not None for one in problems)
    hint = f", {repairable} can be repaired with --repair" if repairable else ""
    print(f"{len(problems)} problems{hint}" if problems else "nothing is wrong")


def _explain(ground: Ground, wanted: str, *, as_json: bool) -> int:
    """1 when nothing answers to what is wanted."""
    path = os.path.abspath(wanted) if "/" in wanted and os.path.lexists(wanted) else wanted
    found = [one for one in explain.explain(ground) if not wanted or one.answers(path)]
    if as_json:
        print(json.dumps([one.told() for one in found], indent=2))
    else:
        for one in found:
            print(f"{one.size}\t{one.path}\t{one.what}")
            for way in one.held:
                print(f"\t\theld by {way}")
    return CLEAN if found or not wanted else PROBLEMS
