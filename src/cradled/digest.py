"""Pure. Digests and chain IDs (OCI image-spec: descriptor.md, config.md)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from cradled.errors import InvalidArgument

CANONICAL = "sha256"
EMPTY = "sha256:" + hashlib.sha256().hexdigest()

_HEX = {
    "sha256": re.compile(r"[a-f0-9]{64}", re.ASCII).fullmatch,
    "sha384": re.compile(r"[a-f0-9]{96}", re.ASCII).fullmatch,
    "sha512": re.compile(r"[a-f0-9]{128}", re.ASCII).fullmatch,
}


def split(digest: str) -> tuple[str, str]:
    """(algorithm, hex) of a digest; raises InvalidArgument when it is not well formed."""
    algorithm, _, encoded = digest.partition(":")
    matches = _HEX.get(algorithm)
    if matches is None:
        raise InvalidArgument(f'unsupported digest algorithm: "{digest}"')
    if matches(encoded) is None:
        raise InvalidArgument(f'invalid checksum digest format: "{digest}"')
    return algorithm, encoded


def of(data: bytes, algorithm: str = CANONICAL) -> str:
    """Digest of bytes."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def chain_ids(diff_ids: Iterable[str]) -> list[str]:
    """The chain ID of every layer, bottom first."""
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return chain
