"""Pure. The daemon's configuration: versions 2 to 4 are read, version 4 is written.

Older layouts are lifted to version 4 as tables before anything is taken from them. What this
daemon does not know is warned about with the nearest known key; a section of a plugin it does not
have is left alone, because one file serves many daemons.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from cradled.plugin.types import SERVER, Registration

VERSION = 4

DEFAULT_PATH = "/etc/cradled/config.toml"
DEFAULT_ROOT = "/var/lib/cradled"
DEFAULT_STATE = "/run/cradled"
DEFAULT_ADDRESS = "/run/cradled/cradled.sock"

LEVELS = ("trace", "debug", "info", "warn", "error", "fatal", "panic")

FORMATS = ("text", "json")

Table = dict[str, Any]

_MOVED_SECTIONS = {
    "io.containerd.internal.v1.restart": "io.containerd.monitor.container.v1.restart",
}


class ConfigError(Exception):
    """The configuration cannot be used; the text says why and where."""


class Debug(NamedTuple):
    level: str = "info"
    format: str = "text"


class Config(NamedTuple):
    """What the daemon runs with. ``plugins`` has the table of each plugin by its URI."""

    root: str = DEFAULT_ROOT
    state: str = DEFAULT_STATE
    temp: str = ""
    oom_score: int = 0
    disabled_plugins: tuple[str, ...] = ()
    required_plugins: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    debug: Debug = Debug()
    plugins: Mapping[str, Table] = {}

    def section(self, registration: Registration) -> Any:
        """The configuration object of a plugin. Raises ConfigError for a value of a wrong type."""
        if registration.config is None:
            return None
        return build(registration.config, self.plugins.get(registration.uri, {}), registration.uri)


_TOP_LEVEL = frozenset(Config._fields)
_ACCEPTED = {"version", "proxy_plugins", "stream_processors", "timeouts", "cgroup"}
"""Known in the original's files but of no effect on what this daemon does so far."""


def from_tables(tables: Iterable[Table]) -> tuple[Config, list[str]]:
    """Merge parsed files, later ones over earlier ones; also the warnings to be logged.

    Raises ConfigError for a version above 4 or a value of a wrong type.
    """
    merged: Table = {}
    warnings: list[str] = []
    highest: int | None = None
    for table in tables:
        version = _version(table)
        if highest is not None and version > highest:
            raise ConfigError(f"imported config version {version} is newer than the file's own")
        highest = version if highest is None else highest
        _merge(merged, lift(table))
    values: Table = {}
    for key, value in merged.items():
        if key in _TOP_LEVEL:
            values[key] = value
        elif key not in _ACCEPTED:
            warnings.append(_unknown(key, _TOP_LEVEL | _ACCEPTED, "configuration"))
    debug = values.pop("debug", {})
    for key in debug.keys() - {"level", "format", "log_trace_id"}:
        warnings.append(_unknown(key, ["level", "format"], "debug"))
    chosen = {key: debug[key] for key in ("level", "format") if key in debug}
    config: Config = build(Config, values, "configuration")
    return config._replace(debug=checked(build(Debug, chosen, "debug"))), warnings


def checked(debug: Debug) -> Debug:
    """The same. Raises ConfigError for words that no log knows."""
    if debug.level not in LEVELS:
        raise ConfigError(f'unknown log level "{debug.level}" ({", ".join(LEVELS)})')
    if debug.format not in FORMATS:
        raise ConfigError(f'unknown log format "{debug.format}" ({", ".join(FORMATS)})')
    return debug


def check_sections(config: Config, registrations: Iterable[Registration]) -> list[str]:
    """Warnings about keys that a plugin we do have does not know."""
    warnings = []
    for registration in registrations:
        table = config.plugins.get(registration.uri)
        if table is None:
            continue
        known: Iterable[str] = registration.config._fields if registration.config else ()
        for key in table.keys() - set(known):
            warnings.append(_unknown(key, known, registration.uri))
    return warnings


def lift(table: Table) -> Table:
    """A file's table in the layout of version 4."""
    version = _version(table)
    if version > VERSION:
        text = f"expected containerd config version equal to or less than {VERSION}, got {version}"
        raise ConfigError(text)
    lifted: Table = {key: value for key, value in table.items() if key != "plugins"}
    plugins = {_MOVED_SECTIONS.get(uri, uri): t for uri, t in table.get("plugins", {}).items()}
    if version < VERSION:
        _lift_servers(lifted, plugins)
    lifted["version"] = VERSION
    lifted["plugins"] = plugins
    return lifted


def _lift_servers(lifted: Table, plugins: dict[str, Table]) -> None:
    """Up to version 3 the listeners were top-level tables."""
    grpc: Table = lifted.pop("grpc", {})
    tcp = {k.removeprefix("tcp_"): v for k, v in grpc.items() if k.startswith("tcp_")}
    local = {k: v for k, v in grpc.items() if not k.startswith("tcp_")}
    metrics: Table = lifted.pop("metrics", {})
    histogram = {k: metrics.pop(k) for k in ["grpc_histogram"] if k in metrics}
    debug: Table = dict(lifted.get("debug", {}))
    sections = {
        f"{SERVER}.grpc": local,
        f"{SERVER}.grpc-tcp": tcp,
        f"{SERVER}.ttrpc": lifted.pop("ttrpc", {}),
        f"{SERVER}.metrics": metrics,
        f"{SERVER}.debug": {k: debug.pop(k) for k in ("address", "uid", "gid") if k in debug},
        "io.containerd.metrics.v1.grpc-prometheus": histogram,
    }
    if debug:
        lifted["debug"] = debug
    for uri, section in sections.items():
        if section:
            plugins[uri] = {**section, **plugins.get(uri, {})}


def _version(table: Table) -> int:
    version = table.get("version", 1)
    if not isinstance(version, int):
        raise ConfigError(f"version must be a number, not {version!r}")
    return version


def _merge(into: Table, table: Mapping[str, Any]) -> None:
    """Tables merge key by key, lists append, all else is replaced."""
    for key, value in table.items():
        old = into.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            _merge(old, value)
        elif isinstance(old, list) and isinstance(value, list):
            into[key] = [*old, *value]
        else:
            into[key] = _copy(value)


def _copy(value: Any) -> Any:
    return {k: _copy(v) for k, v in value.items()} if isinstance(value, dict) else value


def build(cls: type[Any], table: Mapping[str, Any], where: str) -> Any:
    """An instance of a configuration's named tuple; keys it does not know are left out.

    Raises ConfigError for a value whose type is not that of the default.
    """
    values: Table = {}
    for name, default in cls._field_defaults.items():
        if name not in table:
            continue
        value = table[name]
        if type(value) is int and isinstance(default, float):
            value = float(value)
        elif isinstance(value, list):
            value = tuple(value)
        if type(value) is not type(default):
            kind = type(default).__name__
            raise ConfigError(f'{where}: key "{name}" wants a {kind}, not {value!r}')
        values[name] = value
    return cls(**values)


def _unknown(key: str, known: Iterable[str], where: str) -> str:
    near = nearest(key, known)
    hint = f' (did you mean "{near}"?)' if near else ""
    return f'Ignoring unknown key "{key}" in {where}{hint}'


def nearest(key: str, known: Iterable[str]) -> str:
    """The known key fewest edits away, at most a third of its length; empty when none is near."""
    best, limit = "", len(key) // 3 + 1
    for candidate in sorted(known):
        distance = _edits(key, candidate)
        if distance < limit:
            best, limit = candidate, distance
    return best


def _edits(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


def to_toml(config: Config, registrations: Iterable[Registration]) -> str:
    """The whole configuration as a version 4 file, with the sections of all our plugins."""
    top: Table = {"version": VERSION}
    for name in _TOP_LEVEL - {"debug", "plugins"}:
        top[name] = getattr(config, name)
    lines = [
        f"{key} = {_value(top[key])}" for key in ("version", *sorted(top.keys() - {"version"}))
    ]
    lines += ["", "[debug]"]
    lines += [f"{key} = {_value(getattr(config.debug, key))}" for key in ("level", "format")]
    sections = {uri: dict(table) for uri, table in config.plugins.items()}
    for registration in registrations:
        if registration.config is not None:
            known = config.section(registration)._asdict()
            sections[registration.uri] = {**sections.get(registration.uri, {}), **known}
    lines += ["", "[plugins]"]
    for uri in sorted(sections):
        lines += _section(f"plugins.{_value(uri)}", sections[uri])
    return "\n".join(lines) + "\n"


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
    return str(value)


def _escape(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if ord(character) < 0x20 or ord(character) == 0x7F:
        return f"\\u{ord(character):04X}"
    return character
