"""Blocking. Signals by number, without the ``signal`` module, whose import of ``enum`` costs 4 ms.

Used by the shim: imports only C modules.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SIGINT: int = _signal.SIGINT
SIGKILL: int = _signal.SIGKILL
SIGUSR1: int = _signal.SIGUSR1
SIGPIPE: int = _signal.SIGPIPE
SIGTERM: int = _signal.SIGTERM
SIGCHLD: int = _signal.SIGCHLD
SIGXFSZ: int = _signal.SIGXFSZ

IGNORED_BY_PYTHON = (SIGPIPE, SIGXFSZ)
"""What this interpreter ignores and its children must not: reset at every spawn."""


def handle(number: int, handler: Callable[..., None] | None) -> None:
    """Set a handler, or with None the default."""
    _signal.signal(number, _signal.SIG_DFL if handler is None else handler)


def ignore(number: int) -> None:
    """Ignore a signal."""
    _signal.signal(number, _signal.SIG_IGN)


def wake(fd: int) -> None:
    """Have the number of each handled signal written to ``fd``; -1 for no more."""
    _signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
