"""Async. The metadata engine: SQLite in WAL mode, one writer thread, group commit.

A *command* is a plain function of a ``Transaction``, free of side effects outside it. The writer
takes all waiting commands, for at most 5 ms, runs them one after the other in one SQLite
transaction and commits once: one fsync serves them all. Each command is atomic. Errors nearly
always come before a command's first change, so a batch first runs without savepoints; when one
command fails half-way, the batch is rolled back and run again with a savepoint around each.

What a command returned or raised reaches its caller only after the commit is durable, in commit
order; its events are published before that. A failed commit fails all commands of its batch.
Reads use a connection of the loop's thread and never wait for the writer; who awaited a write
sees it.

On disk: ``<path>``, ``<path>-wal``, ``<path>-shm``, as SQLite defines them. After a crash SQLite
replays the valid frames of the log; nothing else is left over. The log's file is filled with zeros
ahead of its use and used again after each checkpoint, so that a commit overwrites blocks the file
has already and costs the disk no journal entry.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from cradled import damage, failpoints, spans
from cradled.aio import lag
from cradled.core.events import Envelope, Publisher
from cradled.errors import Internal, ResourceExhausted
from cradled.measures import COUNTS, Histogram
from cradled.metadata import migrations

T = TypeVar("T")
Row = tuple[Any, ...]

_log = logging.getLogger(__name__)

PAGE = 256  # rows looked at without letting the loop go on
BATCH_SECONDS = 0.005
LOG_BYTES = 8 << 20
CHECKPOINT_CHANGES = 448  # rows changed between checkpoints: about LOG_BYTES of log


class Transaction:
    """What a command works on; only valid while the command runs."""

    __slots__ = ("_touched", "deletions", "events", "execute", "executemany", "expiry")

    def __init__(self, connection: sqlite3.Connection, touched: set[str] | None) -> None:
        self.execute = connection.execute
        self.executemany = connection.executemany
        self.events: list[Envelope] = []
        self.deletions = 0
        self.expiry: int | None = None
        self._touched = touched

    def one(self, sql: str, parameters: Sequence[Any] = ()) -> Row | None:
        """The first row, or None."""
        row: Row | None = self.execute(sql, parameters).fetchone()
        return row

    def emit(self, namespace: str, event: tuple[str, Any]) -> None:
        """Publish (topic, value) once this transaction is durable."""
        topic, value = event
        self.events.append(Envelope(time.time_ns(), namespace, topic, value))

    def touch(self, namespace: str, node: str) -> None:
        """Tell a running collection that this object was made, changed or referred to anew."""
        if self._touched is not None:
            self._touched.add(f"{namespace}/{node}")

    def deleted(self) -> None:
        """Note that an object or a reference to one went away, for who decides when to collect."""
        self.deletions += 1

    def expires(self, at: int | None) -> None:
        """Note when, in nanoseconds since the epoch, an object will have expired, if it will."""
        if at is not None:
            self.expiry = at if self.expiry is None else min(self.expiry, at)

    def take_touched(self) -> set[str]:
        """The nodes touched since the last call, by the commands run so far."""
        taken = set(self._touched or ())
        if self._touched is not None:
            self._touched.clear()
        return taken


class _Job(Generic[T]):
    __slots__ = (
        "changed",
        "command",
        "deletions",
        "done",
        "error",
        "events",
        "expiry",
        "result",
        "span",
        "submitted",
        "then",
        "waiter",
    )

    def __init__(
        self, command: Callable[[Transaction], T], then: Callable[[T], None] | None = None
    ) -> None:
        self.command = command
        self.then = then
        self.span = spans.current()
        self.submitted = time.monotonic_ns()
        self.waiter: asyncio.Future[None] | None = None
        self.done = False
        self.result: T | None = None
        self.error: BaseException | None = None
        self.events: list[Envelope] = []
        self.deletions = 0
        self.expiry: int | None = None
        self.changed = False

    def deliver(self) -> None:
        """On the loop's thread: tell whoever follows up, and wake the caller."""
        self.done = True
        if self.then is not None and self.error is None:
            self.then(self.result)  # type: ignore[arg-type]
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class _Times(NamedTuple):
    """Of one batch, in nanoseconds of the monotonic clock: begun, all commands run, durable."""

    begun: int
    applied: int
    committed: int


class Measures:
    """What commits cost: commands of a batch; seconds that a command waited for its batch, that a
    batch's commands took, and that its COMMIT took, which is one fsync."""

    def __init__(self) -> None:
        self.sizes = Histogram(COUNTS)
        self.waits = Histogram()
        self.applying = Histogram()
        self.syncs = Histogram()


class Engine:
    """One database file, used by one process and one event loop.

    Commits of one that is not ``durable`` survive the process, not a power failure. Raises
    ``damage.Damaged`` for a file that is no good.
    """

    def __init__(self, path: str, publisher: Publisher | None, *, durable: bool = True) -> None:
        self.path = path
        self.measures = Measures()
        self._publisher = publisher
        self._loop = asyncio.get_running_loop()
        self.watcher: Callable[[int, int, int | None], None] | None = None
        """Told on the loop after each commit: how many commands changed something, how much they
        deleted."""
        self._queue: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._ended = self._loop.create_future()
        self._touched: set[str] | None = None
        self._changes = 0
        self._has_changed = False
        self._closing = False
        self._writer = damage.opened(path, _connect)
        if not durable:
            self._writer.execute("PRAGMA synchronous=OFF")
        try:
            migrations.apply(self._writer)
        except BaseException:
            self._writer.close()
            raise
        self._reader = self.reader()
        self._scanners: list[sqlite3.Connection] = []
        self._thread = threading.Thread(
            target=self._write_forever, name="metadata-writer", daemon=True
        )
        self._thread.start()

    async def run(
        self, command: Callable[[Transaction], T], then: Callable[[T], None] | None = None
    ) -> T:
        """Run a command in the next batch; returns its result once it is durable.

        Raises what the command raised, or Internal or ResourceExhausted when the commit failed.
        A caller that is cancelled is told so when the command has run: nothing is left pending.
        ``then`` is called with the result of a command that succeeded, also in that case: for what
        must follow it, such as remembering what it left in a backend. It must not raise.
        """
        if self._closing:
            raise Internal("metadata is closed")
        job = _Job(command, then)
        self._queue.put(job)
        cancelled: asyncio.CancelledError | None = None
        while not job.done:
            job.waiter = self._loop.create_future()
            try:
                await job.waiter
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled
        if job.error is not None:
            raise job.error
        return job.result  # type: ignore[return-value]

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """All rows of a read, from the latest durable state."""
        try:
            return self._reader.execute(sql, parameters).fetchall()
        except sqlite3.DatabaseError as error:
            raise self._failed(error) from error

    def one(self, sql: str, parameters: Sequence[Any] = ()) -> Row | None:
        """The first row of a read, or None."""
        try:
            row: Row | None = self._reader.execute(sql, parameters).fetchone()
        except sqlite3.DatabaseError as error:
            raise self._failed(error) from error
        return row

    async def scan(
        self, sql: str, parameters: Sequence[Any], make: Callable[[Row], T | None]
    ) -> list[T]:
        """What ``make`` makes of the rows of a long read, Nones left out; from one state.

        Lets the loop do other work after each page of rows.
        """
        connection = self._scanners.pop() if self._scanners else self.reader()
        cursor = connection.cursor()
        found: list[T] = []
        try:
            cursor.execute(sql, parameters)
            while rows := cursor.fetchmany(PAGE):
                found += [made for row in rows if (made := make(row)) is not None]
                if len(rows) < PAGE:
                    break
                await asyncio.sleep(0)
        except sqlite3.DatabaseError as error:
            raise self._failed(error) from error
        finally:
            cursor.close()
            self._scanners.append(connection)
        return found

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Reads within the block see one state. No await inside."""
        self._reader.execute("BEGIN")
        try:
            yield
        finally:
            self._reader.execute("COMMIT")

    @property
    def has_changed(self) -> bool:
        """Whether anything was written since it was opened."""
        return self._has_changed

    def reader(self) -> sqlite3.Connection:
        """One more connection for reading, owned by the caller and its thread."""
        connection = _connect(self.path)
        connection.execute("PRAGMA query_only=ON")
        return connection

    def start_touching(self) -> None:
        """From the commands run from now on, note the nodes they touch (see metadata.gc)."""
        self._touched = set()

    def stop_touching(self) -> None:
        self._touched = None

    def _failed(self, error: sqlite3.DatabaseError) -> Exception:
        """What to raise in the place of an error of SQLite's; damage is remembered."""
        if not damage.suspect(self.path, error):
            return error
        _log.critical("%s is damaged: %s; restart the daemon to have it repaired", self.path, error)
        return Internal(f"metadata is damaged: {error}: restart the daemon to have it repaired")

    async def aclose(self) -> None:
        """Run what waits, then close the file. Idempotent."""
        if not self._closing:
            self._closing = True
            self._queue.put(None)
        await asyncio.shield(self._ended)
        self._thread.join()
        for connection in (self._reader, *self._scanners):
            connection.close()
        self._scanners.clear()

    # The writer's thread.

    def _write_forever(self) -> None:
        _fill_log(f"{self.path}-wal")
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
            while (job := self._queue.get()) is not None:
                batch, times, last = self._write(job)
                self._loop.call_soon_threadsafe(self._deliver, batch, times)
                del job, batch
                if last:
                    break
                if self._changes >= CHECKPOINT_CHANGES:
                    self._checkpoint()
        self._writer.close()
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._ended.set_result, None)

    def _write(self, job: _Job[Any]) -> tuple[list[_Job[Any]], _Times, bool]:
        """Commit one batch that begins with this job; also tells whether the end was seen."""
        batch, last, changes = [job], False, self._writer.total_changes
        begun = applied = time.monotonic_ns()
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            clean = self._attempt(job)
            deadline = time.monotonic() + BATCH_SECONDS
            while not last and time.monotonic() < deadline:
                try:
                    following = self._queue.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    last = True
                else:
                    batch.append(following)
                    clean = clean and self._attempt(following)
            if not clean:
                self._writer.execute("ROLLBACK")
                self._writer.execute("BEGIN IMMEDIATE")
                for each in batch:
                    self._attempt_guarded(each)
            applied = time.monotonic_ns()
            failpoints.hit("metadata.before_commit")
            self._writer.execute("COMMIT")
            failpoints.hit("metadata.after_commit")
        except Exception as error:
            self._fail(batch, error)
        self._changes += self._writer.total_changes - changes
        self._has_changed |= self._writer.total_changes != changes
        return batch, _Times(begun, applied, time.monotonic_ns()), last

    def _attempt(self, job: _Job[Any]) -> bool:
        """Run a command; False when it failed after it had changed something."""
        transaction = Transaction(self._writer, self._touched)
        before = self._writer.total_changes
        try:
            job.result = job.command(transaction)
        except sqlite3.DatabaseError as error:
            job.error = self._failed(error)
            return self._writer.total_changes == before
        except Exception as error:
            job.error = error
            return self._writer.total_changes == before
        job.events, job.deletions = transaction.events, transaction.deletions
        job.expiry = transaction.expiry
        job.changed = self._writer.total_changes != before
        return True

    def _attempt_guarded(self, job: _Job[Any]) -> None:
        job.result, job.error, job.events, job.deletions = None, None, [], 0
        self._writer.execute("SAVEPOINT command")
        if not self._attempt(job):
            self._writer.execute("ROLLBACK TO command")
        self._writer.execute("RELEASE command")

    def _fail(self, batch: list[_Job[Any]], error: Exception) -> None:
        if self._writer.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._writer.execute("ROLLBACK")
        if isinstance(error, sqlite3.DatabaseError):
            self._failed(error)
        full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        for job in batch:
            what = f"metadata commit: {error}"
            job.result, job.events, job.deletions = None, [], 0
            job.error = ResourceExhausted(what) if full else Internal(what)
            job.error.__cause__ = error

    def _checkpoint(self) -> None:
        """Move the log into the database file as far as no reader stands in the way."""
        with contextlib.suppress(sqlite3.Error):  # the log only grows; the next one tries again
            self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        self._changes = 0

    # The loop's thread again.

    def _deliver(self, batch: list[_Job[Any]], times: _Times) -> None:
        self._measure(batch, times)
        done = [job for job in batch if job.error is None and job.changed]
        try:
            events = [event for job in done for event in job.events]
            if events and self._publisher is not None:
                self._publisher.publish(events)
            if done and self.watcher is not None:
                expiries = [job.expiry for job in done if job.expiry is not None]
                deletions = sum(job.deletions for job in done)
                self.watcher(len(done), deletions, min(expiries, default=None))
        except Exception:  # what was committed is done whatever a listener does
            _log.exception("cannot tell what was committed")
        for job in batch:
            job.deliver()

    def _measure(self, batch: list[_Job[Any]], times: _Times) -> None:
        lag.since(times.committed / 1e9)
        measures = self.measures
        measures.sizes.observe(len(batch))
        measures.applying.observe((times.applied - times.begun) / 1e9)
        measures.syncs.observe((times.committed - times.applied) / 1e9)
        for job in batch:
            begun = max(job.submitted, times.begun)  # it may have joined a batch under way
            measures.waits.observe((begun - job.submitted) / 1e9)
            if job.span is not None:
                spans.record(job.span, "metadata.queue", job.submitted, begun)
                spans.record(job.span, "metadata.apply", begun, times.applied, batch=len(batch))
                spans.record(job.span, "metadata.fsync", times.applied, times.committed)


def _connect(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, cached_statements=512, timeout=30
    )
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "wal_autocheckpoint=0",
        "secure_delete=OFF",
        "cache_size=-8192",
        "temp_store=MEMORY",
    ):
        connection.execute(f"PRAGMA {pragma}").fetchone()
    return connection


def _fill_log(path: str) -> None:
    """Extend the log with zeros, which are not valid frames, so that commits need not extend it."""
    with contextlib.suppress(OSError):  # an optimisation: a full disk is told by the commit
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            if size < LOG_BYTES:
                zeros = bytes(1 << 20)
                for offset in range(size, LOG_BYTES, len(zeros)):
                    os.pwrite(fd, zeros[: LOG_BYTES - offset], offset)
                os.fdatasync(fd)
        finally:
            os.close(fd)
