"""Pure. The graph that garbage collection walks: names of nodes, and what labels say of edges.

A node is ``<kind>/<key>`` within a namespace, ``<namespace>/<kind>/<key>`` in the whole. The flat
kinds stand for an object held by a flat lease: its labels are not followed, only a snapshot's
parents and an image's target are. The reference's storage.md section 8 has the table of labels;
each may end in ``.x`` or ``/x``.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import NamedTuple

from cradled.core.values import Labels

CONTENT, SNAPSHOT, IMAGE, INGEST = "content", "snapshot", "image", "ingest"
CONTAINER, LEASE = "container", "lease"
FLAT = "flat-"

PREFIX = "containerd.io/gc."
ROOT = PREFIX + "root"
EXPIRE = PREFIX + "expire"
FLAT_LABEL = PREFIX + "flat"
_REFERENCE = PREFIX + "ref."
_CONTENT_REFERENCE = _REFERENCE + CONTENT
_CONTENT_END = len(_CONTENT_REFERENCE)
_BACK_REFERENCE = PREFIX + "bref."
_CONDITION = PREFIX + "cond.snapshot."
_USED_AT = PREFIX + "cond.value-usedat"

_SNAPSHOT_DOT = SNAPSHOT + "."
_KIND = re.compile(r"(\w+)(?:[./]|$)", re.ASCII).match
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_UNITS = {
    "ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6,
    "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9,
}  # fmt: skip
_RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:[.,](\d+))?(Z|[+-]\d\d:\d\d)", re.ASCII
)


def node(kind: str, key: str) -> str:
    """The node of an object; a snapshot's key is ``<snapshotter>/<key>``."""
    return f"{kind}/{key}"


def resource_node(resource_type: str, resource_id: str, *, flat: bool = False) -> str:
    """The node of a lease's resource (type as in ``core.leases.Resource``)."""
    prefix = FLAT if flat else ""
    kind, _, snapshotter = resource_type.partition("/")
    if kind == "snapshots":
        return f"{prefix}{SNAPSHOT}/{snapshotter}/{resource_id}"
    if kind == "ingests":
        return f"{INGEST}/{resource_id}"
    return f"{prefix}{IMAGE if kind == 'images' else CONTENT}/{resource_id}"


def relevant(labels: Labels) -> dict[str, str]:
    """The labels that garbage collection reads."""
    return {key: value for key, value in labels.items() if key.startswith(PREFIX)}


class Links(NamedTuple):
    """What an object's labels say: nodes referred to, nodes whose life keeps it alive, and
    (node, condition) for references that hold while the snapshot there satisfies a condition."""

    references: list[str]
    back_references: list[str]
    conditions: list[tuple[str, str]]


def links(namespace: str, labels: Labels) -> Links:
    """The edges that labels stand for; labels that make no sense are passed over."""
    found = Links([], [], [])
    for key, value in labels.items():
        if key.startswith(_CONTENT_REFERENCE):  # by far the most
            if key[_CONTENT_END : _CONTENT_END + 1] in ("", ".", "/"):
                found.references.append(f"{namespace}/{CONTENT}/{value}")
        elif key.startswith(_REFERENCE):
            if target := _target(key[len(_REFERENCE) :], value):
                found.references.append(f"{namespace}/{target}")
        elif key.startswith(_BACK_REFERENCE):
            if target := _target(key[len(_BACK_REFERENCE) :], value):
                found.back_references.append(f"{namespace}/{target}")
        elif key.startswith(_CONDITION):
            snapshotter = key[len(_CONDITION) :].partition("/")[0]
            condition, _, snapshot = value.partition("|")
            if snapshot:
                target = f"{namespace}/{SNAPSHOT}/{snapshotter}/{snapshot}"
                found.conditions.append((target, condition))
    return found


def satisfied(condition: str, labels: Labels, now: int) -> bool:
    """Whether a snapshot's labels satisfy ``usedat<10m`` and the like; ``now`` in nanoseconds."""
    used_at = parse_time(labels.get(_USED_AT, ""))
    if used_at is None:
        return False
    for part in condition.split(","):
        match = re.fullmatch(r"\s*usedat\s*([<>])\s*(\S+)\s*", part)
        duration = None if match is None else parse_duration(match[2])
        if match is None or duration is None:
            return False
        age = now - used_at
        if not (age < duration if match[1] == "<" else age > duration):
            return False
    return True


def expiry(labels: Labels) -> int | None:
    """When an object expires; None where it does not, or where its label is no time."""
    return parse_time(labels[EXPIRE]) if EXPIRE in labels else None


def expired(at: int | None, now: int) -> bool:
    """Whether an expiry is in the past."""
    return at is not None and now > at


def parse_time(text: str) -> int | None:
    """Nanoseconds since the epoch of an RFC 3339 time; None when it is not one."""
    match = _RFC3339.fullmatch(text)
    if match is None:
        return None
    day, clock, fraction, zone = match.groups()
    try:
        at = datetime.fromisoformat(f"{day}T{clock}{'+00:00' if zone == 'Z' else zone}")
    except ValueError:
        return None
    return int(at.timestamp()) * 10**9 + int((fraction or "").ljust(9, "0")[:9])


def parse_duration(text: str) -> int | None:
    """Nanoseconds of a Go duration (``1h30m``, ``1.5s``); None when it is not one."""
    sign = -1 if text.startswith("-") else 1
    body = text[1:] if text[:1] in ("+", "-") else text
    if body == "0":
        return 0
    total, end = 0.0, 0
    for part in _DURATION_PART.finditer(body):
        if part.start() != end:
            return None
        total += float(part[1]) * _UNITS[part[2]]
        end = part.end()
    return sign * round(total) if end and end == len(body) else None


def _target(rest: str, value: str) -> str | None:
    """The node that a label names; ``rest`` is what follows ``ref.`` or ``bref.`` in its key."""
    if rest.startswith(_SNAPSHOT_DOT):  # a snapshotter's name may have dots
        snapshotter = rest[len(_SNAPSHOT_DOT) :].partition("/")[0]
        return f"{SNAPSHOT}/{snapshotter}/{value}" if snapshotter else None
    kind = _KIND(rest)
    if kind is not None and kind[1] in (CONTENT, IMAGE, CONTAINER):
        return f"{kind[1]}/{value}"
    return None
