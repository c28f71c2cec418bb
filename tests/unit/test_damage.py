"""Damaged SQLite files: found out, set aside, read as far as they can be."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from cradled import damage
from cradled.damage import Damaged, Rebuild

ROWS = 2000
PAGE = 4096


def connect(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL").fetchone()
    return connection


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a b%20#?.db"
    connection = connect(str(path))
    connection.execute(
        "CREATE TABLE things (name TEXT, size INTEGER, PRIMARY KEY (name, size)) WITHOUT ROWID"
    )
    connection.execute(
        "CREATE TABLE plain (name TEXT NOT NULL, n INTEGER NOT NULL, UNIQUE (name, n))"
    )
    connection.execute("BEGIN")
    for table in ("things", "plain"):
        rows = [(f"thing {n:06}", n) for n in range(ROWS)]
        connection.executemany(f"INSERT INTO {table} VALUES (?, ?)", rows)
    connection.execute("COMMIT")
    connection.close()
    return path


def spoil(path: Path, page: int) -> None:
    with open(path, "r+b") as opened:
        opened.seek(page * PAGE)
        opened.write(b"\xa5" * PAGE)


def pages(path: Path) -> int:
    return path.stat().st_size // PAGE


def read_all(connection: sqlite3.Connection) -> None:
    for table in ("things", "plain"):
        connection.execute(f"SELECT * FROM {table} NOT INDEXED").fetchall()
        connection.execute(f"SELECT * FROM {table} ORDER BY name").fetchall()


def opens(path: Path) -> None:
    damage.opened(str(path), connect).close()


def test_a_sound_file_opens(file: Path) -> None:
    opens(file)
    assert os.listdir(file.parent) == [file.name]


def test_one_that_is_not_there_is_new(tmp_path: Path) -> None:
    opens(tmp_path / "new.db")


@pytest.mark.parametrize("data", [b"x", b"SQLite format 3\0", b"\0" * PAGE * 2, b"garbage" * 9999])
def test_garbage_is_damage(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "garbage.db"
    path.write_bytes(data)
    with pytest.raises(Damaged):
        opens(path)
    assert path.read_bytes() == data


@pytest.mark.parametrize("way", ["page", "truncated", "first page"])
def test_damage_in_a_small_file_is_found_at_once(file: Path, way: str) -> None:
    if way == "truncated":
        os.truncate(file, file.stat().st_size - 3 * PAGE)
    else:
        spoil(file, 0 if way == "first page" else pages(file) // 2)
    with pytest.raises(Damaged):
        opens(file)


def test_a_big_file_is_looked_at_only_on_occasion(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(damage, "SMALL", 1)
    spoil(file, pages(file) // 2)
    opens(file)
    connection = connect(str(file))
    with pytest.raises(sqlite3.DatabaseError) as met:
        read_all(connection)
    connection.close()
    assert damage.suspect(str(file), met.value)
    assert (file.parent / f"{file.name}.suspect").read_text() == f"{met.value}\n"
    with pytest.raises(Damaged):
        opens(file)


def test_one_that_was_not_closed_is_looked_at(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damage, "SMALL", 1)
    spoil(file, pages(file) // 2)
    (file.parent / f"{file.name}-wal").write_bytes(b"")
    with pytest.raises(Damaged):
        opens(file)


def test_a_suspicion_that_proves_wrong_is_forgotten(file: Path) -> None:
    mark = file.parent / f"{file.name}.suspect"
    mark.write_text("it looked bad")
    opens(file)
    assert not mark.exists()


def test_a_text_that_is_none_is_damage(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data.replace(b"thing 000500", b"thing \xff\xff\xff500"))
    opens(file)  # SQLite finds nothing wrong
    connection = connect(str(file))
    with pytest.raises(sqlite3.DatabaseError) as met:
        read_all(connection)
    connection.close()
    assert damage.suspect(str(file), met.value)
    with pytest.raises(Damaged, match=r"decode|missing from index"):
        opens(file)
    rows = set(damage.readable(str(file), "plain", ("name", "n"), ("name", "n")))
    assert (b"thing \xff\xff\xff500", 500) in rows
    assert len(rows) == ROWS


@pytest.fixture
def killed(file: Path) -> Path:
    """As a process leaves it that was killed: all but the first page is in the log."""
    connection = connect(str(file))
    connection.execute("PRAGMA wal_autocheckpoint=0")
    for number in range(20):
        connection.execute("INSERT INTO plain VALUES ('late', ?)", (number,))
    copy = file.parent / "killed.db"
    for side in ("", "-wal"):
        Path(f"{copy}{side}").write_bytes(Path(f"{file}{side}").read_bytes())
    connection.close()
    return copy


def spoil_log(path: Path, at: int) -> None:
    log = Path(f"{path}-wal")
    data = bytearray(log.read_bytes())
    data[at] ^= 1
    log.write_bytes(data)


def late_rows(path: Path) -> int:
    connection = damage.opened(str(path), connect)
    (found,) = connection.execute("SELECT count(*) FROM plain WHERE name='late'").fetchone()
    connection.close()
    return int(found)


def test_a_sound_log_is_taken(killed: Path) -> None:
    assert late_rows(killed) == 20


@pytest.mark.parametrize("at", [0, 3, 10, 17, 25])
def test_a_log_with_a_bad_header_is_damage(killed: Path, at: int) -> None:
    spoil_log(killed, at)
    with pytest.raises(Damaged, match="its log"):
        late_rows(killed)


@pytest.mark.parametrize("at", [32 + 5, 32 + 24 + 100, 32 + 4120 * 4 + 20, 32 + 4120 * 9 + 900])
def test_commits_behind_a_bad_frame_are_damage(killed: Path, at: int) -> None:
    """SQLite alone would go on without them, and not say so."""
    spoil_log(killed, at)
    with pytest.raises(Damaged, match="its log is damaged in the middle"):
        late_rows(killed)


def test_a_cut_log_is_what_a_crash_leaves(killed: Path) -> None:
    log = Path(f"{killed}-wal")
    os.truncate(log, log.stat().st_size - 100)
    assert late_rows(killed) == 19


def test_a_log_of_zeros_is_none(killed: Path) -> None:
    Path(f"{killed}-wal").write_bytes(bytes(1 << 20))
    assert late_rows(killed) == 0


def test_a_definition_that_is_no_text_is_damage(file: Path) -> None:
    """SQLite quotes it when it says so, and Python cannot read that."""
    data = file.read_bytes()
    file.write_bytes(data.replace(b"CREATE TABLE things", b"CREATE T\xce\xce\xce\xce things", 1))
    with pytest.raises(Damaged):
        opens(file)
    assert list(damage.readable(str(file), "nothing", ("name",), ("name",))) == []


def test_other_errors_are_no_damage(file: Path) -> None:
    connection = connect(str(file))
    with pytest.raises(sqlite3.OperationalError) as met:
        connection.execute("SELECT nothing FROM nowhere")
    connection.close()
    assert not damage.suspect(str(file), met.value)
    assert os.listdir(file.parent) == [file.name]


def test_setting_aside_removes_nothing(file: Path) -> None:
    data = file.read_bytes()
    for side in ("-wal", "-shm"):
        (file.parent / f"{file.name}{side}").write_text(side)
    rebuild = damage.set_aside(str(file), "for a test")
    (target,) = rebuild.damaged
    assert Path(target).read_bytes() == data
    assert [Path(f"{target}{side}").read_text() for side in ("-wal", "-shm")] == ["-wal", "-shm"]
    assert not file.exists()
    file.write_bytes(b"bad again")
    second = damage.set_aside(str(file), "again")
    assert second.damaged[0] == target
    assert Path(second.damaged[1]).read_bytes() == b"bad again"
    assert Path(target).read_bytes() == data


def test_a_log_without_its_file_is_not_applied_to_a_new_one(file: Path) -> None:
    os.unlink(file)
    log = file.parent / f"{file.name}-wal"
    log.write_bytes(b"of another file")
    opens(file)
    (aside,) = file.parent.glob("*.damaged-*-wal")
    assert aside.read_bytes() == b"of another file"


def test_what_was_taken_in_is_remembered(tmp_path: Path) -> None:
    path = str(tmp_path / "meta.db")
    assert Rebuild.load(path) is None
    Rebuild.begin(path, "why", ["old"]).finish("content")
    found = Rebuild.load(path)
    assert found is not None
    assert (found.reason, found.damaged, found.done) == ("why", ["old"], ["content"])
    found.exhaust()
    again = Rebuild.begin(path, "and again", ["newer"])
    assert (again.damaged, again.sources, again.done) == (["old", "newer"], ["newer"], [])
    more = Rebuild.begin(path, "before it was done")
    assert more.sources == ["newer"]


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"reason":1,"date":2,"damaged":3,"done":[]}', "\xff"]
)
def test_damaged_notes_begin_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / "meta.db.rebuild").write_text(text, encoding="latin-1")
    found = Rebuild.load(str(tmp_path / "meta.db"))
    assert found is not None
    assert found.done == []


@pytest.mark.parametrize(
    ("table", "columns"), [("things", ("name", "size")), ("plain", ("name", "n"))]
)
def test_what_can_be_read_is_read(file: Path, table: str, columns: tuple[str, str]) -> None:
    def read() -> set[tuple[object, ...]]:
        return set(damage.readable(str(file), table, columns, columns))

    assert len(read()) == ROWS
    worst, data = ROWS, file.read_bytes()
    for page in range(1, pages(file)):
        spoil(file, page)
        found = read()
        assert found <= {(f"thing {n:06}", n) for n in range(ROWS)}
        worst = min(worst, len(found))
        if page > 12:  # not a root
            assert len(found) > ROWS * 0.8
        file.write_bytes(data)
    assert file.read_bytes() == data


def test_what_is_in_the_log_is_read(file: Path) -> None:
    connection = connect(str(file))
    connection.execute("INSERT INTO things VALUES ('late', 1)")
    copy = file.parent / "copy.db"
    for side in ("", "-wal"):
        Path(f"{copy}{side}").write_bytes(Path(f"{file}{side}").read_bytes())
    connection.close()
    assert ("late", 1) in set(
        damage.readable(str(copy), "things", ("name", "size"), ("name", "size"))
    )


def test_nothing_is_read_of_garbage(tmp_path: Path) -> None:
    path = tmp_path / "garbage.db"
    path.write_bytes(b"garbage")
    assert list(damage.readable(str(path), "things", ("name",), ("name",))) == []
