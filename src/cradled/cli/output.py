"""Blocking. How results are printed: tables on a terminal, plain lines in a pipe, or JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

_GAP = "  "
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_AGES = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_rows(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table with headers on a terminal; in a pipe tab-separated lines, and no headers."""
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(cell.replace("\t", " ").replace("\n", " ") for cell in row))
        return
    table = [list(headers), *(list(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(_GAP.join(cells).rstrip())


def print_results(
    items: Sequence[Mapping[str, Any]], headers: Mapping[str, str], *, as_json: bool
) -> None:
    """Items as JSON with all their fields, or as rows of the fields that have a header."""
    if as_json:
        print_json([dict(item) for item in items])
        return
    rows = [[str(item[field]) for field in headers] for item in items]
    print_rows(list(headers.values()), rows)


def size(count: int) -> str:
    """Bytes in the largest unit that leaves a number of at least 1."""
    value = float(count)
    for unit in _UNITS[:-1]:
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} {_UNITS[-1]}"


def age(nanoseconds: int, now: float | None = None) -> str:
    """How long ago, in the largest unit."""
    seconds = max(0, int((time.time() if now is None else now) - nanoseconds / 1e9))
    for unit, name in _AGES:
        if seconds >= unit:
            count = seconds // unit
            return f"{count} {name}{'s' if count > 1 else ''} ago"
    return "now"


def instant(nanoseconds: int) -> str:
    """RFC 3339 in UTC; empty for no time."""
    if not nanoseconds:
        return ""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:09d}Z"
