"""Blocking. Writing files to disk while more of them are made.

What is durable only after a sync at the end keeps everybody waiting for all of its data then. With
``EarlyWriteback`` most of it has been on its way already.
"""

from __future__ import annotations

import os
import threading
import time

from cradled.linux import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

_PAUSE = 0.05  # seconds; and as long as a sync took, so that slow disks keep time for the rest


class EarlyWriteback:
    """A context manager: inside, the file system of ``path`` is synced time and again.

    It promises nothing: sync afterwards. Leaving it raises the OSError of a failed sync, which the
    kernel tells only once.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._stopped = threading.Event()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="writeback", daemon=True)

    def __enter__(self) -> Self:
        self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self._thread.join()
        os.close(self._fd)
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        pause = _PAUSE
        try:
            while not self._stopped.wait(pause):
                began = time.monotonic()
                libc.syncfs(self._fd)
                pause = max(_PAUSE, time.monotonic() - began)
        except OSError as error:
            self._error = error
