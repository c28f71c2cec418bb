"""Pure. Media types of layers, and how to read what they name."""

from __future__ import annotations

from cradled.errors import Unimplemented

LAYER = "application/vnd.oci.image.layer.v1.tar"
"""An uncompressed layer: what applying any other comes down to."""

LAYER_GZIP = f"{LAYER}+gzip"
_MADE = {LAYER: "", LAYER_GZIP: "gzip", f"{LAYER}+zstd": "zstd"}

_OCI = frozenset((LAYER, "application/vnd.oci.image.layer.nondistributable.v1.tar"))
_DOCKER = frozenset(
    f"application/vnd.docker.image.rootfs.{suffix}"
    for suffix in (
        "diff.tar", "diff.tar.gzip", "diff.tar.zstd", "foreign.diff.tar", "foreign.diff.tar.gzip"
    )
)  # fmt: skip


def is_compressed(media_type: str) -> bool | None:
    """Whether a layer of this type is, or may be, compressed; its first bytes tell how.

    Docker's type without suffix is used for both. None for what nothing built in turns into a
    tar, encrypted layers among it.
    """
    base, *suffixes = media_type.split("+")
    if base in _OCI and suffixes in ([], ["gzip"], ["zstd"]):
        return bool(suffixes)
    return True if media_type in _DOCKER else None


def compression_to_make(media_type: str) -> str:
    """``gzip``, ``zstd`` or nothing. Raises Unimplemented for a type that is not made here."""
    try:
        return _MADE[media_type]
    except KeyError:
        raise Unimplemented(f"unsupported diff media type: {media_type}") from None
