"""LocalContentStore: the contract, and what is particular to files."""

import asyncio
import contextlib
import hashlib
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cradled import digest, failpoints
from cradled.aio import threads
from cradled.content import ingest
from cradled.content.ingest import Ingest, format_time, parse_time
from cradled.content.local import LocalContentStore, open_store
from cradled.errors import FailedPrecondition
from cradled.testing.content_suite import BIG, SMALL, ContentSuite, digests, get, put


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LocalContentStore]:
    yield await open_store(str(tmp_path))
    threads.close()
    assert open_below(tmp_path) == []


def open_below(directory: Path) -> list[str]:
    """Files below a directory that this process has open."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own descriptor
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [name for name in found if name.startswith(str(directory))]


class TestLocal(ContentSuite):
    pass


class TestLocalWithoutUnnamedFiles(ContentSuite):
    @pytest.fixture(autouse=True)
    def old_file_system(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ingest, "_open_unnamed", lambda _directory: None)


@pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "big"])
async def test_layout(store: LocalContentStore, tmp_path: Path, data: bytes) -> None:
    writer = await store.writer("a/ref", total=len(data))
    await writer.write(data)
    await writer.close()
    directory = tmp_path / "ingest" / hashlib.sha256(b"a/ref").hexdigest()
    assert {path.name for path in directory.iterdir()} == {
        "ref", "data", "startedat", "updatedat", "total",
    }  # fmt: skip
    assert (directory / "ref").read_text() == "a/ref"
    assert (directory / "data").read_bytes() == data
    assert (directory / "total").read_text() == str(len(data))
    status = await store.status("a/ref")
    assert parse_time((directory / "startedat").read_text()) == status.started_at
    assert parse_time((directory / "updatedat").read_text()) == status.updated_at
    writer = await store.writer("a/ref")
    await writer.commit(0, "", {})
    assert list((tmp_path / "ingest").iterdir()) == []
    blob = tmp_path / "blobs" / "sha256" / hashlib.sha256(data).hexdigest()
    assert blob.read_bytes() == data
    assert stat.S_IMODE(blob.stat().st_mode) == 0o444
    assert (await store.info(digest.of(data))).created_at == blob.stat().st_mtime_ns


async def test_a_small_blob_has_the_mode_whatever_the_umask(
    store: LocalContentStore, tmp_path: Path
) -> None:
    old = os.umask(0o077)
    try:
        await put(store, SMALL)
    finally:
        os.umask(old)
    blob = tmp_path / "blobs" / "sha256" / hashlib.sha256(SMALL).hexdigest()
    assert stat.S_IMODE(blob.stat().st_mode) == 0o444


async def test_ingests_outlive_the_store(store: LocalContentStore, tmp_path: Path) -> None:
    writer = await store.writer("r")
    await writer.write(BIG)
    await writer.close()
    (tmp_path / "ingest" / "half-made").mkdir()
    (tmp_path / "ingest" / "half-made" / "ref.tmp").write_text("x")
    again = await open_store(str(tmp_path))
    assert [s.ref for s in await again.list_statuses()] == ["r"]
    assert not (tmp_path / "ingest" / "half-made").exists()
    writer = await again.writer("r")
    assert writer.digest() == digest.of(BIG)
    await writer.commit(len(BIG), digest.of(BIG), {})
    assert await get(again, digest.of(BIG)) == BIG


async def test_labels_are_not_kept(store: LocalContentStore) -> None:
    info = await store.info(await put(store, SMALL))
    with pytest.raises(FailedPrecondition, match="update not supported"):
        await store.update(info)


async def test_a_full_disk_ends_the_writer(
    store: LocalContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ingest._write

    def full(fd: int, chunks: list[bytes]) -> int:
        real(fd, [chunks[0][:1000]])
        raise OSError(28, "No space left on device")

    writer = await store.writer("r")
    await writer.write(BIG[:1_000_000])
    await writer.write(b"")
    monkeypatch.setattr(ingest, "_write", full)
    with pytest.raises(OSError, match="No space left"):  # noqa: PT012 - which write is not told
        for start in range(1_000_000, len(BIG), 500_000):
            await writer.write(BIG[start : start + 500_000])
        await writer.commit(0, "", {})
    await writer.close()
    monkeypatch.undo()
    writer = await store.writer("r")
    offset = writer.status().offset
    assert writer.digest() == digest.of(BIG[:offset])
    assert 0 < offset < len(BIG)
    await writer.write(BIG[offset:])
    await writer.commit(len(BIG), digest.of(BIG), {})


async def test_a_cancelled_write_ends_the_writer(store: LocalContentStore) -> None:
    writer = await store.writer("r")
    task = asyncio.ensure_future(writer.write(BIG))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(FailedPrecondition):
        await writer.commit(0, "", {})
    await writer.close()
    writer = await store.writer("r")
    await writer.write(BIG[writer.status().offset :])
    await writer.commit(len(BIG), digest.of(BIG), {})


@pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "big"])
async def test_a_failure_before_the_name_leaves_no_blob(
    store: LocalContentStore, data: bytes
) -> None:
    def fail() -> None:
        raise OSError(5, "Input/output error")

    writer = await store.writer("r")
    await writer.write(data)
    with (
        failpoints.armed("content.commit.synced", fail),
        pytest.raises(OSError, match="Input/output"),
    ):
        await writer.commit(0, "", {})
    assert await digests(store) == set()
    writer = await store.writer("r")
    await writer.truncate()
    await writer.write(data)
    await writer.commit(len(data), digest.of(data), {})


def test_nothing_follows_a_write_that_failed(tmp_path: Path) -> None:
    one = Ingest(str(tmp_path / "none" / "x"), "r", 0, 1)
    with pytest.raises(FileNotFoundError):
        one.append([b"first"])
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError):
        one.append([b"second"])
    assert list((tmp_path / "none").iterdir()) == []


def test_nothing_is_written_to_a_closed_ingest(tmp_path: Path) -> None:
    one = Ingest(str(tmp_path / "x"), "r", 0, 1)
    one.close()
    with pytest.raises(FailedPrecondition, match="the ingest of r is closed"):
        one.append([b"late"])
    assert list(tmp_path.iterdir()) == []


def test_dropped_ingests_say_so(tmp_path: Path) -> None:
    one = Ingest(str(tmp_path / "x"), "r", 0, 1)
    one.append([b"data"])
    assert one.drop()
    assert not one.drop()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1_700_000_000_123_456_789, "2023-11-14T22:13:20.123456789Z"),
        (1_700_000_000_500_000_000, "2023-11-14T22:13:20.5Z"),
        (1_700_000_000_000_000_001, "2023-11-14T22:13:20.000000001Z"),
    ],
)
def test_times(nanoseconds: int, text: str) -> None:
    assert format_time(nanoseconds) == text
    assert parse_time(text) == nanoseconds


def test_times_of_another_zone() -> None:
    assert parse_time("2023-11-15T00:13:20.25+02:00") == 1_700_000_000_250_000_000
