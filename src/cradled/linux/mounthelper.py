"""Blocking. File systems that a program mounts: FUSE, by its ``mount.fuse`` or ``mount.fuse3``."""

from __future__ import annotations

import errno
import os
from select import select

from cradled.linux import capture
from cradled.linux.signals import SIGKILL
from cradled.linux.spawn import spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

TYPES = ("fuse.", "fuse3.")
"""How the types of such file systems begin; the rest names the program that serves it."""

_PATIENCE = 30.0  # seconds
_ENVIRONMENT = ("PATH", "HOME")


def mount(type_: str, source: str, words: Iterable[str], target: str) -> None:
    """Have it mounted on ``target``. Raises OSError with what the program said."""
    helper, _, kind = type_.partition(".")
    options = [text for word in words for text in ("-o", word)]
    argv = [f"mount.{helper}", source, target, *options, "-t", kind]
    env = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    output = capture.memory()
    try:
        try:
            pid = spawn(argv, env, (None, output, output))
        except FileNotFoundError:
            raise OSError(errno.ENOENT, f"{argv[0]} is not installed", target) from None
        status = _wait(pid)
        if status:
            said = capture.line(capture.printed(output)) or f"exit status {status}"
            raise OSError(errno.EIO, f"{argv[0]}: {said}", target)
    finally:
        os.close(output)


def _wait(pid: int) -> int:
    """The exit status, as a shell has it; of one that takes too long too, when it is killed."""
    pidfd = os.pidfd_open(pid)
    try:
        if not select([pidfd], [], [], _PATIENCE)[0]:
            os.killpg(pid, SIGKILL)
    finally:
        os.close(pidfd)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 128 - code
