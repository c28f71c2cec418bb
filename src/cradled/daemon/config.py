"""Pure. The daemon's configuration as it runs with it.

    config_file    reads files and puts them together
    migrate        lifts older layouts to this one
    config_check   tells what is wrong in a file
    config_text    writes one

Only this module is needed by a daemon that has no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from cradled.daemon.durations import Duration, seconds
from cradled.plugin.types import Registration

VERSION = 4

DEFAULT_PATH = "/etc/cradled/config.toml"
DEFAULT_IMPORTS = ("/etc/cradled/conf.d/*.toml",)
DEFAULT_ROOT = "/var/lib/cradled"
DEFAULT_STATE = "/run/cradled"
DEFAULT_ADDRESS = "/run/cradled/cradled.sock"

LEVELS = ("trace", "debug", "info", "warn", "error", "fatal", "panic")

FORMATS = ("text", "json")

TIMEOUTS = {
    "io.containerd.timeout.bolt.open": "0s",
    "io.containerd.timeout.cri.defercleanup": "1m0s",
    "io.containerd.timeout.metrics.shimstats": "2s",
    "io.containerd.timeout.proxy.call": "5m0s",
    "io.containerd.timeout.shim.cleanup": "5s",
    "io.containerd.timeout.shim.load": "5s",
    "io.containerd.timeout.shim.shutdown": "3s",
    "io.containerd.timeout.task.state": "2s",
    "io.cradled.timeout.runtime.command": "2m0s",
    "io.cradled.timeout.shim.start": "1m0s",
}

Table = dict[str, Any]


class ConfigError(Exception):
    """The configuration cannot be used; the text says why and where."""


class Cgroup(NamedTuple):
    """``path``: the cgroup that the daemon joins, below each hierarchy's root; empty: it stays."""

    path: str = ""


class Debug(NamedTuple):
    """An empty level is ``info``, an empty format ``text``."""

    level: str = "info"
    format: str = "text"
    log_trace_id: bool = False

    def check(self) -> None:
        """Raises ValueError for words that no log knows."""
        if self.level not in ("", *LEVELS):
            raise ValueError(f'unknown log level "{self.level}" ({", ".join(LEVELS)})')
        if self.format not in ("", *FORMATS):
            raise ValueError(f'unknown log format "{self.format}" ({", ".join(FORMATS)})')


class ProxyPlugin(NamedTuple):
    """A plugin that another process serves at ``address``."""

    type: str = ""
    address: str = ""
    platform: str = ""
    exports: Mapping[str, str] = {}
    capabilities: tuple[str, ...] = ()


class StreamProcessor(NamedTuple):
    """A program that makes content of media type ``returns`` of what it ``accepts``."""

    accepts: tuple[str, ...] = ()
    returns: str = ""
    path: str = ""
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()


def _decoder(suffix: str) -> StreamProcessor:
    plain = f"application/vnd.oci.image.layer.v1.tar{suffix}"
    keys = "/etc/cradled/ocicrypt"
    return StreamProcessor(
        accepts=(f"{plain}+encrypted",),
        returns=plain,
        path="ctd-decoder",
        args=("--decryption-keys-path", f"{keys}/keys"),
        env=(f"OCICRYPT_KEYPROVIDER_CONFIG={keys}/ocicrypt_keyprovider.conf",),
    )


STREAM_PROCESSORS = {
    "io.containerd.ocicrypt.decoder.v1.tar": _decoder(""),
    "io.containerd.ocicrypt.decoder.v1.tar.gzip": _decoder("+gzip"),
}


class Config(NamedTuple):
    """What the daemon runs with. ``plugins`` has the table of each plugin by its URI."""

    root: str = DEFAULT_ROOT
    state: str = DEFAULT_STATE
    temp: str = ""
    oom_score: int = 0
    disabled_plugins: tuple[str, ...] = ()
    required_plugins: tuple[str, ...] = ()
    imports: tuple[str, ...] = DEFAULT_IMPORTS
    cgroup: Cgroup = Cgroup()
    debug: Debug = Debug()
    timeouts: Mapping[str, Duration] = TIMEOUTS
    stream_processors: Mapping[str, StreamProcessor] = STREAM_PROCESSORS
    proxy_plugins: Mapping[str, ProxyPlugin] = {}
    plugins: Mapping[str, Table] = {}

    def section(self, registration: Registration) -> Any:
        """The configuration object of a plugin. Raises ConfigError for what cannot be used."""
        cls, table = registration.config, self.plugins.get(registration.uri)
        if cls is None:
            return None
        return cls() if table is None else build(cls, table, registration.uri)

    def timeout(self, name: str) -> float:
        """Seconds for what is called ``io.<one of us>.timeout.<name>``; 0 is no limit."""
        uri = f"io.containerd.timeout.{name}"
        if uri not in TIMEOUTS:
            uri = f"io.cradled.timeout.{name}"
        return seconds(self.timeouts.get(uri, TIMEOUTS[uri]))


ENTRIES: Mapping[str, type[Any]] = {
    "proxy_plugins": ProxyPlugin,
    "stream_processors": StreamProcessor,
}
"""What the tables in these tables are."""


def build(cls: type[Any], table: Mapping[str, Any], where: str) -> Any:
    """An instance of a configuration's named tuple; keys it does not know are left out.

    Raises ConfigError for a value whose type is not that of the default, and for one that the
    tuple's own ``check`` refuses with ValueError.
    """
    values: Table = {}
    for name, default in cls._field_defaults.items():
        if name in table:
            place = f'{where}: key "{name}"'
            values[name] = _value(table[name], default, cls.__annotations__[name], place)
    made = cls(**values)
    if hasattr(made, "check"):
        try:
            made.check()
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from None
    return made


def _value(value: Any, default: Any, annotation: Any, place: str) -> Any:
    if type(value) is int and isinstance(default, float):
        return float(value)
    if hasattr(default, "_fields") and isinstance(value, dict):
        return build(type(default), value, place)
    if isinstance(value, list):
        value = tuple(value)
    # The module's annotations are texts; a name of ours in another module's is not.
    kind = str(getattr(annotation, "__forward_arg__", annotation))
    fits = type(value) is type(default)
    if kind == "tuple[str, ...]":
        fits = fits and all(isinstance(item, str) for item in value)
    elif kind == "Mapping[str, str]" or kind == "Mapping[str, Duration]":
        fits = fits and all(isinstance(item, str) for item in value.values())
    if not fits:
        raise ConfigError(f"{place} wants {_wanted(default, kind)}, not {value!r}")
    if kind in ("Duration", "Mapping[str, Duration]"):
        _check_durations(value, place)
    return value


def _check_durations(value: Any, place: str) -> None:
    for text in value.values() if isinstance(value, dict) else (value,):
        try:
            seconds(text)
        except ValueError as error:
            raise ConfigError(f"{place}: {error}") from None


def _wanted(default: Any, kind: str) -> str:
    if kind == "tuple[str, ...]":
        return "a list of texts"
    if kind in ("Mapping[str, str]", "Mapping[str, Duration]"):
        return "a table of texts"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    words |= {tuple: "a list"}
    return words.get(type(default), "a table")
