"""Pure. Digests and chain IDs (OCI image-spec: descriptor.md, config.md)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from cradled.errors import InvalidArgument

CANONICAL = "sha256"
EMPTY = "sha256:" + hashlib.sha256().hexdigest()

_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}
_HEX = re.compile(r"[a-f0-9]+", re.ASCII).fullmatch
_FORM = re.compile(r"[a-z0-9]+([.+_-][a-z0-9]+)*:[a-zA-Z0-9=_-]+", re.ASCII).fullmatch


def split(digest: str) -> tuple[str, str]:
    """(algorithm, hex) of a digest; raises InvalidArgument when it is not well formed."""
    if reason := fault(digest):
        raise InvalidArgument(f'{reason}: "{digest}"')
    algorithm, _, encoded = digest.partition(":")
    return algorithm, encoded


def fault(digest: str) -> str:
    """Why a digest is not well formed, in the words that clients know; empty when it is."""
    algorithm, _, encoded = digest.partition(":")
    if algorithm not in _LENGTHS and _FORM(digest):
        return "unsupported digest algorithm"
    if algorithm in _LENGTHS and encoded and len(encoded) != _LENGTHS[algorithm]:
        return "invalid checksum digest length"
    if algorithm not in _LENGTHS or _HEX(encoded) is None:
        return "invalid checksum digest format"
    return ""


def of(data: bytes, algorithm: str = CANONICAL) -> str:
    """Digest of bytes."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def chain_ids(diff_ids: Iterable[str]) -> list[str]:
    """The chain ID of every layer, bottom first."""
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return chain
