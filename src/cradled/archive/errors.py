"""Pure. What is wrong with an archive that somebody sent: their fault, never ours.

The texts begin as the Go implementation's do; clients print them.
"""

from __future__ import annotations


class ArchiveError(Exception):
    """The bytes are no valid archive, or ask for what no archive may ask for."""


class TarError(ArchiveError):
    """Not a tar stream, or a header in it makes no sense."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"archive/tar: invalid tar header: {detail}")


class Truncated(ArchiveError):
    """The stream ends in the middle of something."""

    def __init__(self, where: str) -> None:
        super().__init__(f"unexpected EOF in {where}")


class CompressionError(ArchiveError):
    """The compressed stream is damaged or not of the format that its start announces."""
