"""Async. What every ``core.content.ContentStore`` must do, as tests to inherit.

A test class derives from ``ContentSuite`` and gives the fixture ``store``; stores that keep labels
derive from ``ContentLabelSuite`` too.
"""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from cradled import digest
from cradled.core.content import ContentInfo, ContentStore
from cradled.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unavailable

SMALL = b"a small blob"
BIG = bytes(range(256)) * (12 << 10)  # 3 MiB


async def put(store: ContentStore, data: bytes, ref: str = "put") -> str:
    """Store a blob in one go; returns its digest."""
    wanted = digest.of(data)
    writer = await store.writer(ref, total=len(data), expected=wanted)
    await writer.write(data)
    await writer.commit(len(data), wanted, {})
    return wanted


async def get(store: ContentStore, wanted: str) -> bytes:
    """All bytes of a blob."""
    reader = await store.open(wanted)
    try:
        data = b""
        while chunk := await reader.read(len(data), 1 << 20):
            data += chunk
        return data
    finally:
        reader.close()


async def digests(store: ContentStore, *filters: str) -> set[str]:
    return {info.digest async for info in store.walk(filters)}


class ContentSuite:
    @pytest.mark.parametrize("data", [b"", SMALL, BIG], ids=["empty", "small", "big"])
    async def test_what_was_written_is_read(self, store: ContentStore, data: bytes) -> None:
        wanted = await put(store, data)
        assert wanted == digest.of(data)
        info = await store.info(wanted)
        assert (info.digest, info.size) == (wanted, len(data))
        assert info.created_at > 0
        assert await get(store, wanted) == data
        assert await digests(store) == {wanted}
        assert await store.list_statuses() == []

    async def test_reads_at_any_offset(self, store: ContentStore) -> None:
        reader = await store.open(await put(store, BIG))
        assert reader.size == len(BIG)
        assert await reader.read(len(BIG) - 3, 10) == BIG[-3:]
        assert await reader.read(len(BIG), 10) == b""
        assert await reader.read(len(BIG) + 5, 10) == b""
        assert await reader.read(1_000_001, 7) == BIG[1_000_001:1_000_008]
        reader.close()
        reader.close()

    async def test_status_and_digest_follow_every_write(self, store: ContentStore) -> None:
        writer = await store.writer("r", total=len(BIG))
        state = hashlib.sha256()
        for start in range(0, len(BIG), 300_000):
            for chunk in (BIG[start : start + 7], BIG[start + 7 : start + 300_000]):
                buffer = bytearray(chunk)
                await writer.write(buffer)
                buffer[:] = bytes(len(buffer))
                state.update(chunk)
                assert writer.digest() == f"sha256:{state.hexdigest()}"
            assert writer.status().offset == min(start + 300_000, len(BIG))
        listed = (await store.list_statuses())[0]
        status = await store.status("r")
        assert listed.offset == status.offset == len(BIG)
        assert (status.ref, status.total) == ("r", len(BIG))
        assert 0 < status.started_at <= status.updated_at
        await writer.commit(len(BIG), "", {})
        assert await get(store, digest.of(BIG)) == BIG

    @pytest.mark.parametrize("size", [9, 100 << 10, 1 << 20])
    async def test_only_read_only_views_are_kept(self, store: ContentStore, size: int) -> None:
        stays = bytearray(b"s" * size)
        changes = bytearray(b"c" * size)
        writer = await store.writer("views")
        await writer.write(memoryview(stays).toreadonly())
        await writer.write(memoryview(changes))
        changes[:] = bytes(size)
        await writer.write(memoryview(b"<e>")[1:2])
        wanted = digest.of(b"s" * size + b"c" * size + b"e")
        await writer.commit(2 * size + 1, wanted, {})
        assert digest.of(await get(store, wanted)) == wanted

    async def test_an_ingest_is_resumed(self, store: ContentStore) -> None:
        writer = await store.writer("r", total=len(BIG), expected=digest.of(BIG))
        await writer.write(BIG[:5])
        await writer.write(BIG[5:2_000_000])
        started = writer.status().started_at
        await writer.close()
        await writer.close()
        assert (await store.status("r")).offset == 2_000_000
        writer = await store.writer("r", total=len(BIG), expected=digest.of(BIG))
        assert writer.status().offset == 2_000_000
        assert writer.status().started_at == started
        assert writer.digest() == digest.of(BIG[:2_000_000])
        await writer.write(BIG[2_000_000:])
        await writer.commit(len(BIG), digest.of(BIG), {})
        assert await get(store, digest.of(BIG)) == BIG

    async def test_an_untouched_ingest_stays(self, store: ContentStore) -> None:
        await (await store.writer("r", total=7)).close()
        status = await store.status("r")
        assert (status.offset, status.total) == (0, 7)

    async def test_another_total_starts_again(self, store: ContentStore) -> None:
        writer = await store.writer("r", total=100)
        await writer.write(SMALL)
        await writer.close()
        writer = await store.writer("r", total=200)
        assert (writer.status().offset, writer.status().total) == (0, 200)
        await writer.close()

    @pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "big"])
    async def test_truncate_starts_again(self, store: ContentStore, data: bytes) -> None:
        writer = await store.writer("r")
        await writer.write(b"wrong")
        await writer.write(data)
        await writer.truncate()
        assert (writer.status().offset, writer.digest()) == (0, digest.EMPTY)
        await writer.write(data)
        await writer.commit(len(data), digest.of(data), {})
        assert await get(store, digest.of(data)) == data

    async def test_one_writer_a_ref(self, store: ContentStore) -> None:
        writer = await store.writer("r")
        with pytest.raises(Unavailable, match=r"ref \S*r locked for .* \(since .*\)"):
            await store.writer("r")
        other = await store.writer("other")
        await writer.close()
        writer = await store.writer("r")
        await writer.close()
        await other.close()

    async def test_a_ref_is_needed(self, store: ContentStore) -> None:
        with pytest.raises(InvalidArgument):
            await store.writer("")

    @pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "big"])
    async def test_a_failed_commit_keeps_the_ingest(self, store: ContentStore, data: bytes) -> None:
        writer = await store.writer("r")
        await writer.write(data)
        with pytest.raises(FailedPrecondition):
            await writer.commit(len(data) + 1, "", {})
        writer = await store.writer("r")
        assert writer.status().offset == len(data)
        assert writer.digest() == digest.of(data)
        with pytest.raises(FailedPrecondition, match="unexpected commit digest"):
            await writer.commit(len(data), digest.EMPTY, {})
        assert await digests(store) == set()
        writer = await store.writer("r")
        await writer.commit(len(data), digest.of(data), {})
        assert await get(store, digest.of(data)) == data

    async def test_a_closed_writer_does_nothing(self, store: ContentStore) -> None:
        writer = await store.writer("r")
        await writer.write(SMALL)
        await writer.commit(0, "", {})
        with pytest.raises(FailedPrecondition):
            await writer.write(SMALL)
        with pytest.raises(FailedPrecondition):
            await writer.commit(0, "", {})
        with pytest.raises(NotFound, match="reference"):
            await store.status("r")

    async def test_content_that_exists(self, store: ContentStore) -> None:
        wanted = await put(store, SMALL)
        with pytest.raises(AlreadyExists, match=f"content {wanted}"):
            await store.writer("r", expected=wanted)
        writer = await store.writer("r")
        await writer.write(SMALL)
        with pytest.raises(AlreadyExists, match=wanted):
            await writer.commit(len(SMALL), wanted, {})
        writer = await store.writer("r")
        assert writer.status().offset == 0
        await writer.close()
        assert await get(store, wanted) == SMALL

    async def test_equal_blobs_at_once(self, store: ContentStore) -> None:
        async def one(ref: str) -> str:
            writer = await store.writer(ref)
            await writer.write(SMALL)
            try:
                await writer.commit(len(SMALL), "", {})
            except AlreadyExists:
                return "exists"
            return "new"

        results = await asyncio.gather(*(one(f"r{number}") for number in range(12)))
        assert sorted(results) == ["exists"] * 11 + ["new"]
        assert await get(store, digest.of(SMALL)) == SMALL
        assert await store.list_statuses() == []

    async def test_many_blobs_at_once(self, store: ContentStore) -> None:
        blobs = [str(number).encode() * 100 for number in range(40)]
        found = await asyncio.gather(*(put(store, b, f"r{n}") for n, b in enumerate(blobs)))
        assert await digests(store) == set(found)
        assert [await get(store, one) for one in found] == blobs

    async def test_abort(self, store: ContentStore) -> None:
        writer = await store.writer("r")
        await writer.write(BIG)
        await writer.close()
        await store.abort("r")
        for call in (store.status, store.abort):
            with pytest.raises(NotFound, match="reference"):
                await call("r")
        assert await store.list_statuses() == []
        writer = await store.writer("r")
        assert writer.status().offset == 0
        await writer.close()

    @pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "big"])
    async def test_abort_under_a_writer(self, store: ContentStore, data: bytes) -> None:
        writer = await store.writer("r")
        await writer.write(data)
        await store.abort("r")
        with pytest.raises(NotFound):
            await store.status("r")
        with pytest.raises(NotFound):
            await writer.commit(0, "", {})
        assert await digests(store) == set()
        await put(store, data, "r")

    async def test_delete(self, store: ContentStore) -> None:
        wanted = await put(store, SMALL)
        kept = await put(store, BIG)
        await store.delete(wanted)
        assert await digests(store) == {kept}
        for call in (store.info, store.delete, store.open):
            with pytest.raises(NotFound):
                await call(wanted)

    async def test_lists_are_filtered(self, store: ContentStore) -> None:
        wanted = await put(store, SMALL)
        await put(store, BIG)
        assert await digests(store, f"digest=={wanted}") == {wanted}
        for ref in ("one", "two"):
            await (await store.writer(ref)).close()
        assert [s.ref for s in await store.list_statuses(["ref==one"])] == ["one"]

    @pytest.mark.parametrize("bad", ["", "sha256", "sha256:abc", "md5:" + "0" * 32, "../x"])
    async def test_bad_digests(self, store: ContentStore, bad: str) -> None:
        for call in (store.info, store.open, store.delete):
            with pytest.raises(InvalidArgument):
                await call(bad)

    async def test_another_algorithm(self, store: ContentStore) -> None:
        wanted = digest.of(BIG, "sha512")
        writer = await store.writer("r", expected=wanted)
        await writer.write(BIG)
        assert writer.digest() == wanted
        await writer.commit(0, wanted, {})
        assert await get(store, wanted) == BIG

    async def test_another_algorithm_named_late(self, store: ContentStore) -> None:
        wanted = digest.of(SMALL, "sha512")
        writer = await store.writer("r")
        await writer.write(SMALL)
        await writer.commit(0, wanted, {})
        assert await get(store, wanted) == SMALL


class ContentLabelSuite:
    async def test_labels_are_kept_and_changed(self, store: ContentStore) -> None:
        writer = await store.writer("r")
        await writer.write(SMALL)
        await writer.commit(0, "", {"a": "1", "b": "2"})
        wanted = digest.of(SMALL)
        assert (await store.info(wanted)).labels == {"a": "1", "b": "2"}
        changed = ContentInfo(wanted, 0, labels={"a": "", "c": "3"})
        info = await store.update(changed, ["labels.a", "labels.c"])
        assert info.labels == {"b": "2", "c": "3"}
        info = await store.update(ContentInfo(wanted, 0, labels={"d": "4"}))
        assert info.labels == {"d": "4"}
        assert info.size == len(SMALL)
        assert await digests(store, "labels.d==4") == {wanted}
        assert await digests(store, "labels.a") == set()

    async def test_update_of_other_fields(self, store: ContentStore) -> None:
        wanted = await put(store, SMALL)
        with pytest.raises(InvalidArgument, match=r'cannot update "size" field on content info'):
            await store.update(ContentInfo(wanted, 1), ["size"])
        with pytest.raises(NotFound):
            await store.update(ContentInfo(digest.of(b"absent"), 0, labels={"a": "1"}))
