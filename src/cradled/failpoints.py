"""Pure. Named points between two steps, at which a test can lose a race or die.

``hit("metadata.commit")`` costs two truth tests while nothing is armed. A test arms a point in its
own process with a callable: raising from it is an error at that point. In processes of others it
arms one by a file. Where ``CRADLED_FAILPOINTS`` named a directory when the process began, whoever
comes to a point that a file there is named after sends itself the signal whose number is in the
file: SIGKILL is a crash at that point, SIGSTOP lets the test kill somebody else meanwhile. Who took
the file renames it to ``<point>.<pid>`` first, so one file meets exactly one process.

Used by the shim: imports only ``os``.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

VARIABLE = "CRADLED_FAILPOINTS"

_armed: dict[str, Callable[[], None]] = {}
_directory = os.environ.get(VARIABLE, "")


def hit(name: str) -> None:
    """Do what is armed at this point, if anything is."""
    if _armed or _directory:
        _reach(name)


class armed:
    """Arm one point of this process for the length of a ``with`` block."""

    def __init__(self, name: str, action: Callable[[], None]) -> None:
        self._name = name
        self._action = action

    def __enter__(self) -> None:
        _armed[self._name] = self._action

    def __exit__(self, *_: object) -> None:
        del _armed[self._name]


def _reach(name: str) -> None:
    action = _armed.get(name)
    if action is not None:
        action()
    if not _directory:
        return
    taken = f"{_directory}/{name}.{os.getpid()}"
    try:
        os.rename(f"{_directory}/{name}", taken)
    except FileNotFoundError:
        return
    with open(taken, encoding="ascii") as file:
        os.kill(os.getpid(), int(file.read()))
