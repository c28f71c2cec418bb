"""Async. Starting and deleting containers of runc and crun without running them, which costs more.

What these runtimes keep of a container is its directory ``<root>/<id>``. A created init waits at
``exec.fifo`` in it: runc's writes and goes on when somebody reads, crun's reads and goes on when
somebody has written. The other files name the cgroups that are to be removed with the directory.
Where anything is not as the runtime leaves it, or hooks are to be run, False is returned, nothing
is lost, and the runtime's own command does the work, or tells what is wrong.

Used by the shim: imports only ``os`` and C modules.
"""

from __future__ import annotations

import os

from cradled import failpoints
from cradled.linux import cgroup, plain_json
from cradled.linux.coroutines import Closed, Future

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from cradled.linux.coroutines import Loop

_OPENED = 5.0  # seconds until a waiting init has noticed its reader


class Runc:
    """A container of runc; ``directory`` is what it keeps of it."""

    __slots__ = ("directory",)

    def __init__(self, directory: str) -> None:
        self.directory = directory

    async def start(self, loop: Loop, ended: Future) -> bool:
        """Let a created init go on; whether it did. ``ended`` is done when the process has died."""
        if self._groups("poststart") is None:
            return False
        fifo = f"{self.directory}/exec.fifo"
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

    def delete(self) -> bool:
        """Remove an ended container's cgroups and directory; whether all of it is gone."""
        groups = self._groups("poststop")
        return groups is not None and _remove(groups.values(), self.directory)

    def _groups(self, stage: str) -> dict[str, str] | None:
        """The cgroups, if they are all there is beside the processes, and no hook waits for a
        stage; otherwise None."""
        try:
            state = cgroup.read(f"{self.directory}/state.json")
            special = [plain_json.member(state, name) for name in ("Systemd", "rootless")]
            if '"intel_rdt_path":' in state:
                special.append(plain_json.member(state, "intel_rdt_path"))
            hooks = plain_json.member(state, "Hooks") or {}
            groups = plain_json.member(state, "cgroup_paths")
            is_plain = not any(special) and not hooks.get(stage) and type(groups) is dict
        except (OSError, AttributeError, KeyError):
            return None
        return groups if is_plain else None


class Crun:
    """A container of crun; ``directory`` is what it keeps of it."""

    __slots__ = ("directory",)

    def __init__(self, directory: str) -> None:
        self.directory = directory

    async def start(self, _loop: Loop, _ended: Future) -> bool:
        """As of Runc."""
        if not self._group("poststart"):
            return False
        fifo = f"{self.directory}/exec.fifo"
        try:
            fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return False  # there is none, or nobody waits at it
        try:
            os.unlink(fifo)
            os.write(fd, b"\0")
        except OSError:
            return False  # it has died meanwhile
        finally:
            os.close(fd)
        failpoints.hit("shim.start.released")
        return True

    def delete(self) -> bool:
        """As of Runc."""
        group = self._group("poststop")
        return bool(group) and _remove(cgroup.directories(group), self.directory)

    def _group(self, stage: str) -> str:
        """The cgroup, if that is all there is beside the processes, and no hook waits for a stage;
        otherwise empty."""
        status = plain_json.load(f"{self.directory}/status")
        try:
            group: str = status["cgroup-path"]
            special = status["systemd-cgroup"] or status["scope"] or status.get("intelrdt")
            spec = cgroup.read(f"{self.directory}/config.json").strip()
            is_whole = spec.startswith("{") and spec.endswith("}")
            hooks = plain_json.parse(spec)["hooks"] if '"hooks"' in spec else {}
            if special or not is_whole or (hooks or {}).get(stage):
                return ""
            return group if group.startswith("/") and group.strip("/") else ""
        except (OSError, AttributeError, KeyError, TypeError):
            return ""


_KNOWN: dict[str, type[Runc | Crun]] = {"runc": Runc, "crun": Crun}


def of(runtime: str, directory: str) -> Runc | Crun | None:
    """A container of a runtime program of this name; None where too little is known of it."""
    kind = _KNOWN.get(runtime)
    return None if kind is None else kind(directory)


def _remove(groups: Iterable[str], directory: str) -> bool:
    """Remove cgroups, then a directory of files; whether all of it is gone."""
    try:
        for group in groups:
            try:  # noqa: SIM105 (contextlib is not worth its import)
                os.rmdir(group)
            except FileNotFoundError:
                pass
        failpoints.hit("shim.delete.cgroups")
        for name in os.listdir(directory):
            os.unlink(f"{directory}/{name}")
        failpoints.hit("shim.delete.notes")
        os.rmdir(directory)
    except (OSError, TypeError, ValueError):  # the last two: what is named is no path
        return False
    return True
