"""Async. ``io.cradled.tracing.v1.ring``: the ring of spans, for clients that ask for it.

They ask by Introspection's ``PluginInfo``, so there is no service that foreign clients could trip
over. Its options are a ``QUERY``, its extra a ``TRACES``, both JSON:

    {"last": 10, "slowest": false, "single": false}

``last``: at most so many; ``slowest``: those that took longest, not those that ended last;
``single``: calls without steps, too.

    {"traces": [{"id": "32 hex digits", "dropped": 0, "spans": [
        {"id": "16 hex digits", "parent": "" or likewise, "name": "...", "start": ns, "end": ns,
         "attributes": {...}, "error": ""}, ...]}, ...]}

Traces come in the order in which they ended, or the slowest first; the spans of each in the order
in which they began. Calls that one caller's ``traceparent`` joins are one trace; the span above
them is the caller's, and not there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from cradled import spans
from cradled.core.values import AnyValue
from cradled.errors import InvalidArgument
from cradled.spans import Record

QUERY = "io.cradled.tracing.v1.Query"
TRACES = "io.cradled.tracing.v1.Traces"

LAST = 10

_KINDS: Mapping[str, type] = {"last": int, "slowest": bool, "single": bool}


async def traces_info(options: AnyValue) -> AnyValue:
    """Answer a query with traces. Raises InvalidArgument for what is no query."""
    query = _query(options)
    found = _joined(spans.traces())
    if not query.get("single"):
        found = [trace for trace in found if trace["steps"]]
    last = max(query.get("last", LAST), 0)
    if query.get("slowest"):
        found = sorted(found, key=_seconds, reverse=True)[:last]
    else:
        found = found[max(len(found) - last, 0) :]
    told = {"traces": [_told(trace) for trace in found]}
    return AnyValue(TRACES, json.dumps(told, default=str).encode())


def _query(options: AnyValue) -> dict[str, Any]:
    if options.type_url.rpartition("/")[2] != QUERY:
        raise InvalidArgument(f"unexpected options of type {options.type_url}")
    try:
        query = json.loads(options.value or b"{}")
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"query: {error}") from None
    if not isinstance(query, dict):
        raise InvalidArgument("query: no object")
    for key, value in query.items():
        if type(value) is not _KINDS.get(key):
            raise InvalidArgument(f"query: unexpected {key}: {value!r}")
    return query


def _joined(traces: Iterable[spans.Trace]) -> list[dict[str, Any]]:
    """The traces by id, those that ended last at the end."""
    found: dict[int, dict[str, Any]] = {}
    for trace in traces:
        joined = found.pop(trace.id, None) or {
            "id": trace.id,
            "steps": 0,
            "dropped": 0,
            "spans": [],
        }
        joined["steps"] += len(trace.spans) - 1
        joined["dropped"] += trace.dropped
        joined["spans"] += trace.spans
        found[trace.id] = joined
    return list(found.values())


def _seconds(trace: Mapping[str, Any]) -> int:
    """How long it took in all, in nanoseconds."""
    records: list[Record] = trace["spans"]
    return max(one.end for one in records) - min(one.start for one in records)


def _told(trace: Mapping[str, Any]) -> dict[str, Any]:
    since = spans.epoch(0)
    records = sorted(trace["spans"], key=lambda one: (one.start, -one.end))
    return {
        "id": f"{trace['id']:032x}",
        "dropped": trace["dropped"],
        "spans": [_span(one, since) for one in records],
    }


def _span(record: Record, since: int) -> dict[str, Any]:
    return {
        "id": f"{record.id:016x}",
        "parent": f"{record.parent:016x}" if record.parent else "",
        "name": record.name,
        "start": record.start + since,
        "end": record.end + since,
        "attributes": record.attributes,
        "error": record.error,
    }
