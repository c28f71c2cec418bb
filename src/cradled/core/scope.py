"""Pure. On whose behalf something is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

_Backend = TypeVar("_Backend")


@dataclass(frozen=True, slots=True)
class Scope:
    """A namespace and, optionally, the lease that objects made by the call shall join."""

    namespace: str
    lease: str = ""


def bound(backend: _Backend, scope: Scope) -> _Backend:
    """A backend as it is used on somebody's behalf.

    Backends know no namespaces. Only one that is another process's (see ``is_remote``) is told
    whom a call is for, since what stands behind it may want to know.
    """
    bind: Any = getattr(backend, "bind", None)
    return backend if bind is None else bind(Scope(scope.namespace))


def is_remote(backend: object) -> bool:
    """Whether a backend is another process's: it may be away, or slow, for any time."""
    return hasattr(backend, "bind")
