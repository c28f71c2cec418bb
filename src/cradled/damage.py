"""Blocking. SQLite files that went bad: finding it out, setting them aside, reading what is left.

    <path>.suspect              somebody met damage in the file while using it: why, as text
    <path>.copy                 as it was when it was last closed properly
    <path>.damaged-<date>       a damaged file, with its -wal and -shm; nobody ever removes it
    <path>.rebuild              what is being put together again (``Rebuild``), JSON

A file is looked at when it is opened: all of it if it is small, if it was not closed properly, or
if it is suspect. Damage in a big one is met when it is used; the next start then looks at it.

The damaged file is renamed after ``.rebuild`` says so, and that names what has been taken in since.
So a rebuilding that is broken off at any point goes on at the next start.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import struct
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

from cradled.linux import fs

SMALL = 4 << 20
"""Bytes of a file that costs so little to look at (1 ms a MiB) that it is done at every start."""

MISSING = "it was missing"
"""The reason of a rebuilding where there was no file."""

_MAGIC = b"SQLite format 3\0"
_LOG_MAGIC = 0x377F0682
_LOG_HEADER = struct.Struct(">8I")  # magic, version, page size, sequence, two salts, two checksums
_FRAME_HEADER = struct.Struct(">6I")  # page, pages after a commit, two salts, two checksums
_FRAMES_SEARCHED = 4096

_SIDES = ("-wal", "-shm")
_LISTS = ("damaged", "sources", "done")
_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT)

Row = tuple[Any, ...]


class Damaged(Exception):
    """The file is no database that can be used; the text says why."""


class Rebuild:
    """What is known of a database that is put together again; kept in ``<path>.rebuild``.

    ``damaged`` are all files that were ever set aside, ``sources`` those whose rows were not taken
    in yet, ``done`` the parts that were. It stays for good: a store that comes into sight later,
    say because its plugin was switched off, is taken in then.
    """

    def __init__(
        self,
        path: str,
        reason: str,
        date: str,
        lists: Sequence[Sequence[str]] = ((), (), ()),
    ) -> None:
        self.path = path
        self.reason = reason
        self.date = date
        self.damaged, self.sources, self.done = (list(one) for one in lists)

    @classmethod
    def load(cls, path: str) -> Rebuild | None:
        """That of a database; None where nothing was ever wrong."""
        try:
            with open(f"{path}.rebuild", encoding="utf-8", errors="replace") as file:
                text = file.read()
        except FileNotFoundError:
            return None
        try:
            told = json.loads(text)
            reason, date = str(told["reason"]), str(told["date"])
            lists = [[str(one) for one in told[name]] for name in _LISTS]
        except (ValueError, TypeError, KeyError, RecursionError):
            return cls(path, "the notes of a rebuilding were damaged", _date())
        return cls(path, reason, date, lists)

    @classmethod
    def begin(cls, path: str, reason: str, damaged: Sequence[str] = ()) -> Rebuild:
        """Note that all is to be taken in, from the start."""
        before = cls.load(path)
        known, left = (before.damaged, before.sources) if before is not None else ([], [])
        made = cls(path, reason, _date(), ([*known, *damaged], [*left, *damaged], []))
        made._save()
        return made

    def finish(self, part: str) -> None:
        """Note that a part was taken in."""
        self.done.append(part)
        self._save()

    def exhaust(self) -> None:
        """Note that the rows of all files that were set aside were taken in."""
        self.sources.clear()
        self._save()

    def _save(self) -> None:
        told = {key: getattr(self, key) for key in ("reason", "date", *_LISTS)}
        fs.atomic_write(f"{self.path}.rebuild", json.dumps(told, indent=1).encode(), 0o600)


def opened(path: str, connect: Callable[[str], sqlite3.Connection]) -> sqlite3.Connection:
    """Connect to a database file that can be used, as far as one can tell. Raises Damaged."""
    suspect = os.path.exists(f"{path}.suspect")
    thorough = suspect or os.path.exists(f"{path}-wal")
    try:
        size = os.stat(path).st_size
    except FileNotFoundError:
        size = 0
        _set_sides_aside(path)
    if size:
        with open(path, "rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise Damaged("it is no SQLite file")
    log = _Log.read(f"{path}-wal")
    if log is not None and log.is_bad:
        raise Damaged("its log is damaged")
    connection = None
    try:
        connection = connect(path)
        if log is not None and log.is_cut(connection, f"{path}-shm"):
            raise _Found("its log is damaged in the middle")
        if size and (thorough or size <= SMALL):
            _examine(connection, "integrity_check" if suspect else "quick_check")
        if size and suspect:
            _read_everything(connection)
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        if connection is not None:
            connection.close()
        if not _tells(error) and not isinstance(error, _Found):
            raise
        raise Damaged(str(error)) from error
    if suspect:
        fs.discard(f"{path}.suspect")
    return connection


class _Log(NamedTuple):
    """The write-ahead log that a process left which did not come to its end.

    SQLite takes a log up to the first frame whose checksum is wrong, without a word: whatever was
    committed behind it would be gone. That there was more is told by the salts of the frames.
    """

    path: str
    header: bytes

    @classmethod
    def read(cls, path: str) -> _Log | None:
        """None where there is none, or nothing was written to it."""
        try:
            with open(path, "rb") as file:
                header = file.read(_LOG_HEADER.size)
        except FileNotFoundError:
            return None
        return cls(path, header) if header.strip(b"\0") else None

    @property
    def is_bad(self) -> bool:
        if len(self.header) < _LOG_HEADER.size:
            return True
        magic, *_, first, second = _LOG_HEADER.unpack(self.header)
        if magic & ~1 != _LOG_MAGIC:
            return True
        words = struct.unpack(">6I" if magic & 1 else "<6I", self.header[:24])
        one = two = 0
        for index in range(0, len(words), 2):
            one = (one + words[index] + two) & 0xFFFFFFFF
            two = (two + words[index + 1] + one) & 0xFFFFFFFF
        return (one, two) != (first, second)

    def is_cut(self, connection: sqlite3.Connection, shared: str) -> bool:
        """Whether a commit, and something after it, is behind the last frame that SQLite takes.

        A commit that is the last thing there may have been cut short by a power failure, before
        anybody was told of it.
        """
        connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
        with open(shared, "rb") as file:
            taken = struct.unpack("=I", file.read(20)[16:])[0]
        _, _, page, _, *salts = _LOG_HEADER.unpack(self.header)[:6]
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            committed = False
            for number in range(taken, taken + _FRAMES_SEARCHED):
                at = _LOG_HEADER.size + number * (page + _FRAME_HEADER.size)
                frame = os.pread(fd, _FRAME_HEADER.size, at)
                if len(frame) < _FRAME_HEADER.size:
                    break
                _, commit, *found, _, _ = _FRAME_HEADER.unpack(frame)
                if found == salts and committed:
                    return True
                committed |= found == salts and commit > 0
        finally:
            os.close(fd)
        return False


class _Found(sqlite3.DatabaseError):
    """A check found something."""


def _examine(connection: sqlite3.Connection, check: str) -> None:
    rows = connection.execute(f"PRAGMA {check}(1)").fetchall()
    if rows != [("ok",)]:
        raise _Found("; ".join(str(row[0]).replace("\n", " ") for row in rows) or "no answer")


def _read_everything(connection: sqlite3.Connection) -> None:
    """Raises DatabaseError for a text that is none: no check of SQLite's looks for that."""
    tables = "SELECT name FROM sqlite_master WHERE type='table'"
    for (table,) in connection.execute(tables).fetchall():
        for _ in connection.execute(f"SELECT * FROM {table}"):
            pass


def _tells(error: BaseException) -> bool:
    """Whether SQLite says that the file is bad; a text that is none has no code, and what SQLite
    says of a bad definition may not be a text itself."""
    if isinstance(error, UnicodeDecodeError):
        return True
    if not isinstance(error, sqlite3.DatabaseError):
        return False
    code = getattr(error, "sqlite_errorcode", None)
    return "Could not decode" in str(error) if code is None else code & 0xFF in _CODES


def suspect(path: str, error: BaseException) -> bool:
    """Whether an error that was met tells of damage; then the next start will look closely."""
    if not _tells(error):
        return False
    with contextlib.suppress(OSError):
        fs.atomic_write(f"{path}.suspect", f"{error}\n".encode(), 0o600)
    return True


def set_aside(path: str, reason: str) -> Rebuild:
    """Rename a damaged file and what belongs to it out of the way; nothing is removed."""
    target = _free(f"{path}.damaged-{_date()}")
    rebuild = Rebuild.begin(path, reason, [target])
    for side in (*_SIDES, ""):  # the main file last: with it everything begins again
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{path}{side}", f"{target}{side}")
    fs.discard(f"{path}.suspect")
    fs.sync_directory(os.path.dirname(path) or ".")
    return rebuild


def keep_copy(path: str) -> None:
    """Copy a file that was just closed, for the day it is damaged. A copy that fails is none."""
    import shutil  # only ever wanted at the end

    new = f"{path}.copy.new"
    try:
        shutil.copyfile(path, new)
        os.chmod(new, 0o600)
        os.rename(new, f"{path}.copy")
    except OSError:
        with contextlib.suppress(OSError):
            fs.discard(new)


def _set_sides_aside(path: str) -> None:
    """A log without its file is another file's: it must not be applied to a new one."""
    if os.path.exists(f"{path}-wal"):
        target = _free(f"{path}.damaged-{_date()}")
        for side in _SIDES:
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{path}{side}", f"{target}{side}")


def _free(wanted: str) -> str:
    number, path = 1, wanted
    while any(os.path.lexists(f"{path}{side}") for side in ("", *_SIDES)):
        number += 1
        path = f"{wanted}-{number}"
    return path


def _date() -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())


def reader(path: str) -> sqlite3.Connection:
    """For reading only, of a file that others may be writing to."""
    return sqlite3.connect(_uri(path), uri=True, isolation_level=None, timeout=30)


def readable(path: str, table: str, columns: Sequence[str], key: Sequence[str]) -> Iterator[Row]:
    """The rows of a table that can be read in a damaged file; one may come more than once.

    Read from the front to the first place that cannot be read, and from the end, in the order of
    the table and in that of its ``key``: what lies between the first and the last such place may be
    missed. The file is not written to.
    """
    keys = (", ".join(key), ", ".join(f"{column} DESC" for column in key))
    beside = [f"{path}{side}" for side in _SIDES if not os.path.exists(f"{path}{side}")]
    try:
        for order in ("rowid", "rowid DESC", *keys):
            sql = f"SELECT {', '.join(columns)} FROM {table} ORDER BY {order}"
            whole = yield from _until_damage(path, sql)
            if whole:
                return
    finally:
        for made in beside:
            fs.discard(made)


def _until_damage(path: str, sql: str) -> Generator[Row, None, bool]:
    """Rows up to the first place that cannot be read; returns whether there was none."""
    connection = reader(path)
    connection.text_factory = _text
    try:
        connection.execute("PRAGMA writable_schema=ON")  # a bad definition spoils one table only
        cursor = connection.execute(sql)
        while (row := cursor.fetchone()) is not None:
            yield row
    except (sqlite3.DatabaseError, UnicodeDecodeError):
        return False
    finally:
        connection.close()
    return True


def _text(data: bytes) -> str | bytes:
    """What is no text stays bytes, for who asked to wonder at."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _uri(path: str) -> str:
    """For reading only; a file without a log has no writer, and gets no log by being read."""
    fixed = "" if os.path.exists(f"{path}-wal") else "&immutable=1"
    for character in "%?#":
        path = path.replace(character, f"%{ord(character):02x}")
    return f"file:{path}?mode=ro{fixed}"
