"""Blocking. Reads a configuration file and those it imports, and puts them together."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from cradled.daemon.config import (
    DEFAULT_IMPORTS,
    ENTRIES,
    STREAM_PROCESSORS,
    TIMEOUTS,
    Config,
    ConfigError,
    Table,
    build,
)

if TYPE_CHECKING:
    from cradled.daemon.config_check import Problem


class Known(NamedTuple):
    """What plugins there are: the class of each one's section by URI (None: it has no keys), and
    by URI and key why some keys have no effect."""

    sections: Mapping[str, type[Any] | None]
    inert: Mapping[str, Mapping[str, str]] = {}


class Source(NamedTuple):
    """One file as it was read."""

    path: str
    text: str
    tables: Table


def load(
    path: str, *, must_exist: bool, known: Callable[[], Known], strict: bool = False
) -> tuple[Config, list[Problem]]:
    """The configuration of a file and its imports, and what is to be said about them.

    Raises ConfigError that tells all that cannot be used; when ``strict``, all warnings too.
    """
    config, problems = examine(path, must_exist=must_exist, known=known)
    if bad := fatal(problems, strict):
        raise ConfigError("\n".join(map(str, bad)))
    return config, problems


def fatal(problems: Sequence[Problem], strict: bool) -> list[Problem]:
    """Those with which the daemon does not start."""
    levels = ("error", "warning") if strict else ("error",)
    return [problem for problem in problems if problem.level in levels]


def examine(
    path: str, *, must_exist: bool, known: Callable[[], Known]
) -> tuple[Config, list[Problem]]:
    """The configuration so far as it can be used, and every problem at once.

    ``known`` is only asked where there is a file.
    """
    problems: list[Problem] = []
    sources = _read(path, must_exist, problems)
    if not sources:
        return Config(), problems
    from cradled.daemon import config_check, migrate

    merged: Table = {}
    highest = 0
    for source in sources:
        try:
            version = migrate.version_of(source.tables)
            if highest and version > highest:
                text = f"imported config version {version} is newer than the file's own, {highest}"
                raise ConfigError(text)
            highest = highest or version
            lifted = migrate.lift(source.tables)
        except ConfigError as error:
            problems.append(config_check.Problem("error", str(error), file=source.path))
            continue
        for problem in config_check.problems(lifted, *known()):
            line = config_check.line_of(source.text, problem.path)
            problems.append(problem._replace(file=source.path, line=line))
        _merge(merged, lifted)
    if any(problem.level == config_check.ERROR for problem in problems):
        return Config(), problems
    return assemble(merged), problems


def assemble(tables: Table) -> Config:
    """The configuration that tables of version 4 give. Raises ConfigError."""
    values = {key: value for key, value in tables.items() if key in Config._fields}
    entries: dict[str, Any] = {
        name: {id: build(cls, one, f"{name}.{id}") for id, one in values.pop(name, {}).items()}
        for name, cls in ENTRIES.items()
    }
    entries["stream_processors"] = {**STREAM_PROCESSORS, **entries["stream_processors"]}
    if "timeouts" in values:
        values["timeouts"] = {**TIMEOUTS, **values["timeouts"]}
    config: Config = build(Config, values, "configuration")
    return config._replace(**entries)


def parse(path: str) -> Table:
    """The tables of one file. Raises ConfigError."""
    return _source(path).tables


def _source(path: str) -> Source:
    import tomllib  # only a daemon that has a file pays for it

    try:
        with open(path, "rb") as file:
            text = file.read().decode()
        return Source(path, text, tomllib.loads(text))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _read(path: str, must_exist: bool, problems: list[Problem]) -> list[Source]:
    """A file and its imports, each once, the file itself first."""
    sources: list[Source] = []
    path = os.path.abspath(path)
    pending, seen = [path], set()
    if not must_exist and not os.path.exists(path):
        pending = [found for pattern in DEFAULT_IMPORTS for found in _expand(pattern, "/")]
    while pending:
        current = pending.pop(0)
        if os.path.realpath(current) in seen:
            continue
        seen.add(os.path.realpath(current))
        try:
            source = _source(current)
        except ConfigError as error:
            from cradled.daemon.config_check import Problem

            problems.append(Problem("error", str(error)))
            continue
        sources.append(source)
        imports = source.tables.get("imports", DEFAULT_IMPORTS if current == path else ())
        if isinstance(imports, (list, tuple)):
            directory = os.path.dirname(current)
            pending += [found for pattern in imports for found in _expand(str(pattern), directory)]
    return sources


def _expand(pattern: str, directory: str) -> list[str]:
    full = os.path.join(directory, pattern)
    if not any(c in full for c in "*?["):
        return [full]
    if "*" not in os.path.dirname(full) and not os.path.isdir(os.path.dirname(full)):
        return []
    import glob

    return sorted(glob.glob(full))


def _merge(into: Table, tables: Mapping[str, Any]) -> None:
    """Tables merge key by key, lists append, all else is replaced; so are whole entries."""
    for key, value in tables.items():
        if key in ENTRIES and isinstance(value, dict):
            into[key] = {**into.get(key, {}), **value}
        else:
            _merge_value(into, key, value)


def _merge_value(into: Table, key: str, value: Any) -> None:
    old = into.get(key)
    if isinstance(old, dict) and isinstance(value, dict):
        for name, one in value.items():
            _merge_value(old, name, one)
    elif isinstance(old, list) and isinstance(value, list):
        into[key] = [*old, *value]
    else:
        into[key] = value
