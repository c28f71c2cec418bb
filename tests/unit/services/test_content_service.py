"""The content service over the real local store, spoken to as clients do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cradled import digest, errors
from cradled.api import content_pb2 as pb
from cradled.content.local import LocalContentStore, open_store
from cradled.core.scope import Scope
from cradled.rpc.inprocess import InProcess
from cradled.rpc.service import Router
from cradled.rpc.stub import Stub
from cradled.services.content import CHUNK, PAGE, ContentService

EMPTY = digest.EMPTY


class FakeDatabase:
    """One namespace that owns all of a backend."""

    def __init__(self, store: LocalContentStore) -> None:
        self._store = store

    def scoped(self, scope: Scope) -> Any:
        assert scope == Scope("ns", "")
        return SimpleNamespace(content=self._store)


@pytest.fixture
async def store(tmp_path: Path) -> LocalContentStore:
    return await open_store(str(tmp_path))


@pytest.fixture
def content(store: LocalContentStore) -> Stub:
    router = Router()
    db: Any = FakeDatabase(store)
    router.add(pb.Content, ContentService(db))
    return Stub(InProcess(router), pb.Content, [("containerd-namespace", "ns")])


async def put(store: LocalContentStore, data: bytes) -> str:
    writer = await store.writer("put", expected=digest.of(data))
    await writer.write(data)
    await writer.commit(len(data), "", {})
    return digest.of(data)


async def say(stream: Any, **fields: Any) -> pb.WriteContentResponse:
    await stream.send(pb.WriteContentRequest(**fields))
    reply = await stream.recv()
    assert reply is not None
    return reply


async def test_a_client_that_stats_writes_and_commits(
    content: Stub, store: LocalContentStore
) -> None:
    async with content.write() as stream:
        first = await say(stream, ref="r", total=6)
        assert (first.action, first.offset, first.total, first.digest) == (pb.STAT, 0, 6, EMPTY)
        assert first.started_at.seconds > 0
        assert first.updated_at.seconds > 0
        written = await say(stream, action=pb.WRITE, data=b"abc")
        assert (written.action, written.offset) == (pb.WRITE, 3)
        assert written.digest == digest.of(b"abc")
        done = await say(stream, action=pb.COMMIT, offset=3, data=b"def")
        assert (done.action, done.offset, done.digest) == (pb.COMMIT, 6, digest.of(b"abcdef"))
        assert await stream.recv() is None
    assert (await store.info(digest.of(b"abcdef"))).size == 6


async def test_one_message_is_enough(content: Stub, store: LocalContentStore) -> None:
    async with content.write() as stream:
        await say(stream, action=pb.COMMIT, ref="r", data=b"x")
        assert await stream.recv() is None
    assert (await store.info(digest.of(b"x"))).size == 1


async def test_without_stat_replies_have_no_times(content: Stub) -> None:
    async with content.write() as stream:
        reply = await say(stream, action=pb.WRITE, ref="r", total=9, data=b"x")
    assert not reply.HasField("started_at")
    assert reply.total == 0


async def test_zero_bytes(content: Stub, store: LocalContentStore) -> None:
    async with content.write() as stream:
        done = await say(stream, action=pb.COMMIT, ref="r")
    assert done.digest == EMPTY
    assert (await store.info(EMPTY)).size == 0


async def test_first_message_must_name_the_ingest(content: Stub) -> None:
    async with content.write() as stream:
        with pytest.raises(errors.InvalidArgument, match=r"^first message must have a reference"):
            await say(stream, action=pb.WRITE, data=b"x")


async def test_a_stream_without_messages_fails(content: Stub) -> None:
    async with content.write() as stream:
        await stream.done()
        with pytest.raises(errors.Error, match=r"^EOF$"):
            await stream.recv()


async def test_wrong_offset(content: Stub) -> None:
    async with content.write() as stream:
        await say(stream, action=pb.WRITE, ref="r", data=b"abc")
        with pytest.raises(errors.OutOfRange, match=r"^write @5 must occur at current offset 3"):
            await say(stream, action=pb.WRITE, offset=5, data=b"x")


async def test_offset_zero_starts_again(content: Stub) -> None:
    async with content.write() as stream:
        await say(stream, action=pb.WRITE, ref="r", data=b"abc")
        reply = await say(stream, action=pb.WRITE, data=b"z")
        assert (reply.offset, reply.digest) == (1, digest.of(b"z"))


async def test_half_close_leaves_the_ingest_to_be_resumed(content: Stub) -> None:
    async with content.write() as stream:
        await say(stream, action=pb.WRITE, ref="r", data=b"abc")
        await stream.done()
        assert await stream.recv() is None
    status = (await content.status(pb.StatusRequest(ref="r"))).status
    assert (status.ref, status.offset) == ("r", 3)
    async with content.write() as stream:
        reply = await say(stream, ref="r")
        assert (reply.offset, reply.digest) == (3, digest.of(b"abc"))
        await say(stream, action=pb.COMMIT, offset=3, data=b"d", expected=digest.of(b"abcd"))


async def test_cancelled_stream_frees_the_ref(content: Stub) -> None:
    async with content.write() as stream:
        await say(stream, action=pb.WRITE, ref="r", data=b"abc")
        async with content.write() as second:
            with pytest.raises(errors.Unavailable, match="ref r locked for"):
                await say(second, ref="r")
        stream.cancel()
        while True:
            async with content.write() as third:
                try:
                    reply = await say(third, ref="r")
                except errors.Unavailable:
                    await asyncio.sleep(0)
                    continue
            break
    assert reply.offset == 3


async def test_failed_commit_keeps_the_ingest(content: Stub) -> None:
    async with content.write() as stream:
        await say(stream, ref="r")
        with pytest.raises(errors.FailedPrecondition, match="3"):
            await say(stream, action=pb.COMMIT, data=b"abc", total=9)
    async with content.write() as stream:
        assert (await say(stream, ref="r")).offset == 3
        with pytest.raises(errors.FailedPrecondition, match="unexpected commit digest"):
            await say(stream, action=pb.COMMIT, offset=3, expected=digest.of(b"other"))
    async with content.write() as stream:
        await say(stream, ref="r")
        done = await say(stream, action=pb.COMMIT, offset=3, total=3, expected=digest.of(b"abc"))
    assert done.digest == digest.of(b"abc")


async def test_another_total_starts_the_ingest_anew(content: Stub) -> None:
    async with content.write() as stream:
        await say(stream, ref="r", total=9, action=pb.WRITE, data=b"abc")
        await stream.done()
        assert await stream.recv() is None
    async with content.write() as stream:
        assert (await say(stream, ref="r", total=8)).offset == 0


async def test_known_blob_is_refused_at_the_start(content: Stub, store: LocalContentStore) -> None:
    known = await put(store, b"abc")
    async with content.write() as stream:
        with pytest.raises(errors.AlreadyExists, match=f"^content {known}: already exists"):
            await say(stream, ref="r", expected=known)


async def test_blob_that_others_brought_meanwhile(content: Stub, store: LocalContentStore) -> None:
    data, wanted = b"abc", digest.of(b"abc")
    async with content.write() as stream:
        await say(stream, ref="r", expected=wanted)
        await put(store, data)
        text = f"^blob with expected digest {wanted} exists"
        with pytest.raises(errors.AlreadyExists, match=text):
            await say(stream, action=pb.WRITE, data=b"a")
    with pytest.raises(errors.NotFound):
        await content.status(pb.StatusRequest(ref="r"))


async def collect(responses: AsyncIterator[pb.ReadContentResponse]) -> list[tuple[int, bytes]]:
    return [(response.offset, response.data) async for response in responses]


async def test_reads_come_in_chunks_counted_from_the_start_of_the_read(
    content: Stub, store: LocalContentStore
) -> None:
    data = bytes(range(256)) * (CHUNK // 128)
    known = await put(store, data)
    got = await collect(content.read(pb.ReadContentRequest(digest=known, offset=5)))
    assert [offset for offset, _ in got] == [0, CHUNK]
    assert b"".join(part for _, part in got) == data[5:]


@pytest.mark.parametrize(
    ("offset", "size", "wanted"),
    [
        (0, 0, b"abcdef"),
        (-4, -1, b"abcdef"),
        (2, 3, b"cde"),
        (2, 99, b"cdef"),
        (6, 0, b""),
        (6, 4, b""),
    ],
)
async def test_ranges(
    content: Stub, store: LocalContentStore, offset: int, size: int, wanted: bytes
) -> None:
    known = await put(store, b"abcdef")
    request = pb.ReadContentRequest(digest=known, offset=offset, size=size)
    assert b"".join(part for _, part in await collect(content.read(request))) == wanted


async def test_reading_past_the_end(content: Stub, store: LocalContentStore) -> None:
    known = await put(store, b"abcdef")
    with pytest.raises(errors.OutOfRange, match=r"^read past object length 6 bytes"):
        await collect(content.read(pb.ReadContentRequest(digest=known, offset=7)))


async def test_reading_what_is_not_there(content: Stub) -> None:
    with pytest.raises(errors.NotFound):
        await collect(content.read(pb.ReadContentRequest(digest=digest.of(b"no"))))


async def test_lists_come_in_pages(content: Stub, store: LocalContentStore) -> None:
    assert [page async for page in content.list(pb.ListContentRequest())] == []
    for number in range(PAGE + 1):
        await put(store, b"%d" % number)
    pages = [len(page.info) async for page in content.list(pb.ListContentRequest())]
    assert pages == [PAGE, 1]


async def test_status_of_an_unknown_ingest(content: Stub) -> None:
    with pytest.raises(errors.NotFound, match=r'^could not get status for ref "r"'):
        await content.status(pb.StatusRequest(ref="r"))


async def test_abort_works_under_an_open_writer(content: Stub) -> None:
    async with content.write() as stream:
        await say(stream, action=pb.WRITE, ref="r", data=b"abc")
        await content.abort(pb.AbortRequest(ref="r"))
    statuses = await content.list_statuses(pb.ListStatusesRequest())
    assert list(statuses.statuses) == []


async def test_namespace_is_required(store: LocalContentStore) -> None:
    router = Router()
    db: Any = FakeDatabase(store)
    router.add(pb.Content, ContentService(db))
    content = Stub(InProcess(router), pb.Content)
    with pytest.raises(errors.FailedPrecondition, match=r"^namespace is required"):
        await content.info(pb.InfoRequest(digest=EMPTY))
