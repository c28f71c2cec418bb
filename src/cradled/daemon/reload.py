"""Async. SIGHUP: the configuration is read again, and what can change while the daemon runs does.

That is the log (level, format, trace ids) and policies. What else differs is told, because it takes
effect when the daemon is started again. A file that cannot be used changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from cradled.daemon import logs
from cradled.daemon.config import Config, ConfigError
from cradled.daemon.config_check import Problem
from cradled.daemon.config_text import dotted

log = logging.getLogger(__name__)

Read = Callable[[], tuple[Config, list[Problem]]]


def reload(config: Config, read: Read) -> Config:
    """Read again and apply what can be; the configuration now in force."""
    try:
        fresh, problems = read()
    except ConfigError as error:
        log.error("the configuration stays as it was: %s", error)
        return config
    logs.setup(fresh.debug)
    report(problems)
    waiting = [dotted(path) for path in differences(config, fresh) if path[0] != "debug"]
    if waiting:
        log.warning("only a restart brings what changed", extra={"fields": {"keys": waiting}})
    log.info("the configuration was read again")
    return config._replace(debug=fresh.debug)


def report(problems: Sequence[Problem]) -> None:
    """Tell the log what is to be said about a configuration that is used."""
    for problem in problems:
        level = logging.INFO if problem.level == "note" else logging.WARNING
        log.log(level, problem.text, extra={"fields": problem.fields})


def differences(one: Any, other: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The keys that differ, with the tables they are in."""
    if one == other:
        return
    tables = [value._asdict() if hasattr(value, "_asdict") else value for value in (one, other)]
    if not all(isinstance(table, Mapping) for table in tables):
        yield path
        return
    first, second = tables
    for key in sorted(first.keys() | second.keys()):
        missing = object()
        yield from differences(first.get(key, missing), second.get(key, missing), (*path, key))
