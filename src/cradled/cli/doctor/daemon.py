"""Blocking. The daemon: its configuration, its sockets, whether it answers and what it says."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from cradled.cli.doctor.finding import FAIL, OK, WARN, Finding
from cradled.client import connect
from cradled.errors import Error
from cradled.linux import unix
from cradled.version import VERSION

CONFIG = "config"
DAEMON = "daemon"

DEFAULT_CONFIG = "/etc/cradled/config.toml"

_SECONDS = 20.0
_ANSWER_SECONDS = 5.0
_LEVELS = {"error": FAIL, "warning": WARN, "note": OK}
_PROBLEM = re.compile(r"(?:^|: )(error|warning|note): ")
_BEFORE_US = 1_700_000_000  # seconds since the epoch; no clock is right that says it is earlier


class Place(NamedTuple):
    """Where a daemon is, or would be."""

    address: str
    root: str
    state: str
    binary_name: str = ""


def configuration(path: str) -> tuple[Place | None, list[Finding]]:
    """What the file at ``path`` (empty: the usual one) says, by the daemon's own reading of it.

    The place is None when no daemon would start with it.
    """
    findings = list(_checked(path))
    done = _cradled(*(["--config", path] if path else []), "config", "dump")
    if done.returncode:
        text = done.stderr.strip().removeprefix("cradled: ") or "cannot be read"
        if not any(one.status == FAIL for one in findings):
            findings.append(Finding(CONFIG, "file", FAIL, text, "correct the file"))
        return None, findings
    return _place(tomllib.loads(done.stdout)), findings


def _checked(path: str) -> Iterator[Finding]:
    shown = path or DEFAULT_CONFIG
    if not path and not os.path.exists(shown):
        yield Finding(CONFIG, "file", OK, f"no {shown}: everything is as usual")
        return
    done = _cradled("config", "check", shown)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line]
    for line in lines:
        found = _PROBLEM.search(line)
        status = _LEVELS[found[1]] if found else WARN
        advice = "correct the file" if status == FAIL else ""
        yield Finding(CONFIG, "file", status, line, advice)
    if not lines:
        yield Finding(CONFIG, "file", OK, f"{shown} is good")


def _place(config: Mapping[str, Any]) -> Place:
    plugins: Mapping[str, Any] = config.get("plugins", {})
    grpc = plugins.get("io.containerd.server.v1.grpc", {})
    shims = plugins.get("io.containerd.shim.v1.manager", {})
    address = str(grpc.get("address", "")).removeprefix("unix://")
    return Place(address, config["root"], config["state"], shims.get("binary_name", ""))


def _cradled(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-m", "cradled.daemon", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)


def is_served(address: str) -> bool:
    """Whether anybody listens there."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(address)
        except OSError:
            return False
    return True


def sockets(address: str) -> Iterator[Finding]:
    """The socket of a daemon and the one beside it for ttrpc; then what the daemon says."""
    if not os.path.exists(address):
        text = f"{address} is not there: no daemon runs"
        yield Finding(DAEMON, "socket", OK, text)
        return
    for name, path in (("socket", address), ("ttrpc socket", f"{address}.ttrpc")):
        if os.path.exists(path):
            yield _socket(name, path)
    if is_served(address):
        yield from _answers(address)


def _socket(name: str, path: str) -> Finding:
    status = os.stat(path)
    mode = stat.S_IMODE(status.st_mode)
    text = f"{path}, {mode:04o}, uid {status.st_uid}, gid {status.st_gid}"
    if not stat.S_ISSOCK(status.st_mode):
        return Finding(DAEMON, name, FAIL, f"{text}: no socket", "remove it")
    if mode & 0o002:
        advice = f"chmod o-rwx {path}: who may connect is as good as root"
        return Finding(DAEMON, name, FAIL, text, advice)
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except PermissionError:
            return Finding(DAEMON, name, OK, f"{text}; not for this user", "run as root")
        except OSError as error:
            advice = "its daemon is gone; the next one replaces it"
            return Finding(DAEMON, name, WARN, f"{text}: {error.strerror}", advice)
        pid, uid, _ = unix.peer(probe.fileno())
    return Finding(DAEMON, name, OK, f"{text}; pid {pid}{_program(pid)} of uid {uid} listens")


def _program(pid: int) -> str:
    try:
        return f" ({os.path.basename(os.readlink(f'/proc/{pid}/exe'))})"
    except OSError:
        return ""


def _answers(address: str) -> Iterator[Finding]:
    began = time.monotonic()
    try:
        version, broken = asyncio.run(_ask(address))
    except (Error, OSError, TimeoutError) as error:
        text = f"does not answer: {error or 'it takes too long'}"
        yield Finding(DAEMON, "answer", FAIL, text, "look at its log, or restart it")
        return
    text = f"{version} after {(time.monotonic() - began) * 1000:.0f} ms"
    if "cradled" in version and not version.endswith(f"cradled.{VERSION}"):
        advice = "restart the daemon"
        yield Finding(DAEMON, "answer", WARN, f"{text}, but installed is {VERSION}", advice)
    else:
        yield Finding(DAEMON, "answer", OK, text)
    for plugin, reason in broken.items():
        yield Finding(DAEMON, "plugin", FAIL, f"{plugin}: {reason}", "look at the daemon's log")
    if not broken:
        yield Finding(DAEMON, "plugins", OK, "all that are wanted work")


async def _ask(address: str) -> tuple[str, dict[str, str]]:
    """The version, and the plugins that failed."""
    async with asyncio.timeout(_ANSWER_SECONDS), connect(address) as client:
        version = (await client.version()).version
        plugins = await client.plugins()
    failed = [one for one in plugins if one.error and "skip plugin" not in one.error]
    return version, {f"{one.type}.{one.id}": one.error for one in failed}


def clock() -> Finding:
    now = time.time()
    text = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    if now < _BEFORE_US:
        advice = "set the clock: certificates and expiry dates are judged by it"
        return Finding("clock", "time", FAIL, text, advice)
    return Finding("clock", "time", OK, text)
