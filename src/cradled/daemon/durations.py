"""Pure. Durations as configuration files have them."""

from __future__ import annotations

Duration = str
"""Such as ``100ms`` or ``1m30s``; the annotation by which a key is known to have one."""

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DIGITS = "0123456789."


def seconds(text: Duration) -> float:
    """A duration in seconds. Raises ValueError."""
    if text in ("", "0"):
        return 0.0
    total, rest = 0.0, text
    while rest:
        number = rest[: len(rest) - len(rest.lstrip(_DIGITS))]
        rest = rest[len(number) :]
        unit = next((unit for unit in _UNITS if rest.startswith(unit)), "")
        try:
            total += float(number) * _UNITS[unit]
        except (ValueError, KeyError):
            raise ValueError(f'"{text}" is no duration (such as "100ms", "1m30s")') from None
        rest = rest[len(unit) :]
    return total
