"""Blocking. Which daemon this is: an id kept for good, and the process."""

from __future__ import annotations

import os

_LONGEST = 256


def server_uuid(directory: str) -> str:
    """The id of this root, made when there is none, or one that was damaged."""
    path = f"{directory}/uuid"
    try:
        with open(path, "rb") as file:
            found = file.read(_LONGEST).decode("ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        found = ""
    if found and found.isprintable():
        return found
    with open("/proc/sys/kernel/random/uuid", encoding="ascii") as source:
        made = source.read().strip()
    os.makedirs(directory, mode=0o700, exist_ok=True)
    with open(f"{path}.new", "w", encoding="ascii") as file:
        file.write(made)
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{path}.new", path)
    return made


def pid_namespace() -> int:
    """The inode that names this process's pid namespace; 0 where it cannot be read."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0
