"""Pure. What a check found out."""

from __future__ import annotations

from typing import NamedTuple

OK = "ok"
WARN = "warn"
FAIL = "fail"


class Finding(NamedTuple):
    """``area`` groups findings, ``name`` says what was looked at, ``text`` what was seen.

    ``advice`` says what to do about it; empty where nothing is to be done. FAIL is for what keeps
    containers from running, WARN for what somebody may miss.
    """

    area: str
    name: str
    status: str
    text: str
    advice: str = ""
