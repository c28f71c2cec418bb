"""Pure. Labels as the stores keep them, and the update masks on maps.

A label with an empty value is no label: maps lose such entries when they are written.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from cradled import identifiers
from cradled.core.values import AnyValue, Labels
from cradled.errors import InvalidArgument
from cradled.filters import Filter, field_key, parse
from cradled.metadata import graph

Adapt = Callable[[tuple[str, ...]], str | None]


@functools.cache
def _codec() -> tuple[Callable[[Labels], bytes], Callable[[str], dict[str, str]]]:
    import msgspec  # a daemon without labels starts sooner without it

    return msgspec.json.Encoder().encode, msgspec.json.Decoder(dict[str, str]).decode


def clean(labels: Labels, what: str = "") -> dict[str, str]:
    """Labels without empty values; raises InvalidArgument ``<what>: ...`` for one too long."""
    for key, value in labels.items():
        try:
            identifiers.validate_label(key, value)
        except InvalidArgument as error:
            raise InvalidArgument(f"{what}: {error.what}" if what else error.what) from None
    return {key: value for key, value in labels.items() if value}


def dump(labels: Labels) -> str:
    """As stored in a column."""
    return _codec()[0](labels).decode() if labels else "{}"


def dump_relevant(labels: Labels) -> str | None:
    """As stored in the column ``gc``: only what collections read; None for nothing."""
    relevant = graph.relevant(labels)
    return dump(relevant) if relevant else None


def load(text: str) -> dict[str, str]:
    """Back from a column."""
    return _codec()[1](text) if text != "{}" else {}


def masked(old: Labels, new: Labels, path: str) -> dict[str, str] | None:
    """Labels after an update of ``labels`` or ``labels.<k>``; None for another path."""
    if path == "labels":
        return dict(new)
    return replaced(old, new, path, "labels.")


def extended(
    old: Mapping[str, AnyValue], new: Mapping[str, AnyValue], path: str
) -> dict[str, AnyValue] | None:
    """Extensions after an update of ``extensions`` or ``extensions.<k>``; None for another path.

    One that is named but not given becomes an empty one, as the original has it; only replacing
    all of them takes one away.
    """
    if path == "extensions":
        return dict(new)
    if not path.startswith("extensions."):
        return None
    key = path.removeprefix("extensions.")
    return {**old, key: new.get(key, AnyValue("", b""))}


def replaced(old: Labels, new: Labels, path: str, prefix: str) -> dict[str, str] | None:
    """A map after the update of the one key that follows ``prefix``; None for another path."""
    if not path.startswith(prefix):
        return None
    key = path[len(prefix) :]
    changed = dict(old)
    changed.pop(key, None)
    if new.get(key):
        changed[key] = new[key]
    return changed


def adaptor(
    fields: Mapping[str, str | None], labels: str, annotations: Labels | None = None
) -> Adapt:
    """A filter's view of an object: its fields by dotted name, ``labels.<k>`` from the column.

    What a path has beyond the name of a field is ignored, as the original does.
    """

    def look(path: tuple[str, ...]) -> str | None:
        if path[0] == "labels":
            return load(labels).get(field_key(path))
        if path[0] == "annotations" and annotations:
            return annotations.get(field_key(path))
        found = fields.get(path[0])
        return fields.get(".".join(path[:2])) if found is None else found

    return look


@functools.lru_cache(256)
def _parsed(expressions: tuple[str, ...]) -> Filter:
    return parse(expressions)


def parsed(expressions: Any) -> Filter:
    """The filter of a list request; those that come again and again are parsed once."""
    return _parsed(tuple(expressions))
