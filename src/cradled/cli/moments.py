"""Pure. Moments as they are written on a command line."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

import click

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_DURATION = re.compile(r"(?:\d+[smhd])+")
_TIME = re.compile(r"\d{4}-\d\d-\d\d([T ].*)?")


def parse(text: str) -> str | timedelta | datetime:
    """A duration such as ``1h30m``, a time (of this host's zone, if it names none), or else a
    position in the journal of events. Raises click.UsageError for a time that there is not."""
    if _DURATION.fullmatch(text):
        parts = re.findall(r"(\d+)([smhd])", text)
        return sum((timedelta(**{_UNITS[unit]: int(count)}) for count, unit in parts), timedelta())
    if _TIME.fullmatch(text):
        try:
            return datetime.fromisoformat(text).astimezone()
        except ValueError as error:
            raise click.UsageError(f"--since {text}: {error}") from error
    return text
