"""Blocking. News of a file that others write to (inotify)."""

from __future__ import annotations

import os

from cradled.linux import libc

IN_MODIFY = 0x2


def writes_to(fd: int) -> int:
    """A descriptor that is readable once the open file has been written to; reading takes the news.

    Raises OSError, when the user has as many of these as allowed for one.
    """
    watch = libc.call("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        libc.call("inotify_add_watch", watch, f"/proc/self/fd/{fd}".encode(), IN_MODIFY)
    except BaseException:
        os.close(watch)
        raise
    return watch
