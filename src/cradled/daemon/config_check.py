"""Pure. What is wrong, and what is without effect, in a configuration's tables.

A key that nobody knows is told with the nearest that is known. A section of a plugin this daemon
does not have is left alone, because one file serves many daemons.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from cradled.daemon.config import ENTRIES, TIMEOUTS, Cgroup, Config, ConfigError, Debug, build
from cradled.daemon.config_text import dotted
from cradled.daemon.spelling import nearest
from cradled.plugin.types import SERVER

ERROR = "error"
WARNING = "warning"
NOTE = "note"

Path = tuple[str, ...]

_PARTS: Mapping[str, type[Any]] = {"cgroup": Cgroup, "debug": Debug}
_TOP_LEVEL = frozenset({"version", *Config._fields})
_NEARLY = 2


class Problem(NamedTuple):
    """``path`` is the key with its tables, ``near`` what may have been meant; line 0 is unknown.

    An error stops the daemon; a warning does under ``--strict``; a note never does.
    """

    level: str
    text: str
    path: Path = ()
    near: str = ""
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.line else f"{self.file}: " if self.file else ""
        key = f": {dotted(self.path)}" if self.path else ""
        meant = self.near if '"' in self.near else f'"{self.near}"'
        near = f" (did you mean {meant}?)" if self.near else ""
        return f"{place}{self.level}: {self.text}{key}{near}"

    @property
    def fields(self) -> dict[str, Any]:
        """For the log, beside the text."""
        told = {"file": self.file, "line": self.line, "nearest": self.near}
        found = {"key": dotted(self.path)} if self.path else {}
        return found | {key: value for key, value in told.items() if value}


def problems(
    tables: Mapping[str, Any],
    sections: Mapping[str, type[Any] | None],
    inert: Mapping[str, Mapping[str, str]],
) -> list[Problem]:
    """All that is to be said about one file, lifted to version 4.

    ``sections`` has the class of each plugin's section, ``inert`` why some of their keys have no
    effect.
    """
    gone = inert.get("", {})
    found = [
        Problem(WARNING, "Ignoring unknown key in TOML", (key,), _moved(key, _TOP_LEVEL))
        for key in tables.keys() - _TOP_LEVEL - gone.keys()
    ]
    found += [_no_effect((key,), why) for key, why in gone.items() if tables.get(key)]

    own = {key: value for key, value in tables.items() if key in Config._fields}
    apart = {"plugins", *_PARTS, *ENTRIES}
    found += _wrong(Config, {k: v for k, v in own.items() if k not in apart}, (), "configuration")
    for key in apart & own.keys():
        if not isinstance(own[key], dict):
            found.append(Problem(ERROR, f"{key} must be a table, not {own[key]!r}", (key,)))
            continue
        if key in _PARTS:
            found += _section(_PARTS[key], own[key], (key,), "Ignoring unknown key in TOML")
        elif key in ENTRIES:
            found += _entries(ENTRIES[key], own[key], key)
        else:
            found += _plugins(own[key], sections, inert)
    found += _timeouts(own.get("timeouts", {}), inert.get("timeouts", {}))
    return found


def _plugins(
    tables: Mapping[str, Any],
    sections: Mapping[str, type[Any] | None],
    inert: Mapping[str, Mapping[str, str]],
) -> Iterator[Problem]:
    for uri, table in tables.items():
        path = ("plugins", uri)
        if uri not in sections:
            near = nearest(uri, sections, _NEARLY)
            if near:
                yield Problem(NOTE, "no such plugin here", path, near)
            continue
        yield from _section(
            sections[uri], table, path, "Ignoring unknown key in TOML for plugin", uri
        )
        for key, reason in inert.get(uri, {}).items():
            cls = sections[uri]
            if cls is not None and key in table and not _is_default(cls, key, table[key]):
                yield _no_effect((*path, key), reason)


def _is_default(cls: type[Any], key: str, value: Any) -> bool:
    value = tuple(value) if isinstance(value, list) else value
    return bool(value == cls._field_defaults[key])


def _section(
    cls: type[Any] | None, table: Mapping[str, Any], path: Path, unknown: str, where: str = ""
) -> Iterator[Problem]:
    """Keys nobody knows, and values that are wrong, of one table."""
    known: Iterable[str] = cls._fields if cls is not None else ()
    for key in sorted(table.keys() - set(known)):
        yield Problem(WARNING, unknown, (*path, key), nearest(key, known))
    if cls is not None:
        yield from _wrong(cls, table, path, where or dotted(path))


def _wrong(cls: type[Any], table: Mapping[str, Any], path: Path, where: str) -> Iterator[Problem]:
    for key in cls._fields:
        if key in table:
            try:
                build(cls, {key: table[key]}, where)
            except ConfigError as error:
                yield Problem(ERROR, str(error), (*path, key))


def _entries(cls: type[Any], tables: Mapping[str, Any], name: str) -> Iterator[Problem]:
    for id, table in tables.items():
        path = (name, id)
        if isinstance(table, dict):
            yield from _section(cls, table, path, "Ignoring unknown key in TOML")
        else:
            yield Problem(ERROR, f"{dotted(path)} must be a table, not {table!r}", path)


def _moved(key: str, known: Iterable[str]) -> str:
    """Where a table of older versions is now, or else the nearest key."""
    if key in ("grpc", "ttrpc", "metrics"):
        return dotted(("plugins", f"{SERVER}.{key}"))
    return nearest(key, known)


def _timeouts(table: Any, inert: Mapping[str, str]) -> Iterator[Problem]:
    if not isinstance(table, dict):
        return
    for name in sorted(table):
        path = ("timeouts", name)
        if name not in TIMEOUTS:
            yield Problem(WARNING, "Ignoring unknown key in TOML", path, nearest(name, TIMEOUTS))
        elif name in inert and table[name] != TIMEOUTS[name]:
            yield _no_effect(path, inert[name])


def _no_effect(path: Path, reason: str) -> Problem:
    return Problem(NOTE, f"no effect: {reason}", path)


def line_of(text: str, path: Path) -> int:
    """The line of a file where a key is given, 0 where that cannot be told.

    A key that was moved when the file was lifted is found by its last part, if only one line has
    such.
    """
    import tomllib

    table: Path = ()
    best, longest = 0, 0
    alike: list[int] = []
    for number, line in enumerate(text.splitlines(), 1):
        word = line.strip()
        try:
            if word.startswith("["):
                found = table = _chain(tomllib.loads(word))
            elif "=" in word:
                found = (*table, *_chain(tomllib.loads(f"{word.partition('=')[0]} = 0")))
            else:
                continue
        except tomllib.TOMLDecodeError:  # within a text or list of many lines
            continue
        if found == path[: len(found)] and len(found) > longest:
            best, longest = number, len(found)
        if found[-1:] == path[-1:]:
            alike.append(number)
    if longest > len(path) - 2 and best:
        return best
    return alike[0] if len(alike) == 1 else 0


def _chain(tables: Any) -> Path:
    """The one key of each nested table."""
    path: Path = ()
    while tables:
        if isinstance(tables, list):
            tables = tables[0]
            continue
        if not isinstance(tables, dict):
            break
        key = next(iter(tables))
        path, tables = (*path, key), tables[key]
    return path
