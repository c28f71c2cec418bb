"""Blocking. Reads a configuration file and those it imports."""

from __future__ import annotations

import os
from typing import Any

from cradled.daemon.config import ConfigError


def read(path: str, *, must_exist: bool) -> list[dict[str, Any]]:
    """The tables of a file and of its imports, each file once, the file itself first.

    Raises ConfigError for what cannot be read or is no TOML.
    """
    if not must_exist and not os.path.exists(path):
        return []
    tables: list[dict[str, Any]] = []
    pending, seen = [os.path.abspath(path)], set()
    while pending:
        current = pending.pop(0)
        if current in seen:
            continue
        seen.add(current)
        table = parse(current)
        tables.append(table)
        for pattern in table.get("imports", []):
            pending += _expand(str(pattern), os.path.dirname(current))
    return tables


def parse(path: str) -> dict[str, Any]:
    """The tables of one file. Raises ConfigError."""
    import tomllib  # only a daemon that has a file pays for it

    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}") from error


def _expand(pattern: str, directory: str) -> list[str]:
    import glob

    full = os.path.join(directory, pattern)
    if not glob.has_magic(full):
        return [full]
    return sorted(glob.glob(full))
