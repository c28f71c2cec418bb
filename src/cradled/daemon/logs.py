"""Blocking. The daemon's log on stderr, in the two formats operators know.

    time="2026-01-02T03:04:05.678901234Z" level=info msg="what happened" key=value
    {"key":"value","level":"info","msg":"what happened","time":"..."}

Keys are those of a record's ``extra={"fields": {...}}``; an exception is told as ``error``, its
traceback as ``trace`` where it is an error, or always when debugging.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from cradled import spans
from cradled.daemon.config import Debug

TRACE = 5

_LEVELS = {
    "trace": TRACE,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
    "panic": logging.CRITICAL,
}
_NAMES = {
    logging.WARNING: "warning",
    logging.CRITICAL: "fatal",
    TRACE: "trace",
}


def setup(debug: Debug) -> None:
    """Send everything of the configured level and above to stderr, from now on."""
    logging.raiseExceptions = False
    handler = logging.StreamHandler(sys.stderr)
    kind = JsonFormatter if debug.format == "json" else TextFormatter
    handler.setFormatter(kind(debug.log_trace_id))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_LEVELS[debug.level or "info"])
    logging.captureWarnings(True)


class _Formatter(logging.Formatter):
    """With ``trace_ids``, a line that is written for a call has its trace and span."""

    def __init__(self, trace_ids: bool = False) -> None:
        super().__init__()
        self._trace_ids = trace_ids

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """What is told beside the message."""
        found = _fields(record)
        span = spans.current() if self._trace_ids else None
        if span is not None:
            found |= {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.id:016x}"}
        return found


class TextFormatter(_Formatter):
    """``key=value`` pairs, quoted where they are not a plain word."""

    def format(self, record: logging.LogRecord) -> str:
        head = f'time="{_time(record)}" level={_level(record)} msg={_quoted(record.getMessage())}'
        fields = (f" {key}={_text(value)}" for key, value in self.fields(record).items())
        return head + "".join(fields)


class JsonFormatter(_Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        values = {**self.fields(record), "level": _level(record), "msg": record.getMessage()}
        values["time"] = _time(record)
        return json.dumps(values, separators=(",", ":"), default=str)


def _time(record: logging.LogRecord) -> str:
    seconds, fraction = divmod(int(record.created * 1e9), 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{fraction:09}Z"


def _level(record: logging.LogRecord) -> str:
    return _NAMES.get(record.levelno, record.levelname.lower())


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = dict(getattr(record, "fields", {}))
    if record.exc_info and record.exc_info[1] is not None:
        fields["error"] = str(record.exc_info[1]) or type(record.exc_info[1]).__name__
        if record.levelno >= logging.ERROR or logging.getLogger().level <= logging.DEBUG:
            fields["trace"] = logging.Formatter().formatException(record.exc_info)
    return fields


def _text(value: Any) -> str:
    text = str(value)
    plain = text and all(c.isascii() and (c.isalnum() or c in "-._/@^+") for c in text)
    return text if plain else _quoted(text)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
