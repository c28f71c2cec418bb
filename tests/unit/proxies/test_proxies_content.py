"""The content suites over a proxy, the real service and the real store."""

import pytest

from cradled import digest
from cradled.core.scope import Scope
from cradled.errors import AlreadyExists, FailedPrecondition
from cradled.proxies.content import CHUNK, ProxyContentStore
from cradled.rpc.stub import Transport
from cradled.testing.content_suite import BIG, SMALL, ContentLabelSuite, ContentSuite, put


@pytest.fixture
async def store(transport: Transport) -> ProxyContentStore:
    return ProxyContentStore(transport, Scope("test"))


class TestProxyContentStore(ContentSuite, ContentLabelSuite):
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
