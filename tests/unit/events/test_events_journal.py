"""The journal: numbers, replay, rotation, and files that a crash has cut."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cradled.convert import events as convert
from cradled.core.events import Envelope
from cradled.core.values import AnyValue
from cradled.events import journal as journals
from cradled.events.journal import Journal


def envelope(number: int) -> Envelope:
    return Envelope(number, "ns", "/tasks/start", AnyValue("x", b"\x01" * 20))


def encoded(number: int) -> bytes:
    return convert.to_proto(envelope(number)).SerializeToString()


def numbers(journal: Journal, after: int = 0) -> list[int]:
    found = list(journal.replay(after))
    assert all(one == envelope(number) for number, one in found)
    return [number for number, _ in found]


def filled(directory: Path, count: int) -> Journal:
    journal = Journal(str(directory))
    for number in range(journal.last + 1, journal.last + count + 1):
        assert journal.append(encoded(number)) == number
    return journal


def test_records_are_numbered_and_replayed(tmp_path: Path) -> None:
    journal = filled(tmp_path / "new", 5)
    assert journal.last == 5
    assert numbers(journal) == [1, 2, 3, 4, 5]
    assert numbers(journal, 3) == [4, 5]
    journal.close()
    journal.close()


def test_it_goes_on_after_a_restart(tmp_path: Path) -> None:
    filled(tmp_path, 3).close()
    journal = filled(tmp_path, 2)
    assert numbers(journal) == [1, 2, 3, 4, 5]
    journal.close()


def test_it_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "FILE_BYTES", 10 * (len(encoded(1)) + 8))
    journal = filled(tmp_path, 95)
    assert len(list(tmp_path.iterdir())) == journals.FILES_KEPT
    assert numbers(journal) == list(range(81, 96))
    journal.close()
    journal = filled(tmp_path, 10)
    assert numbers(journal) == list(range(91, 106))
    journal.close()


def only_file(directory: Path) -> Path:
    (path,) = directory.iterdir()
    return path


@given(cut=st.integers(1, 200))
def test_a_torn_record_is_cut_off(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    directory = tmp_path_factory.mktemp("journal")
    filled(directory, 3).close()
    path = only_file(directory)
    size = path.stat().st_size
    os.truncate(path, max(size - cut, 0))
    left = max(size - cut, 0) // (size // 3)
    journal = filled(directory, 1)
    assert numbers(journal) == list(range(1, left + 2))
    journal.close()


@pytest.mark.parametrize("tail", [b"\0" * 64, b"\xff" * 64, b"\x01"])
def test_garbage_at_the_end_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    filled(tmp_path, 3).close()
    with only_file(tmp_path).open("ab") as file:
        file.write(tail)
    journal = filled(tmp_path, 1)
    assert numbers(journal) == [1, 2, 3, 4]
    journal.close()


def test_a_damaged_record_ends_its_file(tmp_path: Path) -> None:
    filled(tmp_path, 3).close()
    path = only_file(tmp_path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    journal = Journal(str(tmp_path))
    assert numbers(journal) == [1]
    journal.close()


def test_a_full_disk_leaves_no_half_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = filled(tmp_path, 1)
    real = os.write
    monkeypatch.setattr(journals.os, "write", lambda fd, data: real(fd, data[:5]))
    with pytest.raises(OSError, match="short write"):
        journal.append(encoded(2))
    monkeypatch.undo()
    assert journal.append(encoded(2)) == 2
    assert numbers(journal) == [1, 2]
    journal.close()
