"""Named streams and bytes in windows, without a transport."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cradled.convert import transfer as convert
from cradled.errors import AlreadyExists, Cancelled, NotFound
from cradled.streaming.manager import Stream, Streams
from cradled.streaming.windows import CHUNK, WINDOW, receive_bytes, send_bytes


class Client:
    """The other side of a stream: messages to the server, and what came from it."""

    def __init__(self) -> None:
        self._to_server: asyncio.Queue[Any] = asyncio.Queue()

    def say(self, message: Any) -> None:
        self._to_server.put_nowait(message)

    def done(self) -> None:
        self._to_server.put_nowait(None)

    async def incoming(self) -> AsyncIterator[Any]:
        while (message := await self._to_server.get()) is not None:
            yield message


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
async def stream(client: Client) -> Stream:
    return Stream(client.incoming())


async def pieces(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def test_messages_go_both_ways(stream: Stream, client: Client) -> None:
    client.say("in")
    assert await stream.receive() == "in"
    await stream.send("out")
    await stream.close()
    assert [message async for message in stream.sent()] == ["out"]
    client.done()
    assert await stream.receive() is None
    assert await stream.receive() is None


async def test_a_slow_client_holds_the_sender_up(stream: Stream) -> None:
    async def send() -> None:
        for number in range(40):
            await stream.send(number)
        await stream.close()

    sending = asyncio.ensure_future(send())
    for _ in range(100):
        await asyncio.sleep(0)
    assert not sending.done()
    assert [message async for message in stream.sent()] == list(range(40))
    await sending


@pytest.mark.parametrize("kind", ["receive", "send"])
async def test_leaving_wakes_who_waits(stream: Stream, kind: str) -> None:
    async def send() -> None:
        while True:
            await stream.send("x")

    waiting = asyncio.ensure_future(stream.receive() if kind == "receive" else send())
    for _ in range(100):
        await asyncio.sleep(0)
    stream.leave()
    with pytest.raises(Cancelled, match="stream is closed"):
        await waiting
    assert not waiting.cancelled()
    for call in (stream.receive(), stream.send("x")):
        with pytest.raises(Cancelled):
            await call
    await stream.close()


async def test_being_cancelled_is_not_taken_for_leaving(stream: Stream) -> None:
    waiting = asyncio.ensure_future(stream.receive())
    await asyncio.sleep(0)
    waiting.cancel()
    stream.leave()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_names(client: Client) -> None:
    streams = Streams()
    async with streams.opened("n", "x", client.incoming()) as stream:
        assert streams.get("n", "x") is stream
        with pytest.raises(AlreadyExists, match='stream "x"'):
            async with streams.opened("n", "x", client.incoming()):
                pass
        assert streams.get("n", "x") is stream
        with pytest.raises(NotFound, match='stream "x"'):
            streams.get("other", "x")
        async with streams.opened("other", "x", client.incoming()) as second:
            assert second is not stream
    with pytest.raises(NotFound):
        streams.get("n", "x")
    with pytest.raises(Cancelled):
        await stream.send("late")


async def test_receiving_grants_before_and_again(stream: Stream, client: Client) -> None:
    received = receive_bytes(stream)
    third = bytes(WINDOW // 3)
    for _ in range(4):
        client.say(convert.data_to_any(third))
    client.say(convert.progress_to_any)  # not reached: the client ends first
    client._to_server._queue.pop()  # type: ignore[attr-defined]
    client.done()
    assert [len(data) async for data in received] == [len(third)] * 4
    await stream.close()
    granted = [convert.window_from_any(message) async for message in stream.sent()]
    assert granted == [WINDOW, 2 * len(third), 2 * len(third)]
    assert sum(granted) - 4 * len(third) <= WINDOW


async def test_sending_keeps_to_the_window(stream: Stream, client: Client) -> None:
    data = bytes(range(256)) * 500
    sending = asyncio.ensure_future(send_bytes(stream, pieces(data[:7], b"", data[7:])))
    got = b""
    outgoing = stream.sent()
    for grant in (5, 40_000, 1, 1 << 20):
        client.say(convert.window_to_any(grant))
        wanted = min(len(data), len(got) + grant)
        while len(got) < wanted:
            piece = convert.data_from_any(await anext(outgoing))
            assert 0 < len(piece) <= CHUNK
            got += piece
        assert len(got) == wanted
    assert [message async for message in outgoing] == []
    stream.leave()
    await sending
    assert got == data


async def test_a_receiver_that_wants_no_more(stream: Stream, client: Client) -> None:
    client.done()
    with pytest.raises(Cancelled, match="takes no more"):
        await send_bytes(stream, pieces(b"data"))
