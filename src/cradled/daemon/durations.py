"""Pure. Durations as configuration files have them."""

from __future__ import annotations

import re

Duration = str
"""Such as ``100ms`` or ``1m30s``; the annotation by which a key is known to have one."""

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")


def seconds(text: Duration) -> float:
    """A duration in seconds. Raises ValueError."""
    if text in ("", "0"):
        return 0.0
    parts = _PART.findall(text)
    if "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f'"{text}" is no duration (such as "100ms", "1m30s")')
    return sum(float(number) * _UNITS[unit] for number, unit in parts)
