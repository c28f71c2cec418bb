"""Blocking. How this process gets memory from the kernel.

By itself glibc hands the pages of large buffers back as soon as they are freed. A program that
moves content in pieces of a MiB then spends more time on having pages zeroed than on the content.
"""

from __future__ import annotations

from cradled.linux import libc

_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_KEPT = 8 << 20

_own = False


def own_process() -> None:
    """Say that the process is a program of ours, not one that we are a library in."""
    global _own
    _own = True


def reuse_buffers() -> None:
    """Keep up to 8 MiB of what is freed for the next buffers, if this process is our own.

    For whoever is about to move content. C libraries without ``mallopt`` are left as they are.
    """
    global _own
    if _own:
        _own = False  # once is enough
        mallopt = getattr(libc.load(), "mallopt", None)
        if mallopt is not None:
            mallopt(_TRIM_THRESHOLD, _KEPT)
            mallopt(_MMAP_THRESHOLD, _KEPT // 2)  # a larger buffer is a mapping of its own
