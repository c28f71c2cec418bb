"""The content suite over a proxy, the real service and the real local store."""

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from cradled import digest
from cradled.aio import threads
from cradled.api import content_pb2
from cradled.content.local import open_store
from cradled.core.scope import Scope
from cradled.errors import AlreadyExists, FailedPrecondition
from cradled.proxies.content import CHUNK, ProxyContentStore
from cradled.rpc.inprocess import InProcess
from cradled.rpc.service import Router
from cradled.services.content import ContentService
from cradled.testing.content_suite import BIG, SMALL, ContentSuite, put


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ProxyContentStore]:
    local = await open_store(str(tmp_path))
    db = SimpleNamespace(scoped=lambda scope: SimpleNamespace(content=local))
    router = Router()
    router.add(content_pb2.Content, ContentService(db))  # type: ignore[arg-type]
    yield ProxyContentStore(InProcess(router), Scope("test"))
    threads.close()


class TestProxyContentStore(ContentSuite):
    async def test_many_chunks_in_one_write(self, store: ProxyContentStore) -> None:
        data = BIG * 2
        assert len(data) > 3 * CHUNK
        assert await store.read_all(await put(store, data)) == data

    async def test_a_closed_writer_refuses(self, store: ProxyContentStore) -> None:
        writer = await store.writer("r")
        await writer.close()
        with pytest.raises(FailedPrecondition, match="closed"):
            await writer.write(b"x")

    async def test_expected_appears_while_writing(self, store: ProxyContentStore) -> None:
        writer = await store.writer("slow", expected=digest.of(SMALL))
        await writer.write(SMALL[:3])
        await put(store, SMALL, "fast")
        with pytest.raises(AlreadyExists):
            await writer.write(SMALL[3:])
        await writer.close()
        assert await store.list_statuses() == []
