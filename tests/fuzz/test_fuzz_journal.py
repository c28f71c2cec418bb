"""Journals damaged by chance: what is before the damage is read, no number is given twice."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.corpus import fuzz, replay
from hypothesis import given
from hypothesis import strategies as st

from cradled.convert import events as convert
from cradled.core.events import Envelope
from cradled.core.tasks import Exit
from cradled.core.values import AnyValue
from cradled.events import segments, topics
from cradled.events.cursor import Cursor, Dropped
from cradled.events.journal import Journal

LIMIT = 16 * 600
COUNT = 40

Records = dict[int, bytes]


def envelope(number: int) -> Envelope:
    if number % 3:
        return Envelope(number, "ns", "/t", AnyValue("x", bytes([number % 256]) * (number % 50)))
    event = topics.task_exited(f"c{number}", f"c{number}", Exit(number, 1, 2))
    return Envelope(number, "ns", *event)


def append(journal: Journal, number: int) -> tuple[int, bytes]:
    encoded = convert.to_proto(envelope(number)).SerializeToString()
    return journal.append(envelope(number), encoded), encoded


def read(directory: Path, oldest: int) -> Records:
    cursor = Cursor(str(directory), oldest - 1)
    found: Records = {}
    while records := cursor.read(1 << 62):
        assert all(number not in found for number, _ in records)
        found |= records
    cursor.close()
    assert sorted(found) == list(found)
    return found


def _make(directory: Path) -> tuple[str, Records]:
    journal = Journal(str(directory), LIMIT)
    written = dict(append(journal, number) for number in range(1, COUNT + 1))
    epoch = journal.epoch
    journal.hand(COUNT)
    journal.close()
    return epoch, written


_MADE = Path(tempfile.mkdtemp(prefix="journal-fuzz-"))
EPOCH, WRITTEN = _make(_MADE)
FILES = {path.name: path.read_bytes() for path in sorted(_MADE.iterdir())}
shutil.rmtree(_MADE)
SEGMENTS = sorted(name for name in FILES if name.isdecimal())
assert len(SEGMENTS) > 3


@contextmanager
def copy() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        for file, data in FILES.items():
            Path(name, file).write_bytes(data)
        yield Path(name)


@st.composite
def damage(draw: st.DrawFn) -> tuple[str, int, bytes]:
    """A file, where its content ceases to be what it was, and its new content."""
    name = draw(st.sampled_from(SEGMENTS))
    data = bytearray(FILES[name])
    at = draw(st.integers(0, len(data)))
    kind = draw(st.sampled_from(["cut", "flip", "insert", "remove", "repeat", "zero"]))
    if kind == "cut":
        del data[at:]
    elif kind == "flip" and at < len(data):
        data[at] ^= 1 << draw(st.integers(0, 7))
    elif kind == "insert":
        data[at:at] = draw(st.binary(min_size=1, max_size=60))
    elif kind == "remove":
        del data[at : at + draw(st.integers(1, 60))]
    elif kind == "repeat":
        data[at:at] = data[max(0, at - 80) : at]
    else:
        data[at:] = bytes(len(data) - at)
    common = min(len(data), len(FILES[name]))
    at = next((i for i in range(common) if data[i] != FILES[name][i]), common)
    return name, at, bytes(data)


def intact(name: str, at: int) -> Records:
    """The records that no damage in a file from ``at`` on can touch."""
    found = {}
    for other, data in FILES.items():
        if other not in SEGMENTS:
            continue
        for record in segments.records(data, segments.HEAD_SIZE):
            if record.number and (other != name or record.end <= at):
                found[record.number] = record.payload
    return found


@fuzz(300)
@given(damage())
def test_what_is_before_the_damage_is_kept(damaged: tuple[str, int, bytes]) -> None:
    name, at, data = damaged
    with copy() as directory:
        (directory / name).write_bytes(data)
        journal = Journal(str(directory), LIMIT)
        found = read(directory, journal.oldest)
        assert found.items() <= WRITTEN.items()
        if at >= segments.HEAD_SIZE:
            assert found.items() >= intact(name, at).items()
        number, encoded = append(journal, 7)
        assert number not in WRITTEN
        journal.close()
        again = Journal(str(directory), LIMIT)
        assert again.epoch == journal.epoch
        assert again.last == number
        assert read(directory, again.oldest).get(number) == encoded
        again.exits()
        again.close()


@fuzz(100)
@given(
    st.dictionaries(
        st.one_of(
            st.integers(0, 200).map(segments.name_of), st.sampled_from(["handed", "x", "9" * 20])
        ),
        st.one_of(
            st.binary(max_size=100),
            st.binary(max_size=100).map(lambda data: segments.head("0a0b0c0d") + data),
            st.lists(
                st.tuples(
                    st.one_of(st.integers(0, 300), st.just((1 << 64) - 1)),
                    st.binary(max_size=30).map(lambda data: b"/tasks/exit" + data),
                ),
                max_size=4,
            ).map(
                lambda records: (
                    segments.head("0a0b0c0d")
                    + b"".join(segments.record(number, 1, payload) for number, payload in records)
                )
            ),
        ),
        max_size=4,
    )
)
def test_any_files(files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as name:
        for file, data in files.items():
            Path(name, file).write_bytes(data)
        _open_and_write(Path(name))


@replay("journal")
def test_corpus(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name, segments.name_of(1)).write_bytes(data)
        _open_and_write(Path(name))


def _open_and_write(directory: Path) -> None:
    journal = Journal(str(directory), LIMIT)
    try:
        number, encoded = append(journal, 1)
        assert number == journal.last
        cursor = Cursor(str(directory), number - 1)
        try:
            assert dict(cursor.read(number)) == {number: encoded}
        finally:
            cursor.close()
        _seek(directory)
    finally:
        journal.close()


def _seek(directory: Path) -> None:
    for moment in (0, 1, 2, 1 << 62):
        cursor = Cursor(str(directory))
        try:
            cursor.seek(moment)
            while cursor.read(1 << 62):
                pass
        except Dropped:
            continue
        finally:
            cursor.close()
