"""Pure. How late the loop is, learned from what happens anyway.

Whenever another thread has a result it asks the loop to take it; the time until the loop does is
how late the loop was. That costs an idle process nothing, and a busy one asks often.
"""

from __future__ import annotations

import time

from cradled.measures import Histogram

LATE = Histogram((0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0))
"""Seconds between asking the loop for something and its doing it."""


def since(asked: float) -> None:
    """On the loop: what was asked for at ``asked`` (``time.monotonic``) happens now."""
    LATE.observe(time.monotonic() - asked)
