"""Blocking. Programs started without a copy of the caller's memory (``posix_spawn``).

Used by the shim: imports only ``os`` and C modules.
"""

from __future__ import annotations

import os

from cradled.linux.signals import IGNORED_BY_PYTHON

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def spawn(
    argv: list[str], env: Mapping[str, str], fds: Sequence[int | None] = (None, None, None)
) -> int:
    """Start a program, looked up in PATH, and return its pid.

    ``fds`` become its descriptors 0, 1, 2, ...; None is /dev/null. A number in ``fds`` that is
    itself below ``len(fds)`` would be overwritten (``linux.fds.above``). It is the first of a
    process group, so that it can be killed with all that it starts. Signals are at their defaults
    and none is blocked. Raises OSError, FileNotFoundError for a missing program too.
    """
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = []
    for number, fd in enumerate(fds):
        if fd is None:
            actions.append((os.POSIX_SPAWN_OPEN, number, "/dev/null", os.O_RDWR, 0))
        else:
            actions.append((os.POSIX_SPAWN_DUP2, fd, number))
    return os.posix_spawnp(
        argv[0],
        argv,
        env,
        file_actions=actions,
        setpgroup=0,
        setsigmask=(),
        setsigdef=IGNORED_BY_PYTHON,
    )
