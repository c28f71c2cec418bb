"""Pure. Named points between two steps of a store, at which a test can lose a race or die.

``hit("metadata.commit")`` costs a truth test while nothing is armed. A test arms a point with a
callable; raising from it is an error at that point, ``os.kill(os.getpid(), SIGKILL)`` is a crash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_armed: dict[str, Callable[[], None]] = {}


def hit(name: str) -> None:
    """Run what is armed at this point, if anything is."""
    if _armed and (action := _armed.get(name)) is not None:
        action()


@contextmanager
def armed(name: str, action: Callable[[], None]) -> Iterator[None]:
    """Arm one point for the length of a ``with`` block."""
    _armed[name] = action
    try:
        yield
    finally:
        del _armed[name]
