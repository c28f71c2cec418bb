"""Pure. Names by which a layer says what it takes away (OCI image-spec, layer.md)."""

from __future__ import annotations

from cradled.archive.errors import ArchiveError

PREFIX = b".wh."
OPAQUE = b".wh..wh..opq"


def removed(name: bytes) -> bytes:
    """The name that a whiteout takes away. Raises ArchiveError where that is no proper name."""
    taken = name.removeprefix(PREFIX)
    if taken in (b"", b".", b".."):
        raise ArchiveError(f"invalid whiteout name: {name.decode()}: invalid archive")
    return taken
