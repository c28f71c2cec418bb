"""Files are written back while more of them are made."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from cradled.archive.writeback import EarlyWriteback
from cradled.linux import libc


def test_syncs_go_on_until_it_is_left(tmp_path, monkeypatch):
    synced = threading.Semaphore(0)
    paths = set()

    def syncfs(fd):
        paths.add(os.readlink(f"/proc/self/fd/{fd}"))
        synced.release()

    monkeypatch.setattr(libc, "syncfs", syncfs)
    before, descriptors = threading.active_count(), os.listdir("/proc/self/fd")
    with EarlyWriteback(str(tmp_path)):
        assert synced.acquire(timeout=30)
        assert synced.acquire(timeout=30)
    assert paths == {str(tmp_path)}
    assert threading.active_count() == before
    assert os.listdir("/proc/self/fd") == descriptors


def test_a_failed_sync_is_told(tmp_path, monkeypatch):
    asked = threading.Event()

    def syncfs(fd):
        asked.set()
        raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(libc, "syncfs", syncfs)
    with pytest.raises(OSError, match="lost"), EarlyWriteback(str(tmp_path)):
        assert asked.wait(30)


def test_what_goes_wrong_inside_is_not_hidden(tmp_path):
    with pytest.raises(KeyError), EarlyWriteback(str(tmp_path)):
        raise KeyError


def test_nothing_begins_where_there_is_nothing(tmp_path):
    before = threading.active_count()
    with pytest.raises(FileNotFoundError), EarlyWriteback(str(tmp_path / "none")):
        pass
    assert threading.active_count() == before
