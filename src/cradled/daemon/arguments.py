"""Pure. The daemon's command line, by hand: argparse would be a tenth of the start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

USAGE = """\
usage: cradled [flags]                 run the daemon
       cradled [flags] config default  print the built-in configuration
       cradled [flags] config dump     print the configuration in force

  -c, --config FILE       configuration file (/etc/cradled/config.toml)
  -a, --address SOCKET    gRPC socket (/run/cradled/cradled.sock); ttrpc gets SOCKET.ttrpc
      --root DIR          what survives a reboot (/var/lib/cradled)
      --state DIR         what does not (/run/cradled)
  -l, --log-level LEVEL   trace, debug, info, warn, error, fatal or panic
      --exit-idle SECONDS stop after so long without clients and running containers
  -v, --version           print the version
  -h, --help              print this
"""

_WITH_VALUE = {
    "-c": "config", "--config": "config",
    "-a": "address", "--address": "address",
    "--root": "root", "--state": "state",
    "-l": "log_level", "--log-level": "log_level",
    "--exit-idle": "exit_idle",
}  # fmt: skip
_COMMANDS = {(): "serve", ("config", "default"): "default", ("config", "dump"): "dump"}


class UsageError(Exception):
    """The command line cannot be understood; the text says why."""


class Arguments(NamedTuple):
    """``command`` is serve, default, dump, version or help; empty texts were not given."""

    command: str = "serve"
    config: str = ""
    address: str = ""
    root: str = ""
    state: str = ""
    log_level: str = ""
    exit_idle: float = 0.0


def parse(words: Sequence[str]) -> Arguments:
    """Take a command line apart (without the program's name). Raises UsageError."""
    values: dict[str, str] = {}
    command: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word in ("-h", "--help"):
            return Arguments("help")
        if word in ("-v", "--version"):
            return Arguments("version")
        name, equals, value = word.partition("=")
        field = _WITH_VALUE.get(name)
        if field is None:
            if word.startswith("-"):
                raise UsageError(f"unknown flag {word}")
            command.append(word)
            continue
        if not equals:
            if not rest:
                raise UsageError(f"flag {name} needs a value")
            value = rest.pop(0)
        values[field] = value
    if tuple(command) not in _COMMANDS:
        raise UsageError(f"unknown command {' '.join(command)}")
    idle = _seconds(values.pop("exit_idle", "0"))
    return Arguments(_COMMANDS[tuple(command)], exit_idle=idle, **values)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UsageError(f"--exit-idle wants a number of seconds, not {text}")
    return value
