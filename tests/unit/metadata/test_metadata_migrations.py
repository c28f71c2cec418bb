"""Files of every form become the newest one, with all that is in them."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from cradled.damage import Damaged
from cradled.errors import FailedPrecondition
from cradled.metadata import migrations, schema

FORMS = {int(path.stem): path for path in (Path(__file__).parent / "forms").glob("*.sql")}
DAY = 86400 * 10**9


def filled(path: Path, form: int, version: int | None = None) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(FORMS[form].read_text())
    if version is not None:
        connection.execute(f"PRAGMA user_version={version}")
    return connection


def everything(connection: sqlite3.Connection) -> dict[str, list[tuple[object, ...]]]:
    tables = [
        row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")
    ]
    return {table: connection.execute(f"SELECT * FROM {table}").fetchall() for table in tables}


def test_there_is_a_file_of_each_form() -> None:
    assert set(FORMS) == set(range(1, schema.VERSION + 1))


@pytest.mark.parametrize("form", sorted(FORMS))
def test_upgrade(tmp_path: Path, form: int) -> None:
    connection = filled(tmp_path / "meta.db", form)
    before = everything(connection)
    migrations.apply(connection)
    after = everything(connection)
    assert connection.execute("PRAGMA user_version").fetchone() == (schema.VERSION,)
    assert {k: v for k, v in after.items() if k != "ingests"} == {
        k: v for k, v in before.items() if k != "ingests"
    }
    ((*ingest,),) = after["ingests"]
    total = 0 if form == 1 else 9
    expires = 1_700_000_000 * 10**9
    assert ingest == ["ns", "upload", "ns/7/upload", total, "sha256:2", expires - DAY, expires]
    connection.execute("INSERT INTO leases VALUES ('other', 'l', 1, '{}')")
    assert ("other", "{}") in everything(connection)["namespaces"]
    connection.close()


def test_an_upgraded_file_has_the_tables_of_a_new_one(tmp_path: Path) -> None:
    new = sqlite3.connect(":memory:", isolation_level=None)
    migrations.apply(new)
    sql = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name"
    for form in FORMS:
        old = filled(tmp_path / f"{form}.db", form)
        migrations.apply(old)
        assert old.execute(sql).fetchall() == new.execute(sql).fetchall()
        old.close()
    new.close()


@pytest.mark.parametrize("version", [0, 1, 3, 77777])
def test_the_newest_tables_are_that_whatever_the_number_says(tmp_path: Path, version: int) -> None:
    connection = filled(tmp_path / "meta.db", schema.VERSION, version)
    before = everything(connection)
    migrations.apply(connection)
    assert everything(connection) == before
    assert connection.execute("PRAGMA user_version").fetchone() == (schema.VERSION,)
    connection.close()


def test_a_newer_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    connection = filled(tmp_path / "meta.db", schema.VERSION, schema.VERSION + 1)
    connection.execute("ALTER TABLE leases ADD COLUMN more TEXT")
    before = everything(connection)
    with pytest.raises(FailedPrecondition, match=f"form {schema.VERSION + 1}.*newer version"):
        migrations.apply(connection)
    assert everything(connection) == before
    connection.close()


@pytest.mark.parametrize(
    ("form", "version", "spoil"),
    [
        (2, 2, "DROP TABLE leases"),
        (2, 2, "DROP TRIGGER images_namespace"),
        (2, 0, "DROP TABLE leases"),
        (2, -5, "DROP TABLE leases"),
        (1, 1, "DROP TABLE ingests"),
        (1, 1, "DROP INDEX content_digest"),
    ],
)
def test_tables_that_are_no_form_are_damage(
    tmp_path: Path, form: int, version: int, spoil: str
) -> None:
    connection = filled(tmp_path / "meta.db", form, version)
    connection.execute(spoil)
    before = everything(connection)
    with pytest.raises(Damaged, match=f"not those of form {version}"):
        migrations.apply(connection)
    assert everything(connection) == before
    connection.close()


def test_a_definition_that_is_no_text_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    filled(path, schema.VERSION).close()
    path.write_bytes(path.read_bytes().replace(b"size INTEGER", b"size I\xceTEGER"))
    connection = sqlite3.connect(path, isolation_level=None)
    with pytest.raises(Damaged, match="not those of form"):
        migrations.apply(connection)
    connection.close()
