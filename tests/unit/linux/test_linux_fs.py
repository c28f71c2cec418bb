"""Files whole or absent, and shared syncs."""

import stat
import threading
from pathlib import Path

import pytest

from cradled.linux import fs


def test_atomic_write_replaces(tmp_path: Path) -> None:
    target = tmp_path / "file"
    fs.atomic_write(str(target), b"one", 0o600)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    fs.atomic_write(str(target), b"two", sync=False)
    assert target.read_bytes() == b"two"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "file"
    fs.atomic_write(str(target), b"old")

    def full(_fd: int, _data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fs, "write_all", full)
    with pytest.raises(OSError, match="No space left"):
        fs.atomic_write(str(target), b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_sync_filesystem(tmp_path: Path) -> None:
    fs.sync_filesystem(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        fs.sync_filesystem(str(tmp_path / "absent"))


def test_shared_sync_covers_who_asked_before_it_began() -> None:
    synced: list[str] = []

    def sync(path: str) -> None:
        synced.append(path)
        if len(synced) == 1:
            waiting.extend(shared_ticket() for _ in range(3))  # they ask while it is under way

    def shared_ticket() -> int:
        shared._asked += 1
        return shared._asked

    waiting: list[int] = []
    shared = fs.SharedSync("path", sync)
    shared.sync()
    assert shared._done < min(waiting)
    shared.sync()
    assert shared._done >= max(waiting)
    assert synced == ["path", "path"]


def test_shared_sync_is_shared() -> None:
    begun, gate = threading.Event(), threading.Event()
    synced: list[str] = []

    def sync(path: str) -> None:
        synced.append(path)
        begun.set()
        gate.wait()

    shared = fs.SharedSync("path", sync)
    threads = [threading.Thread(target=shared.sync) for _ in range(6)]
    threads[0].start()
    begun.wait()
    for thread in threads[1:]:
        thread.start()
    while shared._asked < 6:
        pass
    gate.set()
    for thread in threads:
        thread.join()
    assert len(synced) == 2
