"""Blocking. What a broken runtime leaves of a container: processes, their cgroups, its notes.

A cgroup is taken for the container's own when the spec gives it the container's name. Of others
nobody can say who else is in them: what is done to those is for the runtime to do.

Used by the shim: imports only ``os`` and C modules.
"""

from __future__ import annotations

import os
from time import sleep

from cradled.linux import cgroup, plain_json

ROUNDS = 200
PAUSE = 0.01
"""How often, and after how many seconds, to try again until killed processes have gone."""


def kill(bundle: str, id: str) -> None:
    """Kill all that is in the container's own cgroups."""
    for directory in _groups(bundle, id):
        cgroup.kill(directory)


def remove(bundle: str, id: str, notes: str) -> bool:
    """Kill, and remove cgroups and ``notes`` (a directory); whether all of it is gone."""
    groups = _groups(bundle, id)
    for directory in groups:
        cgroup.kill(directory)
        cgroup.remove(directory)
    _discard(notes)
    return not any(map(os.path.exists, (*groups, notes)))


def clear(bundle: str, id: str, notes: str = "") -> None:
    """Remove all of it, and wait until it is gone, unless that takes too long."""
    for _ in range(ROUNDS):
        if remove(bundle, id, notes):
            break
        sleep(PAUSE)


def _groups(bundle: str, id: str) -> list[str]:
    try:
        path = plain_json.load(f"{bundle}/config.json")["linux"]["cgroupsPath"]
    except (KeyError, TypeError):
        return []
    if not isinstance(path, str) or not path.startswith("/") or os.path.basename(path) != id:
        return []
    return cgroup.directories(path)


def _discard(directory: str) -> None:
    """Remove notes of a container that is no more, as far as that goes."""
    try:
        for name in os.listdir(directory):
            os.unlink(f"{directory}/{name}")
        os.rmdir(directory)
    except OSError:
        pass
