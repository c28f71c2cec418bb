"""Blocking. Data carried from a pipe or a terminal into a file, by a thread that may be kept.

A file opened to be appended to takes no splice, and a write to it cannot be made to return when
the disk is slow. Used by the shim: imports only ``os``, ``linux.fifo``, ``linux.fs`` and C modules.
"""

from __future__ import annotations

import os
from select import POLLIN, poll

from cradled.linux import fifo, fs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

LINGER = 100
"""Milliseconds that nothing has to come for the copying to pause."""


def copy(source: int, sink: int, leave: list[bool], lost: Callable[[OSError, int], None]) -> bool:
    """Copy until nothing comes, or until something is in ``leave``: True. At the end: False.

    What cannot be written is told to ``lost`` and dropped, and whoever writes is not kept waiting:
    a full disk is no reason to stop or to end a container.
    """
    size = fifo.USUAL
    source_ready = poll()
    source_ready.register(source, POLLIN)
    while not leave:
        if not source_ready.poll(LINGER):
            return True
        try:
            data = os.read(source, size)
        except BlockingIOError:
            continue
        except OSError:  # a terminal that was hung up
            return False
        if not data:
            return False
        if len(data) == fifo.USUAL:  # filled faster than the disk is
            size = fifo.LARGE // 2  # a larger buffer would be kept by the heap
            fifo.enlarge(source)
        try:
            fs.write_all(sink, data)
        except OSError as error:
            lost(error, len(data))
    return True
