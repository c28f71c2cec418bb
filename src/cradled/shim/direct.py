"""Async. Starting and deleting containers of runc without running runc, which costs more than both.

What runc keeps of a container is its directory ``<root>/<id>``: a created init waits in it for a
reader of ``exec.fifo``, and ``state.json`` names the cgroups that are to be removed with it. Where
anything is not as runc leaves it, or hooks are to be run, False is returned, nothing is lost, and
the runtime's own command does the work, or tells what is wrong.
"""

from __future__ import annotations

import os
from _json import make_scanner  # the package would bring regular expressions along

from cradled import failpoints
from cradled.linux import cgroup
from cradled.linux.coroutines import Closed, Future

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cradled.linux.coroutines import Loop

_OPENED = 5.0  # seconds until a waiting init has noticed its reader


class _Plain:
    """How JSON is read: as objects without a class."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int, parse_constant = float, int, float
    memo: dict[str, str] = {}  # noqa: RUF012 - cleared by the scanner itself


_scan = make_scanner(_Plain)  # type: ignore[arg-type]


async def start(loop: Loop, directory: str, ended: Future) -> bool:
    """Let a created init go on; whether it did. ``ended`` is done when the process has died."""
    if not _is_plain(load(f"{directory}/state.json"), "poststart"):
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
    state = load(f"{directory}/state.json")
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


def discard(directory: str) -> None:
    """Remove notes of a container that is no more, as far as that goes."""
    try:
        for name in os.listdir(directory):
            os.unlink(f"{directory}/{name}")
        os.rmdir(directory)
    except OSError:
        pass


def load(path: str) -> dict[str, Any]:
    """A JSON object in a file; an empty one where there is none that can be read."""
    try:
        return dict(_scan(cgroup.read(path), 0)[0])
    except (OSError, ValueError, TypeError, StopIteration, RecursionError):
        return {}


def _remove(group: str) -> None:
    try:  # noqa: SIM105 (contextlib is not worth its import)
        os.rmdir(group)
    except FileNotFoundError:
        pass
