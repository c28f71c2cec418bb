"""Blocking. Objects in JSON files, read without the ``json`` package and its regular expressions.

Used by the shim: imports only C modules.
"""

from __future__ import annotations

from _json import make_scanner

from cradled.linux import cgroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Plain:
    """How JSON is read: as objects without a class."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int, parse_constant = float, int, float
    memo: dict[str, str] = {}  # noqa: RUF012 - cleared by the scanner itself


_scan = make_scanner(_Plain)  # type: ignore[arg-type]


def load(path: str) -> dict[str, Any]:
    """A JSON object in a file; an empty one where there is none that can be read."""
    try:
        return parse(cgroup.read(path))
    except (OSError, ValueError):
        return {}


def member(text: str, name: str) -> Any:
    """The value of the first member of that name in a text, at whatever depth.

    What is around it is not read: of a whole object with a thousand others in it the memory would
    be kept. Raises KeyError where there is none that can be read.
    """
    mark = f'"{name}":'
    begin = text.find(mark) + len(mark)
    if begin < len(mark):
        raise KeyError(name)
    try:
        return _scan(text, begin + (text[begin : begin + 1] == " "))[0]
    except (ValueError, StopIteration, RecursionError):
        raise KeyError(name) from None


def parse(text: str) -> dict[str, Any]:
    """The JSON object that a text begins with; an empty one where there is none."""
    try:
        found = _scan(text, 0)[0]
    except (ValueError, StopIteration, RecursionError):
        return {}
    return found if type(found) is dict else {}
