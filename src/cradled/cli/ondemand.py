"""Blocking. A daemon for this user, started when it is wanted.

    $CRADLE_HOME, by default ~/.local/share/cradle of the user who runs
        cradle.sock   where it listens          root/   images, file systems, metadata
        daemon.log    what it says              state/  what runs
        start.lock    held while one is started logs/   output of containers, see ``run -d``

It stops by itself after ten minutes with nothing running. Whoever finds nobody listening takes the
lock and looks again, so two commands at once start one daemon. A daemon run by the system, at its
usual address, comes first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from cradled.cli.failures import Failure

SYSTEM_ADDRESS = "/run/cradled/cradled.sock"
IDLE_SECONDS = 600
ATTEMPTS = 3

_IDLE = ("--exit-idle", str(IDLE_SECONDS))
_PATH_LIMIT = 107
_BOOT_SECONDS = 20.0
_LOG_LINES = 5


def home() -> Path:
    """The directory of this user's daemon. By the user id, not ``$HOME``: sudo may keep that."""
    chosen = os.environ.get("CRADLE_HOME")
    if chosen:
        return Path(chosen).absolute()
    return Path(pwd.getpwuid(os.geteuid()).pw_dir, ".local/share/cradle")


def address(home: Path) -> str:
    """Raises Failure when the directory's name is too long for a socket in it."""
    path = str(home / "cradle.sock")
    excess = len(os.fsencode(path)) - _PATH_LIMIT
    if excess > 0:
        what = f'"{path}" is {excess} bytes too long for a socket'
        raise Failure(what, "set CRADLE_HOME to a shorter directory")
    return path


def addresses(home: Path) -> tuple[str, str]:
    """Where to look for a daemon, in this order."""
    return SYSTEM_ADDRESS, address(home)


def flags(home: Path) -> list[str]:
    """What makes ``cradled`` the daemon of this directory."""
    return [
        *("--root", str(home / "root")),
        *("--state", str(home / "state")),
        *("--address", address(home)),
    ]


def ensure(home: Path) -> None:
    """Have a daemon listening. Raises Failure when it does not start."""
    if os.geteuid() != 0:
        raise Failure("no daemon is running, and starting one needs root", "run as root")
    with _lock(home):
        if _listens(address(home)):
            return
        log = home / "daemon.log"
        begin = log.stat().st_size if log.exists() else 0
        with open(log, "ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-I", "-m", "cradled.daemon", *flags(home), *_IDLE],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                start_new_session=True,
            )
        _await_boot(process, home, begin)
    print(
        f"cradle: started a daemon in {home}; it stops after {IDLE_SECONDS // 60} idle minutes",
        file=sys.stderr,
    )


def _await_boot(process: subprocess.Popen[bytes], home: Path, log_begin: int) -> None:
    deadline = time.monotonic() + _BOOT_SECONDS
    while not _listens(address(home)):
        if process.poll() is not None:
            raise Failure(f"the daemon did not start: {_last_words(home, log_begin)}")
        if time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise Failure("the daemon does not answer", f"see {home}/daemon.log")
        time.sleep(0.005)


@contextlib.contextmanager
def _lock(home: Path) -> Iterator[None]:
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(home / "start.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


def _last_words(home: Path, begin: int) -> str:
    with open(home / "daemon.log", "rb") as log:
        log.seek(begin)
        lines = log.read().decode(errors="replace").strip().splitlines()
    return " | ".join(lines[-_LOG_LINES:]) or "it said nothing"
