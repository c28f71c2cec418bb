"""Pure. The daemon's command line, by hand: argparse would be a tenth of the start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

USAGE = """\
usage: cradled [flags]                        run the daemon
       cradled [flags] config default         print the built-in configuration
       cradled [flags] config dump            print the configuration in force
       cradled [flags] config migrate [FILE]  print a file in the layout of the newest version
       cradled [flags] config check [FILE]    tell all that is wrong in a file and its imports
       cradled [flags] publish --topic TOPIC --namespace NAME
                                              publish the event on stdin (a serialised Any)
       cradled [flags] fsck [--verify] [--repair] [--json] [--explain [PATH|ID]]
                                              check all that is kept; tell what it is; repair it
       cradled [flags] backup FILE            copy the metadata, whoever uses it meanwhile
       cradled [flags] restore FILE           put a backup back; nothing that is there is removed
       cradled [flags] serve-snapshotter NAME be a plugin of other daemons: serve a snapshotter of
                                              ours, kept in --root, at --address
       cradled oci-hook PROGRAM [ARG...]      run a program as an OCI hook, the container's state
                                              on stdin: {{id}} {{bundle}} {{rootfs}} {{pid}}
                                              {{status}} {{annotation "KEY"}} in words and
                                              environment are replaced

  -c, --config FILE       configuration file (/etc/cradled/config.toml)
  -a, --address SOCKET    gRPC socket (/run/cradled/cradled.sock); ttrpc gets SOCKET.ttrpc
      --root DIR          what survives a reboot (/var/lib/cradled)
      --state DIR         what does not (/run/cradled)
  -l, --log-level LEVEL   trace, debug, info, warn, error, fatal or panic
      --strict            refuse a configuration with keys that nobody knows
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
    "--topic": "topic", "--namespace": "namespace",
}  # fmt: skip
_COMMANDS = {
    (): "serve",
    ("config", "default"): "default",
    ("config", "dump"): "dump",
    ("config", "migrate"): "migrate",
    ("config", "check"): "check",
    ("publish",): "publish",
}
_SNAPSHOTTER = "serve-snapshotter"
_APART = ("fsck", "backup", "restore")  # all that follows is their own
_WITH_FILE = ("migrate", "check")
_OF_PUBLISH = ("topic", "namespace")


class UsageError(Exception):
    """The command line cannot be understood; the text says why."""


class Arguments(NamedTuple):
    """``command`` is serve, default, dump, migrate, check, publish, fsck, backup, restore, hook,
    serve-snapshotter, version or help; empty texts were not given. ``operands`` are the words of a
    hook's program or of a command that takes its own, or the snapshotter."""

    command: str = "serve"
    config: str = ""
    address: str = ""
    root: str = ""
    state: str = ""
    log_level: str = ""
    strict: bool = False
    exit_idle: float = 0.0
    topic: str = ""
    namespace: str = ""
    operands: tuple[str, ...] = ()


def parse(words: Sequence[str]) -> Arguments:
    """Take a command line apart (without the program's name). Raises UsageError."""
    values: dict[str, Any] = {}
    command: list[str] = []
    strict = False
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word in ("-h", "--help"):
            return Arguments("help")
        if word in ("-v", "--version"):
            return Arguments("version")
        if word == "oci-hook" and not command:
            return Arguments("hook", operands=tuple(rest[1:] if rest[:1] == ["--"] else rest))
        if word in _APART and not command:
            command, rest = [word, *rest], []
        elif word == "--strict":
            strict = True
        elif word.startswith("-"):
            field, value = _flag(word, rest)
            values[field] = value
        else:
            command.append(word)
    name, *operands = _command(command, values)
    for flag in _OF_PUBLISH:
        if flag in values and name != "publish":
            raise UsageError(f"flag --{flag} belongs to publish")
    idle = _seconds(values.pop("exit_idle", "0"))
    return Arguments(name, strict=strict, exit_idle=idle, operands=tuple(operands), **values)


def _flag(word: str, rest: list[str]) -> tuple[str, str]:
    """A flag's field and value; takes the next word if the value is there."""
    name, equals, value = word.partition("=")
    field = _WITH_VALUE.get(name)
    if field is None:
        raise UsageError(f"unknown flag {word}")
    if not equals:
        if not rest:
            raise UsageError(f"flag {name} needs a value")
        value = rest.pop(0)
    return field, value


def _command(words: list[str], values: dict[str, Any]) -> tuple[str, ...]:
    """A command's name and its operands."""
    if words and words[0] in _APART:
        return (*words,)
    if words[:1] == [_SNAPSHOTTER]:
        if len(words) != 2:
            raise UsageError(f"{_SNAPSHOTTER} wants the name of one snapshotter")
        return (*words,)
    name = _COMMANDS.get(tuple(words))
    if name is None and _COMMANDS.get(tuple(words[:2])) in _WITH_FILE and len(words) == 3:
        values["config"] = words.pop()
        name = _COMMANDS[tuple(words)]
    if name is None:
        raise UsageError(f"unknown command {' '.join(words)}")
    return (name,)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UsageError(f"--exit-idle wants a number of seconds, not {text}")
    return value
