"""Blocking. What the kernel can do, tried where trying is harmless."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

from cradled.cli.doctor.finding import FAIL, OK, WARN, Finding
from cradled.linux import libc, oom

AREA = "kernel"
OLDEST = (5, 9)
"""openat2 is of 5.6, close_range of 5.9."""

_PROBE_SECONDS = 20.0
_EXPLAINED = {
    "overlay": ("overlay mounts", "load the module: modprobe overlay"),
    "userxattr": ("overlay with userxattr", ""),
    "idmap": ("id-mapped mounts", ""),
}


def findings() -> Iterator[Finding]:
    yield _release()
    yield _call("pidfd", lambda: os.close(os.pidfd_open(os.getpid())))
    yield _call("pidfd signals", _signal_self)
    yield _call("openat2", lambda: os.close(libc.openat2(libc.AT_FDCWD, "/", os.O_PATH)))
    yield from _file_systems()
    yield from _mounts()
    yield from _security()
    yield _oom_score()


def _release() -> Finding:
    system = os.uname()
    text = f"{system.sysname} {system.release} {system.machine}"
    found = re.match(r"(\d+)\.(\d+)", system.release)
    if found and (int(found[1]), int(found[2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return Finding(AREA, "version", FAIL, text, f"use a kernel of {oldest} or newer")
    return Finding(AREA, "version", OK, text)


def _signal_self() -> None:
    pidfd = os.pidfd_open(os.getpid())
    try:
        signal.pidfd_send_signal(pidfd, 0)
    finally:
        os.close(pidfd)


def _call(name: str, attempt: Callable[[], None]) -> Finding:
    try:
        attempt()
    except OSError as error:
        advice = "use a newer kernel, or allow the call where a sandbox filters it"
        return Finding(AREA, name, FAIL, error.strerror or str(error), advice)
    return Finding(AREA, name, OK, "there")


def _file_systems() -> Iterator[Finding]:
    with open("/proc/filesystems", encoding="ascii") as file:
        known = {line.split()[-1] for line in file}
    for name, purpose in (("erofs", "the erofs snapshotter"), ("fuse", "FUSE snapshotters")):
        here = name in known
        text = "there" if here else f"not loaded; only {purpose} would need it"
        yield Finding(AREA, name, OK, text)


def _mounts() -> Iterator[Finding]:
    """In a process with a mount namespace of its own: nothing of it is seen outside."""
    if os.geteuid() != 0:
        yield Finding(AREA, "mounts", OK, "not tried: that takes root")
        return
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-m", "cradled.cli.doctor.mounts"],
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        yield Finding(AREA, "mounts", FAIL, "trying them takes for ever", "look at dmesg")
        return
    told = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    if not told:
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        advice = "containers need mounts: run where CAP_SYS_ADMIN is given"
        yield Finding(AREA, "mounts", FAIL, last[0], advice)
        return
    for key, (name, advice) in _EXPLAINED.items():
        text = told.get(key, "not tried")
        works = text == "there"
        needed = key == "overlay"
        if not works and not needed:
            text = f"{text}; only containers in user namespaces need it"
        yield Finding(
            AREA, name, FAIL if needed and not works else OK, text, "" if works else advice
        )


def _security() -> Iterator[Finding]:
    seccomp = os.path.exists("/proc/sys/kernel/seccomp/actions_avail")
    if seccomp:
        yield Finding(AREA, "seccomp", OK, "there")
    else:
        advice = "containers with a seccomp profile will fail"
        yield Finding(AREA, "seccomp", WARN, "not there", advice)
    try:
        with open("/sys/module/apparmor/parameters/enabled", encoding="ascii") as file:
            apparmor = file.read().strip() == "Y"
    except OSError:
        apparmor = False
    yield Finding(AREA, "apparmor", OK, "enabled" if apparmor else "not enabled")
    selinux = os.path.exists("/sys/fs/selinux/enforce")
    yield Finding(AREA, "selinux", OK, "enabled" if selinux else "not enabled")
    yield _user_namespaces()


def _user_namespaces() -> Finding:
    try:
        with open("/proc/sys/user/max_user_namespaces", encoding="ascii") as file:
            allowed = int(file.read())
    except OSError:
        allowed = 0
    text = f"up to {allowed}" if allowed else "none; only containers that ask for one need it"
    return Finding(AREA, "user namespaces", OK, text)


def _oom_score() -> Finding:
    """Whether a score may be lowered: runc fails on a container that asks for what may not be."""
    name = "oom_score_adj"
    if os.geteuid() != 0:
        return Finding(AREA, name, OK, "not tried: that takes root")
    before = oom.score()
    try:
        oom.set_score(max(before - 1, -oom.MAX_SCORE))
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM):
            raise
        advice = "give CAP_SYS_RESOURCE, or set restrict_oom_score_adj where pods are run"
        return Finding(AREA, name, WARN, f"cannot be lowered below {before}", advice)
    oom.set_score(before)
    return Finding(AREA, name, OK, "can be lowered")
