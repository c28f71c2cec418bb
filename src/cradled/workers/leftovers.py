"""Blocking. Workers of a daemon that died: they end by themselves, and until then may still write.

Each holds a shared lock on ``<root>/workers.lock``; whoever gets the exclusive one knows that there
are none. To be called before anything that workers write to is cleaned up.
"""

from __future__ import annotations

import fcntl
import os
import time

from cradled.workers.pool import LOCK

_LOOK_EVERY = 0.005


def wait(root: str, seconds: float) -> bool:
    """Wait until no worker of this root lives; False when that takes too long."""
    try:
        fd = os.open(os.path.join(root, LOCK), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    deadline = time.monotonic() + seconds
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    return False
                time.sleep(_LOOK_EVERY)
            else:
                return True
    finally:
        os.close(fd)
