"""The journal: numbers, segments, the exits it remembers, and files that a crash has cut."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cradled.convert import events as convert
from cradled.core.events import Envelope
from cradled.core.tasks import Exit
from cradled.core.values import AnyValue
from cradled.errors import FailedPrecondition, InvalidArgument, OutOfRange
from cradled.events import journal as journals
from cradled.events import segments, topics
from cradled.events.cursor import Cursor, Dropped
from cradled.events.journal import Journal

END = Exit(7, 1, 2)


STARTED = ("/tasks/start", AnyValue("x", b"\x01" * 20))


def envelope(number: int, event: topics.Event = STARTED) -> Envelope:
    return Envelope(number, "ns", *event)


def encoded(one: Envelope) -> bytes:
    return convert.to_proto(one).SerializeToString()


def write(journal: Journal, one: Envelope) -> int:
    return journal.append(one, encoded(one))


def numbers(journal: Journal, after: int = 0) -> list[int]:
    """Of all records that are kept; each must be the event that was written under its number."""
    cursor = Cursor(journal.directory, max(after, journal.oldest - 1))
    found = []
    while chunk := cursor.read(journal.last):
        found += chunk
    cursor.close()
    assert all(payload == encoded(envelope(number)) for number, payload in found)
    return [number for number, _ in found]


def filled(directory: Path, count: int, limit: int = journals.LIMIT) -> Journal:
    journal = Journal(str(directory), limit)
    for number in range(journal.last + 1, journal.last + count + 1):
        assert write(journal, envelope(number)) == number
    return journal


def only_file(directory: Path) -> Path:
    (path,) = directory.iterdir()
    return path


SIZE = len(segments.record(1, 1, encoded(envelope(1))))
BEGIN = segments.HEAD_SIZE + segments.OVERHEAD


def test_records_are_numbered_and_read(tmp_path: Path) -> None:
    journal = filled(tmp_path / "new", 5)
    assert (journal.last, journal.oldest) == (5, 1)
    assert numbers(journal) == [1, 2, 3, 4, 5]
    assert numbers(journal, 3) == [4, 5]
    journal.close()
    journal.close()


def test_it_goes_on_after_a_restart(tmp_path: Path) -> None:
    before = filled(tmp_path, 3)
    before.close()
    journal = filled(tmp_path, 2)
    assert numbers(journal) == [1, 2, 3, 4, 5]
    assert journal.epoch == before.epoch
    journal.close()


def test_it_is_bounded(tmp_path: Path) -> None:
    limit = 16 * (BEGIN + 10 * SIZE)
    journal = filled(tmp_path, 1000, limit)
    files = list(tmp_path.iterdir())
    assert limit * 14 // 16 < sum(path.stat().st_size for path in files) <= limit
    oldest = journal.oldest
    assert numbers(journal) == list(range(oldest, 1001))
    journal.close()
    journal = filled(tmp_path, 10, limit)
    assert numbers(journal)[-11:] == list(range(1000, 1011))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= limit
    journal.close()


def test_a_smaller_limit_takes_effect(tmp_path: Path) -> None:
    filled(tmp_path, 1000).close()
    limit = 16 * (BEGIN + 10 * SIZE)
    journal = filled(tmp_path, 500, limit)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= limit
    assert numbers(journal)[-1] == 1500
    journal.close()


def test_what_is_too_large_costs_a_number_only(tmp_path: Path) -> None:
    journal = filled(tmp_path, 1, 1 << 20)
    with pytest.raises(OSError, match="too large"):
        write(journal, envelope(2, ("/x", AnyValue("x", bytes(1 << 20)))))
    assert write(journal, envelope(3)) == 3
    assert numbers(journal) == [1, 3]
    journal.close()
    journal = filled(tmp_path, 1)
    assert numbers(journal) == [1, 3, 4]
    journal.close()


@given(cut=st.integers(1, 3 * SIZE + BEGIN - 1))
def test_a_torn_end_is_cut_off(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    directory = tmp_path_factory.mktemp("journal")
    before = filled(directory, 3)
    before.close()
    path = only_file(directory)
    size = path.stat().st_size
    os.truncate(path, size - cut)
    whole = max(size - cut - BEGIN, 0) // SIZE
    journal = Journal(str(directory))
    kept = numbers(journal)
    assert kept == list(range(1, whole + 1))
    new = write(journal, envelope(journal.last + 1))
    assert new > whole
    assert numbers(journal) == [*kept, new]
    journal.close()


@pytest.mark.parametrize("tail", [b"\0" * 64, b"\xff" * 64, b"\x01"])
def test_garbage_at_the_end_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    filled(tmp_path, 3).close()
    with only_file(tmp_path).open("ab") as file:
        file.write(tail)
    journal = Journal(str(tmp_path))
    new = write(journal, envelope(journal.last + 1))
    assert numbers(journal) == [1, 2, 3, new]
    journal.close()


@given(at=st.integers(BEGIN, BEGIN + 5 * SIZE - 1), bit=st.integers(0, 7))
def test_numbers_behind_damage_are_not_given_again(
    tmp_path_factory: pytest.TempPathFactory, at: int, bit: int
) -> None:
    directory = tmp_path_factory.mktemp("journal")
    filled(directory, 5).close()
    path = only_file(directory)
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)
    journal = Journal(str(directory))
    kept = numbers(journal)
    assert kept == list(range(1, (at - BEGIN) // SIZE + 1))
    assert write(journal, envelope(journal.last + 1)) > 5
    journal.close()


def test_damage_in_the_middle_hides_its_segment_only(tmp_path: Path) -> None:
    limit = 16 * (BEGIN + 10 * SIZE)
    journal = filled(tmp_path, 35, limit)
    second = sorted(tmp_path.iterdir())[1]
    first = int(second.name)
    data = bytearray(second.read_bytes())
    data[BEGIN + SIZE + 30] ^= 1
    second.write_bytes(data)
    third = int(sorted(tmp_path.iterdir())[2].name)
    assert numbers(journal) == [*range(1, first + 1), *range(third, 36)]
    journal.close()


@pytest.mark.parametrize("content", [b"", b"cradled\x01abc", b"no segment at all" * 10])
def test_a_last_segment_that_is_none_is_removed(tmp_path: Path, content: bytes) -> None:
    before = filled(tmp_path, 3)
    before.close()
    (tmp_path / segments.name_of(4)).write_bytes(content)
    journal = Journal(str(tmp_path))
    assert journal.epoch == before.epoch
    new = write(journal, envelope(journal.last + 1))
    assert new > 3
    assert numbers(journal) == [1, 2, 3, new]
    journal.close()


def test_a_lost_journal_is_another_one(tmp_path: Path) -> None:
    before = filled(tmp_path, 3)
    before.close()
    only_file(tmp_path).write_bytes(b"no segment at all")
    journal = Journal(str(tmp_path))
    assert journal.epoch != before.epoch
    with pytest.raises(FailedPrecondition, match=f"events of {before.epoch} are lost"):
        journal.number(before.position(3))
    journal.close()


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    for name in ("7", "notes", "x" * 20):
        (tmp_path / name).write_text("x")
    filled(tmp_path, 3).close()
    assert {path.name for path in tmp_path.iterdir()} == {
        "7", "notes", "x" * 20, segments.name_of(1),
    }  # fmt: skip


def test_a_full_disk_leaves_no_half_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = filled(tmp_path, 1)
    real = os.write
    monkeypatch.setattr(journals.os, "write", lambda fd, data: real(fd, data[:5]))
    with pytest.raises(OSError, match=r"journal .*: short write"):
        write(journal, envelope(2))
    monkeypatch.undo()
    assert write(journal, envelope(3)) == 3
    assert numbers(journal) == [1, 3]
    journal.close()


def test_positions(tmp_path: Path) -> None:
    journal = filled(tmp_path, 300, 16 * (BEGIN + 10 * SIZE))
    assert journal.oldest > 1
    assert journal.number(journal.position(300)) == journal.number("300") == 300
    before = journal.oldest - 1
    assert journal.number(str(before)) == before
    with pytest.raises(OutOfRange, match=rf"not kept.* after {journal.position(before)}: out"):
        journal.number(str(before - 1))
    with pytest.raises(OutOfRange, match=rf"not happened yet.* is {journal.position(300)}"):
        journal.number("301")
    for text in ("-3", "x", "٣", "", "-", f"{journal.epoch}-"):
        with pytest.raises(InvalidArgument):
            journal.number(text)
    with pytest.raises(FailedPrecondition, match="begun anew"):
        journal.number("00000000-3")
    journal.close()


def test_exits_are_remembered_until_their_task_is_deleted(tmp_path: Path) -> None:
    limit = 16 * (BEGIN + 10 * SIZE)
    journal = Journal(str(tmp_path), limit)
    for number, event in enumerate(
        [
            topics.task_exited("a", "a", END),
            topics.task_exited("a", "probe", END),
            topics.task_exited("b", "b", END),
            topics.task_exited("c", "c", END),
            topics.task_deleted("b", "", END),
            topics.task_deleted("a", "probe", END),
        ]
    ):
        write(journal, envelope(number, event))
    told = {("ns", "a", "a", 7), ("ns", "a", "probe", 7), ("ns", "c", "c", 7)}
    assert journal.exits() == told | {("ns", "b", "b", 7)}  # whoever deletes it anew knows
    for number in range(500):
        write(journal, envelope(number))
    assert journal.oldest > 6
    journal.close()
    journal = Journal(str(tmp_path), limit)
    assert journal.exits() == told
    write(journal, envelope(1, topics.task_deleted("a", "a", END)))
    journal.close()
    journal = Journal(str(tmp_path), limit)
    assert journal.exits() == told
    for number in range(500):
        write(journal, envelope(number))
    journal.close()
    journal = Journal(str(tmp_path), limit)
    assert journal.exits() == {("ns", "c", "c", 7), ("ns", "a", "probe", 7)}
    journal.close()


def test_how_far_all_have_been_told_is_kept(tmp_path: Path) -> None:
    journal = filled(tmp_path, 5, 1 << 20)
    assert journal.handed == 0
    journal.hand(3)
    journal.close()
    journal = Journal(str(tmp_path))
    assert (journal.handed, journal.last) == (3, 5)
    journal.close()
    (tmp_path / "handed").write_bytes(b"\1")
    journal = Journal(str(tmp_path))
    assert journal.handed == 5  # nobody knows, so nothing is told anew
    journal.close()


def test_probes_do_not_displace_the_exits_of_containers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "_INITS_KEPT", 3)
    monkeypatch.setattr(journals, "_PASSING_KEPT", 2)
    journal = Journal(str(tmp_path))
    for name in ("a", "b"):
        write(journal, envelope(1, topics.task_exited(name, name, END)))
    for number in range(10):
        write(journal, envelope(1, topics.task_exited("c", f"probe-{number}", END)))
    inits = {("ns", name, name, 7) for name in ("a", "b")}
    assert journal.exits() == inits | {("ns", "c", f"probe-{n}", 7) for n in (8, 9)}
    for name in ("d", "e"):
        write(journal, envelope(1, topics.task_exited(name, name, END)))
    assert {one[1] for one in journal.exits()} == {"b", "c", "d", "e"}
    journal.close()


# The cursor


def test_a_cursor_follows_the_writer(tmp_path: Path) -> None:
    limit = 16 * (BEGIN + 10 * SIZE)
    journal = Journal(str(tmp_path), limit)
    cursor = Cursor(str(tmp_path))
    assert cursor.read(journal.last) == []
    for number in range(1, 200):
        write(journal, envelope(number))
        assert cursor.read(journal.last) == [(number, encoded(envelope(number)))]
        assert cursor.read(journal.last) == []
    cursor.close()
    journal.close()


def test_a_cursor_that_is_too_slow_is_told(tmp_path: Path) -> None:
    limit = 16 * (BEGIN + 10 * SIZE)
    journal = filled(tmp_path, 25, limit)
    cursor = Cursor(str(tmp_path))
    read = cursor.read(journal.last)
    assert read[0][0] == 1
    for number in range(26, 500):
        write(journal, envelope(number))
    with pytest.raises(Dropped):
        cursor.read(journal.last)
    cursor.close()
    late = Cursor(str(tmp_path), 3)
    with pytest.raises(Dropped):
        late.read(journal.last)
    journal.close()


def test_a_segment_that_is_dropped_is_read_to_its_end(tmp_path: Path) -> None:
    limit = 16 * (BEGIN + 10 * SIZE)
    journal = filled(tmp_path, 1, limit)
    cursor = Cursor(str(tmp_path))
    assert [number for number, _ in cursor.read(1)] == [1]
    number = 1
    while journal.oldest == 1:
        number += 1
        write(journal, envelope(number))
    found = []
    while chunk := cursor.read(journal.last):
        found += [number for number, _ in chunk]
    assert found == list(range(2, number + 1))
    cursor.close()
    journal.close()


def test_large_records_are_read(tmp_path: Path) -> None:
    journal = filled(tmp_path, 1)
    large = envelope(2, ("/x", AnyValue("x", bytes(300_000))))
    write(journal, large)
    write(journal, envelope(3))
    cursor = Cursor(str(tmp_path))
    found = []
    while chunk := cursor.read(journal.last):
        found += chunk
    assert found[1] == (2, encoded(large))
    assert [number for number, _ in found] == [1, 2, 3]
    cursor.close()
    journal.close()


def test_seek_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 16 * (BEGIN + 10 * SIZE)
    clock = 0
    monkeypatch.setattr(journals.time, "time_ns", lambda: clock)
    journal = Journal(str(tmp_path), limit)
    for number in range(1, 301):
        clock = number * 10
        write(journal, envelope(number))
    oldest = journal.oldest

    def first(moment: int) -> int:
        cursor = Cursor(str(tmp_path))
        cursor.seek(moment)
        found = cursor.read(journal.last)
        cursor.close()
        return found[0][0] if found else 0

    assert first(0) == first(oldest * 10) == oldest
    for number in range(oldest + 1, 301):
        assert first(number * 10) == first(number * 10 - 9) == number
    assert first(3001) == 0
    journal.close()


def test_a_directory_that_is_gone(tmp_path: Path) -> None:
    cursor = Cursor(str(tmp_path))
    cursor.seek(1)
    assert cursor.read(0) == []
    with pytest.raises(Dropped):
        cursor.read(1)


# kill -9

WRITER = """
import sys
sys.path[:0] = {path!r}
from cradled.convert import events as convert
from cradled.core.events import Envelope
from cradled.core.values import AnyValue
from cradled.events.journal import Journal
journal = Journal({directory!r}, {limit})
number = journal.last
while True:
    number += 1
    one = Envelope(number, "ns", "/tasks/start", AnyValue("x", b"\\x01" * 20))
    assert journal.append(one, convert.to_proto(one).SerializeToString()) == number
    sys.stdout.write(f"{{number}}\\n")
    sys.stdout.flush()
"""


def test_what_was_written_survives_kill_9(tmp_path: Path) -> None:
    limit = 16 * (BEGIN + 10 * SIZE)
    program = WRITER.format(path=sys.path, directory=str(tmp_path), limit=limit)
    acknowledged = 0
    for lifetime in (1, 7, 60, 200, 2000):
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            for _ in range(lifetime):
                acknowledged = int(writer.stdout.readline())
            writer.kill()
            for line in writer.stdout.read().split(b"\n")[:-1]:
                acknowledged = int(line)
        journal = Journal(str(tmp_path), limit)
        assert acknowledged <= journal.last
        found = numbers(journal)
        assert found[-1] >= acknowledged
        assert found == list(range(journal.oldest, found[-1] + 1))
        journal.close()
