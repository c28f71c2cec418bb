"""Blocking. Which control groups the host has, and which controllers are where."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from cradled.cli.doctor.finding import FAIL, OK, WARN, Finding

AREA = "cgroups"

_NEEDED = {
    "cpu": "processor shares and quotas",
    "memory": "memory limits and out-of-memory events",
    "pids": "limits of processes",
}
_OPTIONAL = ("cpuset", "io", "hugetlb")
_LEGACY_NAMES = {"io": "blkio"}
_ADVICE = "enable the controller (kernel command line, or cgroup_enable=)"


def findings(root: str = "/sys/fs/cgroup") -> Iterator[Finding]:
    if os.path.exists(f"{root}/cgroup.controllers"):
        yield Finding(AREA, "hierarchy", OK, "unified (version 2)")
        yield from _controllers(_words(f"{root}/cgroup.controllers"), legacy=False)
        yield from _writable([root])
        return
    legacy = _legacy(root)
    if not legacy:
        advice = "mount cgroup2 at /sys/fs/cgroup"
        yield Finding(AREA, "hierarchy", FAIL, "none is mounted", advice)
        return
    hybrid = os.path.exists(f"{root}/unified/cgroup.procs")
    text = "hybrid (version 1 with an empty version 2)" if hybrid else "legacy (version 1)"
    yield Finding(AREA, "hierarchy", OK, text)
    yield from _controllers(legacy.keys(), legacy=True)
    if not {"devices", "freezer"} <= legacy.keys():
        missing = ", ".join(sorted({"devices", "freezer"} - legacy.keys()))
        yield Finding(AREA, "legacy", WARN, f"{missing} not mounted", "mount all controllers")
    yield from _writable(sorted(set(legacy.values())))


def _legacy(root: str) -> dict[str, str]:
    """The controllers of version 1 and where each is mounted."""
    found: dict[str, str] = {}
    for name in sorted(os.listdir(root)) if os.path.isdir(root) else ():
        directory = f"{root}/{name}"
        if os.path.exists(f"{directory}/cgroup.procs") and name not in ("unified", "systemd"):
            found |= {controller: directory for controller in name.split(",")}
    return found


def _controllers(there: Iterable[str], *, legacy: bool) -> Iterator[Finding]:
    known = set(there)
    names = {name: _LEGACY_NAMES.get(name, name) if legacy else name for name in _OPTIONAL}
    for name, purpose in _NEEDED.items():
        if name in known:
            yield Finding(AREA, name, OK, "there")
        else:
            yield Finding(AREA, name, WARN, f"not there: no {purpose}", _ADVICE)
    optional = [name for name in names.values() if name in known]
    yield Finding(AREA, "others", OK, ", ".join(optional) or "none")


def _writable(directories: list[str]) -> Iterator[Finding]:
    if os.geteuid() != 0:
        return
    read_only = [one for one in directories if not os.access(one, os.W_OK)]
    if read_only:
        text = f"read only: {', '.join(read_only)}"
        advice = "run where cgroups can be written (a privileged container has them)"
        yield Finding(AREA, "access", FAIL, text, advice)
    else:
        yield Finding(AREA, "access", OK, "writable")


def _words(path: str) -> list[str]:
    with open(path, encoding="ascii") as file:
        return file.read().split()
