"""Pure. Snapshots: copy-on-write file trees named by keys.

As with content, the backend, the namespaced store and the proxy speak the same Protocol. Backend
keys are opaque to it (``<namespace>/<sequence>/<key>``).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

from cradled.core.mount import Mount
from cradled.core.values import Labels


class Kind(IntEnum):
    """Numbers are those of the wire."""

    UNKNOWN = 0
    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """Times are nanoseconds since the epoch."""

    name: str
    kind: Kind
    parent: str = ""
    created_at: int = 0
    updated_at: int = 0
    labels: Labels = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usage:
    """Own allocated bytes and inodes, parents left out."""

    size: int
    inodes: int


class Snapshotter(Protocol):
    """Errors and texts: reference, storage.md section 3."""

    async def stat(self, key: str, /) -> SnapshotInfo: ...

    async def update(
        self, info: SnapshotInfo, fieldpaths: Sequence[str] = (), /
    ) -> SnapshotInfo: ...

    async def usage(self, key: str, /) -> Usage: ...

    async def mounts(self, key: str, /) -> list[Mount]: ...

    async def prepare(self, key: str, parent: str, labels: Labels, /) -> list[Mount]: ...

    async def view(self, key: str, parent: str, labels: Labels, /) -> list[Mount]: ...

    async def commit(self, name: str, key: str, labels: Labels, /, *, parent: str = "") -> None:
        """``parent`` rebases an active snapshot that has none yet."""
        ...

    async def remove(self, key: str, /) -> None: ...

    def walk(self, filters: Sequence[str] = (), /) -> AsyncIterator[SnapshotInfo]: ...

    async def cleanup(self) -> None:
        """Remove directories that no snapshot refers to any more."""
        ...
