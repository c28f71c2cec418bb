"""Blocking. Lines to stderr, which is the daemon's ``log`` FIFO: dropped when nobody reads them."""

from __future__ import annotations

import os
import sys


def line(text: str) -> None:
    """Write a line."""
    try:  # noqa: SIM105 (contextlib is not worth its import)
        os.write(2, f"{text}\n".encode(errors="replace"))
    except OSError:
        pass


def trace(error: BaseException) -> None:
    """Write an exception that should not have been."""
    try:  # noqa: SIM105
        sys.__excepthook__(type(error), error, error.__traceback__)
    except OSError:
        pass
