"""Async. Starting and deleting containers of runc without running runc, which costs more than both.

What runc keeps of a container is its directory ``<root>/<id>``: a created init waits in it for a
reader of ``exec.fifo``, and ``state.json`` names the cgroups that are to be removed with it. Where
anything is not as runc leaves it, or hooks are to be run, False is returned, nothing is lost, and
the runtime's own command does the work, or tells what is wrong.
"""

from __future__ import annotations

import os

from cradled import failpoints
from cradled.linux import plain_json
from cradled.linux.coroutines import Closed, Future

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cradled.linux.coroutines import Loop

_OPENED = 5.0  # seconds until a waiting init has noticed its reader


async def start(loop: Loop, directory: str, ended: Future) -> bool:
    """Let a created init go on; whether it did. ``ended`` is done when the process has died."""
    if not _is_plain(plain_json.load(f"{directory}/state.json"), "poststart"):
        return False
    fifo = f"{directory}/exec.fifo"
    try:
        fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        news = Future()
        loop.readable(fd).then(news.set)
        ended.then(news.set)
        if not await loop.within(news, _OPENED) or not os.read(fd, 64):
            return False
        failpoints.hit("shim.start.released")
        os.unlink(fifo)  # or runc would take the container for one that was not started
    except (OSError, Closed):
        return False
    finally:
        loop.close(fd)
    return True


def delete(directory: str) -> bool:
    """Remove an ended container's cgroups and directory; whether all of it is gone."""
    state = plain_json.load(f"{directory}/state.json")
    if not _is_plain(state, "poststop"):
        return False
    try:
        for group in state["cgroup_paths"].values():
            _remove(group)
        failpoints.hit("shim.delete.cgroups")
        for name in os.listdir(directory):
            os.unlink(f"{directory}/{name}")
        failpoints.hit("shim.delete.notes")
        os.rmdir(directory)
    except OSError:
        return False
    return True


def _is_plain(state: dict[str, Any], stage: str) -> bool:
    """Whether cgroups are all there is beside the processes, and no hook waits for this stage."""
    try:
        settings = state["config"]
        groups = settings["cgroups"]
        special = groups["Systemd"] or state.get("rootless") or state.get("intel_rdt_path")
        hooks = settings.get("Hooks") or {}
        return not special and not hooks.get(stage) and type(state["cgroup_paths"]) is dict
    except (AttributeError, KeyError, TypeError):
        return False


def _remove(group: str) -> None:
    try:  # noqa: SIM105 (contextlib is not worth its import)
        os.rmdir(group)
    except FileNotFoundError:
        pass
