"""Blocking. What a broken runtime leaves of a container: processes, their cgroups, its notes.

A cgroup is taken for the container's own when the spec gives it the container's name. Of others
nobody can say who else is in them: what is done to those is for the runtime to do.

Used by the shim: imports only ``os`` and C modules.
"""

from __future__ import annotations

import os
from time import sleep

from cradled.linux import cgroup, plain_json
from cradled.linux.signals import SIGKILL

ROUNDS = 200
PAUSE = 0.01
"""How often, and after how many seconds, to try again until killed processes have gone."""


def kill(bundle: str, id: str) -> None:
    """Kill all that is in the container's own cgroups."""
    for directory in _groups(bundle, id):
        _kill(directory, cgroup.members(directory))


def remove(bundle: str, id: str, notes: str, parent: int = 0) -> bool:
    """Kill, and remove cgroups and ``notes`` (a directory); whether all of it is gone.

    With a ``parent``, only processes that descend from it are killed: of a container that could
    not be made, another daemon may have one of this name.
    """
    is_gone = True
    for directory in _groups(bundle, id):
        members = cgroup.members(directory)
        own = [pid for pid in members if not parent or _descends(pid, parent)]
        _kill(directory, own)
        if len(own) < len(members):
            is_gone = is_gone and not own
        else:
            cgroup.remove(directory)
            is_gone = is_gone and not os.path.exists(directory)
    _discard(notes)
    return is_gone and not os.path.exists(notes)


def clear(bundle: str, id: str, notes: str = "") -> None:
    """Remove all of it, and wait until it is gone, unless that takes too long.

    Of a container that no runtime says to have made (``init.pid``) nothing is looked for: what is
    there is another daemon's.
    """
    if not os.path.exists(f"{bundle}/init.pid"):
        return
    for _ in range(ROUNDS):
        if remove(bundle, id, notes):
            break
        sleep(PAUSE)


def _kill(directory: str, pids: list[int]) -> None:
    for pid in filter(None, pids):  # 0 is one of another pid namespace
        try:
            os.kill(pid, SIGKILL)
        except ProcessLookupError:
            continue
    if pids:
        cgroup.thaw(directory)  # or they would wait for it


def _descends(pid: int, ancestor: int) -> bool:
    while pid and pid != ancestor:
        try:
            pid = int(cgroup.read(f"/proc/{pid}/stat").rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return False
    return pid == ancestor


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
