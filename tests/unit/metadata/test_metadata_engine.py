"""The engine: batches, atomic commands, durability before results, order of events."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from cradled import failpoints, spans
from cradled.core.events import Envelope
from cradled.core.values import AnyValue
from cradled.errors import AlreadyExists, FailedPrecondition, Internal, NotFound
from cradled.metadata import engine as engines
from cradled.metadata import schema
from cradled.metadata.engine import Engine, Transaction


class Log:
    """Events and results in the order in which the loop saw them."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def publish(self, envelopes: Sequence[Envelope], /) -> None:
        self.seen += [f"event {envelope.topic}" for envelope in envelopes]


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
async def engine(tmp_path: Path, log: Log) -> AsyncIterator[Engine]:
    made = Engine(str(tmp_path / "meta.db"), log)
    yield made
    await made.aclose()
    assert not made._thread.is_alive()


def insert(name: str) -> engines.Callable[[Transaction], str]:
    def command(tx: Transaction) -> str:
        tx.execute("INSERT INTO namespaces VALUES (?, '{}')", (name,))
        tx.emit(name, (f"/{name}", AnyValue("x")))
        return name

    return command


def names(engine: Engine) -> list[str]:
    return [row[0] for row in engine.query("SELECT name FROM namespaces ORDER BY name")]


async def test_a_result_is_readable_at_once(engine: Engine) -> None:
    assert await engine.run(insert("a")) == "a"
    assert names(engine) == ["a"]
    assert engine.one("SELECT name FROM namespaces WHERE name='b'") is None


async def test_waiting_commands_share_a_commit(engine: Engine, tmp_path: Path) -> None:
    go, commits = threading.Event(), 0

    def count() -> None:
        nonlocal commits
        commits += 1

    with failpoints.armed("metadata.before_commit", count):
        blocked = asyncio.ensure_future(engine.run(lambda tx: go.wait(30)))
        await asyncio.sleep(0)
        others = [asyncio.ensure_future(engine.run(insert(f"n{i}"))) for i in range(20)]
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(blocked, *others)
    assert commits <= 2
    assert len(names(engine)) == 20


async def test_events_come_in_commit_order_before_results(engine: Engine, log: Log) -> None:
    async def one(name: str) -> None:
        await engine.run(insert(name))
        log.seen.append(f"result {name}")

    await asyncio.gather(*(one(f"n{i}") for i in range(5)))
    for i in range(5):
        assert log.seen.index(f"event /n{i}") < log.seen.index(f"result n{i}")
    assert [s for s in log.seen if s.startswith("event")] == [f"event /n{i}" for i in range(5)]


async def test_a_failed_command_changes_nothing_and_harms_nobody(engine: Engine, log: Log) -> None:
    def half(tx: Transaction) -> None:
        insert("half")(tx)
        raise NotFound("late")

    def early(tx: Transaction) -> None:
        raise AlreadyExists("early")

    results = await asyncio.gather(
        *(engine.run(c) for c in (insert("a"), half, early, insert("b"), half, insert("c"))),
        return_exceptions=True,
    )
    assert [str(r) for r in results] == [
        "a", "late: not found", "early: already exists", "b", "late: not found", "c",
    ]  # fmt: skip
    assert names(engine) == ["a", "b", "c"]
    assert log.seen == ["event /a", "event /b", "event /c"]


async def test_a_failed_commit_fails_all_its_waiters(engine: Engine, log: Log) -> None:
    def fail() -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with failpoints.armed("metadata.before_commit", fail):
        results = await asyncio.gather(
            engine.run(insert("a")), engine.run(insert("b")), return_exceptions=True
        )
    assert [str(r) for r in results] == ["metadata commit: disk I/O error: internal"] * 2
    assert all(isinstance(r, Internal) for r in results)
    assert (names(engine), log.seen) == ([], [])
    await engine.run(insert("a"))
    assert names(engine) == ["a"]


async def test_a_cancelled_caller_is_told_when_its_command_has_run(engine: Engine) -> None:
    go = threading.Event()
    blocked = asyncio.ensure_future(engine.run(lambda tx: go.wait(30)))
    gone = asyncio.ensure_future(engine.run(insert("gone")))
    kept = asyncio.ensure_future(engine.run(insert("kept")))
    for _ in range(3):
        await asyncio.sleep(0)
        gone.cancel()
    assert not gone.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert "gone" in names(engine)
    assert await kept == "kept"
    assert await blocked is True


async def test_the_watcher_hears_of_what_was_committed(engine: Engine) -> None:
    heard: list[tuple[int, int, int | None]] = []
    engine.watcher = lambda *told: heard.append(told)

    def delete(tx: Transaction) -> None:
        tx.execute("DELETE FROM namespaces")
        tx.deleted()
        for expiry in (None, 9, 7, 8):
            tx.expires(expiry)

    def fail(tx: Transaction) -> None:
        tx.deleted()
        raise NotFound

    await engine.run(lambda tx: None)
    await engine.run(insert("a"))
    await engine.run(delete)
    with pytest.raises(NotFound):
        await engine.run(fail)
    assert heard == [(1, 0, None), (1, 1, 7)]


async def test_touched_nodes_are_noted_while_asked_for(engine: Engine) -> None:
    def touch(name: str) -> engines.Callable[[Transaction], None]:
        return lambda tx: tx.touch("ns", name)

    await engine.run(touch("before"))
    engine.start_touching()
    await engine.run(touch("a"))
    await engine.run(touch("b"))
    assert await engine.run(lambda tx: tx.take_touched()) == {"ns/a", "ns/b"}
    assert await engine.run(lambda tx: tx.take_touched()) == set()
    engine.stop_touching()
    await engine.run(touch("after"))
    assert await engine.run(lambda tx: tx.take_touched()) == set()


async def test_a_scan_sees_one_state_and_lets_others_run(engine: Engine) -> None:
    count = engines.PAGE * 3
    sql = "INSERT INTO namespaces VALUES (?, '{}')"
    await engine.run(lambda tx: tx.executemany(sql, [(f"{i:05}",) for i in range(count)]))

    def make(row: engines.Row) -> str:
        if row[0] == "00010":
            other = sqlite3.connect(engine.path)
            with other:
                other.execute("DELETE FROM namespaces")
            other.close()
        name: str = row[0]
        return name

    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    running = asyncio.ensure_future(others())
    found = await engine.scan("SELECT name FROM namespaces ORDER BY name", (), make)
    running.cancel()
    assert found == [f"{i:05}" for i in range(count)]
    assert turns >= 3
    assert names(engine) == []


async def test_readers_cannot_write(engine: Engine) -> None:
    reader = engine.reader()
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.execute("INSERT INTO namespaces VALUES ('x', '{}')")
    reader.close()


async def test_close_runs_what_waits(tmp_path: Path) -> None:
    engine = Engine(str(tmp_path / "other.db"), None)
    waiting = [asyncio.ensure_future(engine.run(insert(f"n{i}"))) for i in range(5)]
    await asyncio.sleep(0)
    await engine.aclose()
    await engine.aclose()
    assert [await each for each in waiting] == [f"n{i}" for i in range(5)]
    with pytest.raises(Internal, match="metadata is closed"):
        await engine.run(insert("late"))
    assert os.listdir(tmp_path) == ["other.db"]


async def test_the_log_is_bounded(engine: Engine, tmp_path: Path) -> None:
    payload = "x" * 3000
    sql = "INSERT INTO namespaces VALUES (?, ?)"
    for i in range(4000):
        await engine.run(lambda tx, i=i: tx.execute(sql, (f"{i}", payload)).rowcount)
    assert (tmp_path / "meta.db-wal").stat().st_size <= 4 * engines.LOG_BYTES


async def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "newer.db"
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version={schema.VERSION + 1}")
    connection.close()
    with pytest.raises(FailedPrecondition, match="written by a newer version"):
        Engine(str(path), None)


async def test_what_a_crash_left_in_the_log_is_there(tmp_path: Path) -> None:
    """Copy the files of a live database: that is what a crash leaves."""
    engine = Engine(str(tmp_path / "live.db"), None)
    await engine.run(insert("a"))
    for suffix in ("", "-wal"):
        data = (tmp_path / f"live.db{suffix}").read_bytes()
        (tmp_path / f"copy.db{suffix}").write_bytes(data)
    await engine.aclose()
    copy = Engine(str(tmp_path / "copy.db"), None)
    assert names(copy) == ["a"]
    await copy.run(insert("b"))
    assert names(copy) == ["a", "b"]
    await copy.aclose()


async def test_a_failing_listener_harms_no_writer(tmp_path: Path) -> None:
    class Broken:
        def publish(self, envelopes: Sequence[Envelope], /) -> None:
            raise OSError("no space left")

    engine = Engine(str(tmp_path / "broken.db"), Broken())
    assert await engine.run(insert("a")) == "a"
    await engine.aclose()


def test_a_loop_that_is_gone_ends_the_writer(tmp_path: Path) -> None:
    """An embedding program that never closed: the thread must not keep or upset it."""

    async def leave() -> Engine:
        engine = Engine(str(tmp_path / "left.db"), None)
        await engine.run(insert("a"))
        return engine

    engine = asyncio.run(leave())
    engine._queue.put(engines._Job(insert("b")))
    engine._thread.join(30)
    assert not engine._thread.is_alive()
    engine._reader.close()


@pytest.mark.parametrize(("durable", "level"), [(True, 2), (False, 0)])
async def test_only_durable_commits_wait_for_the_disk(
    tmp_path: Path, log: Log, durable: bool, level: int
) -> None:
    engine = Engine(str(tmp_path / "meta.db"), log, durable=durable)
    try:
        found = await engine.run(lambda tx: tx.one("PRAGMA synchronous"))
        assert tuple(found or ()) == (level,)
    finally:
        await engine.aclose()


async def test_what_a_commit_costs_is_told(engine: Engine) -> None:
    sizes, waits = engine.measures.sizes, engine.measures.waits
    before = sizes.count, waits.count
    spans.clear()
    with spans.span("write"):
        await engine.run(insert("a"))
    await engine.run(insert("b"))
    (trace,) = spans.traces()
    write, queued, applied, synced = trace.spans
    assert [one.name for one in trace.spans[1:]] == [
        "metadata.queue",
        "metadata.apply",
        "metadata.fsync",
    ]
    assert {one.parent for one in trace.spans[1:]} == {write.id}
    assert write.start <= queued.start <= queued.end == applied.start <= applied.end
    assert applied.end == synced.start <= synced.end <= write.end
    assert (sizes.count, waits.count) == (before[0] + 2, before[1] + 2)
    assert engine.measures.syncs.count == engine.measures.applying.count == sizes.count


async def test_one_batch_is_one_commit(engine: Engine) -> None:
    before = engine.measures.sizes.count
    started, gate = threading.Event(), threading.Event()

    def wait(tx: Transaction) -> None:
        started.set()
        gate.wait()

    first = asyncio.ensure_future(engine.run(wait))
    await asyncio.to_thread(started.wait)
    rest = [asyncio.ensure_future(engine.run(insert(f"n{n}"))) for n in range(5)]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(first, *rest)
    counted = engine.measures.sizes
    assert counted.count - before < 6
    assert counted.total >= 6
