"""Pure. Media types of layers, and how to read what they name."""

from __future__ import annotations

from cradled.errors import NotFound, Unimplemented

LAYER = "application/vnd.oci.image.layer.v1.tar"
"""An uncompressed layer: what applying any other comes down to."""

LAYER_GZIP = f"{LAYER}+gzip"
_MADE = {LAYER: "", LAYER_GZIP: "gzip", f"{LAYER}+zstd": "zstd"}

_OCI = frozenset((LAYER, "application/vnd.oci.image.layer.nondistributable.v1.tar"))
_DOCKER = "application/vnd.docker.image.rootfs."
_DOCKER_PLAIN = frozenset((f"{_DOCKER}diff.tar", f"{_DOCKER}foreign.diff.tar"))
_DOCKER_PACKED = frozenset(
    (f"{_DOCKER}diff.tar.gzip", f"{_DOCKER}diff.tar.zstd", f"{_DOCKER}foreign.diff.tar.gzip")
)


def is_compressed(media_type: str) -> bool:
    """Whether a layer of this type is, or may be, compressed; its first bytes tell how.

    Docker's type without suffix is used for both. Raises NotFound for what no processor here
    turns into a tar, encrypted layers among it.
    """
    base, *suffixes = media_type.split("+")
    if base in _OCI and suffixes in ([], ["gzip"], ["zstd"]):
        return bool(suffixes)
    if media_type in _DOCKER_PLAIN or media_type in _DOCKER_PACKED:
        return True
    raise NotFound(f"failed to get stream processor for {media_type}: no processor for media-type")


def compression_to_make(media_type: str) -> str:
    """``gzip``, ``zstd`` or nothing. Raises Unimplemented for a type that is not made here."""
    try:
        return _MADE[media_type]
    except KeyError:
        raise Unimplemented(f"unsupported diff media type: {media_type}") from None
