"""Blocking. What the configuration makes of the daemon's own process, before it does anything."""

from __future__ import annotations

import logging
import os

from cradled.daemon.config import Config
from cradled.daemon.listeners import StartError
from cradled.linux import cgroup

log = logging.getLogger(__name__)


def adjust(config: Config) -> None:
    """Temporary files, out-of-memory score, cgroup. Raises StartError."""
    if config.temp:
        _use_temp(config.temp)
    if config.oom_score:
        _adjust_oom_score(config.oom_score)
    if config.cgroup.path:
        _join(config.cgroup.path)


def _use_temp(path: str) -> None:
    try:
        os.makedirs(path, 0o700, exist_ok=True)
    except OSError as error:
        raise StartError(f"temp {path}: {error.strerror}") from error
    os.environ["TMPDIR"] = path


def _adjust_oom_score(score: int) -> None:
    """Lowering it takes a capability that not every host gives: try, and say so."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write(str(score))
    except OSError as error:
        log.warning("cannot set oom_score %d for pid %d", score, os.getpid(), exc_info=error)


def _join(path: str) -> None:
    """Move the daemon into a cgroup, made where it is not there yet, of all hierarchies."""
    joined = 0
    for root in _hierarchies():
        directory = f"{root}/{path.strip('/')}"
        try:
            os.makedirs(directory, exist_ok=True)
            cgroup.join(directory, os.getpid())
        except OSError as error:
            log.warning("cannot join cgroup %s", directory, exc_info=error)
        else:
            joined += 1
    if not joined:
        raise StartError(f"cannot join cgroup {path}")


def _hierarchies() -> list[str]:
    if os.path.exists(f"{cgroup.ROOT}/cgroup.procs"):
        return [cgroup.ROOT]
    entries = [f"{cgroup.ROOT}/{name}" for name in sorted(os.listdir(cgroup.ROOT))]
    return [
        path
        for path in entries
        if os.path.exists(f"{path}/cgroup.procs") and not os.path.islink(path)
    ]
