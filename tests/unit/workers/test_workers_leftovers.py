from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

from cradled.workers import leftovers
from cradled.workers.pool import LOCK


def test_without_workers_there_is_nothing_to_wait_for(tmp_path: Path) -> None:
    assert leftovers.wait(str(tmp_path), 0)
    (tmp_path / LOCK).touch()
    assert leftovers.wait(str(tmp_path), 0)


def test_a_living_worker_is_waited_for(tmp_path: Path) -> None:
    fd = os.open(tmp_path / LOCK, os.O_RDONLY | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_SH)
    assert not leftovers.wait(str(tmp_path), 0.01)
    found: list[bool] = []
    waiting = threading.Thread(target=lambda: found.append(leftovers.wait(str(tmp_path), 60)))
    waiting.start()
    os.close(fd)
    waiting.join()
    assert found == [True]
    assert leftovers.wait(str(tmp_path), 0)
