"""Pure. Configurations written as TOML.

The order is that of the tables given, but for ``version``, which is first, and ``plugins``, which
are last: what was written once is written the same again after it was read.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import Any

from cradled.daemon.config import VERSION, Config, Table, build


def full(config: Config, sections: Mapping[str, type[Any] | None]) -> str:
    """The whole configuration; ``sections`` has the class of each plugin's section."""
    tables: Table = {"version": VERSION, **_plain(config)}
    plugins: Table = dict(tables["plugins"])
    for uri, cls in sections.items():
        if cls is not None:
            table = plugins.get(uri, {})
            plugins[uri] = {**table, **_plain(build(cls, table, uri))}
    tables["plugins"] = plugins
    return text(tables)


def text(tables: Mapping[str, Any]) -> str:
    """Tables as a file."""
    plain = sorted(key for key, value in tables.items() if not isinstance(value, dict))
    plain.sort(key=lambda key: key != "version")
    lines = [f"{_key(key)} = {_value(tables[key])}" for key in plain]
    nested = sorted(tables.keys() - set(plain))
    nested.sort(key=lambda key: key == "plugins")
    for key in nested:
        table = tables[key]
        if key == "plugins":
            table = {uri: table[uri] for uri in sorted(table)}
        lines += _section(_key(key), table)
    return "\n".join(lines) + "\n"


def dotted(path: Iterable[str]) -> str:
    """A key with those of the tables it is in, as it may stand in a file."""
    return ".".join(map(_key, path))


def _plain(value: Any) -> Any:
    """Named tuples as tables, all the way down."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return value


def _section(name: str, table: Mapping[str, Any]) -> list[str]:
    plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
    lines = ["", f"[{name}]", *(f"{_key(key)} = {_value(value)}" for key, value in plain.items())]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += _section(f"{name}.{_key(key)}", value)
    return lines


def _key(key: str) -> str:
    bare = key and all(c.isascii() and (c.isalnum() or c in "-_") for c in key)
    return key if bare else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, str):
        return '"' + "".join(map(_escape, value)) + '"'
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    return str(value)


def _escape(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if ord(character) < 0x20 or ord(character) == 0x7F:
        return f"\\u{ord(character):04X}"
    return character
