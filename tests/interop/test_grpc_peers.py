"""Our gRPC with the implementations that others wrote: each scenario, our server with the clients
of Go, Node and Python, and our client with their servers (and, for control, with our own)."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from harness.http2_tap import ACK, GOAWAY, PING, Tap
from harness.peers import Got, Spec, start_client, start_server

from cradled.api import google_rpc_pb2
from cradled.rpc.status import Code

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1 << 20
LIMIT = 16 * MIB
FULL = LIMIT - 5
"""The longest text of a message that has nothing else: its tag and its length take 5 bytes."""

PAIRS = [
    ("go", "ours"),
    ("node", "ours"),
    ("grpcio", "ours"),
    ("ours", "go"),
    ("ours", "node"),
    ("ours", "grpcio"),
    ("ours", "ours"),
]


class Pair(NamedTuple):
    """A client on a server, and the names of their implementations."""

    client: Any
    server: Any
    names: tuple[str, str]

    async def say(self, text: str, revision: str = "", **options: Any) -> Any:
        """The one answer of a call."""
        answer = await self.client.open("Say", Spec(text, revision), **options).recv()
        assert answer.status is not None
        assert answer.status.code == 0, answer.status
        (got,) = answer.messages
        return got


def name(pair: tuple[str, str]) -> str:
    return f"{pair[0]}-on-{pair[1]}"


class Peers:
    """Peers that end with their test, and a directory of a short name, as sockets need."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="cradled-peers-"))
        self._started: list[Any] = []

    async def client(self, peer: str, socket: str, *options: str) -> Any:
        self._started.append(await start_client(peer, self.directory / socket, *options))
        return self._started[-1]

    async def server(self, peer: str) -> Any:
        self._started.append(await start_server(peer, self.directory / "s"))
        return self._started[-1]

    async def pair(self, names: tuple[str, str], *options: str) -> Pair:
        server = await self.server(names[1])
        return Pair(await self.client(names[0], "s", *options), server, names)

    async def aclose(self) -> None:
        for peer in reversed(self._started):
            await peer.aclose()
        shutil.rmtree(self.directory)


@pytest_asyncio.fixture(loop_scope="module")
async def peers() -> AsyncIterator[Peers]:
    peers = Peers()
    yield peers
    await peers.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=PAIRS, ids=name)
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    peers = Peers()
    yield await peers.pair(request.param)
    await peers.aclose()


async def test_all_kinds_of_calls(pair: Pair) -> None:
    client = pair.client
    assert await pair.say("hi", "漢") == Got("hi", 2, "漢")
    assert (await client.open("Count", Spec("3")).recv()).texts == ["0", "1", "2"]
    assert (await client.open("Count", Spec("0")).recv()).texts == []
    join = client.open("Join")
    await join.send(Spec("a"))
    await join.send(Spec("b"))
    await join.close()
    assert (await join.recv()).texts == ["a,b"]
    chat = client.open("Chat")
    for word in ("a", "b"):
        await chat.send(Spec(word))
        assert (await chat.recv(1)).texts == [word]
    await chat.close()
    answer = await chat.recv()
    assert (answer.texts, answer.status.code) == ([], 0)
    for method in ("Chat", "Join"):
        empty = client.open(method)
        await empty.close()
        assert (await empty.recv()).status.code == 0


async def test_empty_messages(pair: Pair) -> None:
    assert await pair.say("") == Got("", 0, "")
    chat = pair.client.open("Chat")
    for _ in range(3):
        await chat.send(Spec(""))
    await chat.close()
    assert (await chat.recv()).messages == [Got("", 0, "")] * 3


async def test_metadata(pair: Pair) -> None:
    metadata = [("key", "v w"), ("raw-bin", "AP8"), ("empty-bin", ""), ("long", "x" * 4000)]
    seen = json.loads((await pair.say("seen", metadata=metadata)).text)
    assert seen["metadata"]["key"] == ["v w"]
    assert seen["metadata"]["raw-bin"] == ["AP8="]
    assert seen["metadata"]["empty-bin"] == [""]
    assert seen["metadata"]["long"] == ["x" * 4000]
    assert seen["timeout"] is None
    answer = await pair.client.open("Count", Spec("1")).recv()
    assert answer.status.headers["from"] == ["zero"]
    assert base64.b64decode(answer.status.trailers["to-bin"][0]) == b"\x00\xff"
    joined = ", ".join(answer.status.trailers["to"])
    assert joined == ("a" if pair.names[0] == "ours" else "a, b")


@pytest.mark.parametrize("what", ["it", "漢 100%\n%41", "x" * 3000])
async def test_errors(pair: Pair, what: str) -> None:
    answer = await pair.client.open("Say", Spec("fail", what)).recv()
    assert answer.messages == []
    assert (answer.status.code, answer.status.text) == (Code.NOT_FOUND, f"{what}: not found")


async def test_errors_with_details(pair: Pair) -> None:
    answer = await pair.client.open("Say", Spec("details")).recv()
    assert answer.status.code == Code.FAILED_PRECONDITION
    text = "with details"
    if pair.names[0] == "ours":  # its errors end with what they are
        text += ": failed precondition"
    assert answer.status.text == text
    told = google_rpc_pb2.Status.FromString(answer.status.details)
    assert told.code == Code.FAILED_PRECONDITION
    (detail,) = told.details
    assert detail.type_url == "type.googleapis.com/test.Detail"
    assert detail.value == b"\n\x01d"


async def test_errors_midway(pair: Pair) -> None:
    chat = pair.client.open("Chat")
    for word in ("a", "fail", "b"):
        await chat.send(Spec(word))
    answer = await chat.recv()
    assert answer.texts == ["a"]
    assert answer.status.code == Code.ABORTED
    assert answer.status.text.removesuffix(": aborted") == "enough"


async def test_missing_methods(pair: Pair) -> None:
    answer = await pair.client.open("Absent", Spec("")).recv()
    assert answer.status.code == Code.UNIMPLEMENTED


async def test_large_messages(pair: Pair) -> None:
    answer = await pair.client.open("Say", Spec("a", size=FULL)).recv()
    assert answer.messages == [Got("a", FULL, "")]
    chat = pair.client.open("Chat")
    for word in "abc":
        await chat.send(Spec(word, size=5 * MIB + 1))
    await chat.close()
    assert (await chat.recv()).messages == [Got(word, 5 * MIB + 1, "") for word in "abc"]
    answer = await pair.client.open("Say", Spec("big", str(FULL))).recv()
    assert answer.messages == [Got("", FULL, "")]


async def test_messages_over_the_limit(pair: Pair) -> None:
    if pair.names[0] != "node":  # it never ends a call whose 16 MiB were refused, by Go neither
        answer = await pair.client.open("Say", Spec("a", size=FULL + 1)).recv()
        assert answer.status.code == Code.RESOURCE_EXHAUSTED
    if pair.names[1] == "ours" and pair.names[0] in ("go", "grpcio"):
        text = f"grpc: received message larger than max ({LIMIT + 1} vs. {LIMIT})"
        assert answer.status.text == text
    answer = await pair.client.open("Say", Spec("big", str(FULL + 1))).recv()
    assert answer.status.code == Code.RESOURCE_EXHAUSTED
    assert await pair.say("still there") == Got("still there", 11, "")


async def test_slow_readers(pair: Pair) -> None:
    before = int((await pair.say("sent")).text)
    call = pair.client.open("Count", Spec("64", str(MIB)))
    assert (await call.recv(1)).messages == [Got("0", MIB, "")]
    other = await pair.client.open("Count", Spec("3", "100000")).recv()
    assert other.texts == ["0", "1", "2"]
    assert int((await pair.say("sent")).text) - before < 60  # its windows end well before
    rest = await call.recv()
    assert rest.messages == [Got(str(number), MIB, "") for number in range(1, 64)]


async def test_deadlines(pair: Pair) -> None:
    seen = json.loads((await pair.say("seen", timeout=50)).text)
    assert 0 < seen["timeout"] < 51  # some round up
    metadata = [("key", "deadline")]
    answer = await pair.client.open("Say", Spec("hang"), metadata=metadata, timeout=0.5).recv()
    assert answer.status.code == Code.DEADLINE_EXCEEDED
    await pair.say("cancelled", "deadline")


async def test_cancelling_a_unary_call(pair: Pair) -> None:
    call = pair.client.open("Say", Spec("hang"), metadata=[("key", "unary")])
    await pair.say("started", "unary")
    call.cancel()
    assert (await call.recv()).status.code == Code.CANCELLED
    await pair.say("cancelled", "unary")


async def test_cancelling_streams_midway(pair: Pair) -> None:
    chat = pair.client.open("Chat", metadata=[("key", "chat")])
    await chat.send(Spec("hang"))
    assert (await chat.recv(1)).texts == ["hang"]
    chat.cancel()
    assert (await chat.recv()).status.code == Code.CANCELLED
    await pair.say("cancelled", "chat")
    count = pair.client.open("Count", Spec("1000", str(MIB)), metadata=[("key", "count")])
    await count.recv(1)
    count.cancel()
    assert (await count.recv()).status.code == Code.CANCELLED
    await pair.say("cancelled", "count")
    await pair.say("still there")


async def test_early_ends(pair: Pair) -> None:
    """The server ends the call while the client could still send."""
    chat = pair.client.open("Chat")
    await chat.send(Spec("end"))
    answer = await chat.recv()
    assert (answer.texts, answer.status.code) == (["end"], 0)


async def test_a_thousand_streams_at_once(pair: Pair) -> None:
    chats = [pair.client.open("Chat") for _ in range(1000)]
    for number, chat in enumerate(chats):
        await chat.send(Spec(str(number)))
    answers = await asyncio.gather(*(chat.recv(1) for chat in chats))
    assert [answer.texts for answer in answers] == [[str(number)] for number in range(1000)]
    for chat in chats:
        await chat.close()
    ends = await asyncio.gather(*(chat.recv() for chat in chats))
    assert all((end.texts, end.status.code) == ([], 0) for end in ends)


# Each with peers of its own


@pytest.fixture(params=PAIRS, ids=name)
def names(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.mark.parametrize("names", PAIRS[:-1], ids=name)  # ours sends none
async def test_pings_are_answered(names: tuple[str, str], peers: Peers) -> None:
    """Those that measure a link, and those that keep it alive: neither side takes offence."""
    theirs_is_client = names[1] == "ours"
    await peers.server(names[1])
    async with Tap(peers.directory / "t", peers.directory / "s") as tap:
        client = await peers.client(names[0], "t", "keepalive")
        chat = client.open("Chat")
        for word in ("a", "b", "c"):
            await chat.send(Spec(word, size=MIB))
            assert (await chat.recv(1)).texts == [word]
        if names[0] != "go":  # it pings with data; idle, every ten seconds
            enough = tap.count(client=theirs_is_client, kind=PING, flags=0) + 2
            await tap.seen(enough, client=theirs_is_client, kind=PING, flags=0)
        await tap.seen(1, client=not theirs_is_client, kind=PING, flags=ACK)
        await chat.close()
        assert (await chat.recv()).status.code == 0
        assert tap.count(client=False, kind=GOAWAY, flags=0) == 0
        await client.aclose()


async def test_compressed_messages(names: tuple[str, str], peers: Peers) -> None:
    pair = await peers.pair(names, "gzip")
    answer = await pair.client.open("Say", Spec("a", size=200_000)).recv()
    assert answer.messages == [Got("a", 200_000, "")]
    chat = pair.client.open("Chat")
    for word in ("a", "", "c"):
        await chat.send(Spec(word, size=5000))
    await chat.close()
    assert (await chat.recv()).messages == [Got(word, 5000, "") for word in ("a", "", "c")]


async def test_graceful_shutdown(names: tuple[str, str], peers: Peers) -> None:
    """Calls under way go on, new ones are not taken, the server ends with the last call."""
    server = await peers.server(names[1])
    async with Tap(peers.directory / "t", peers.directory / "s") as tap:
        client = await peers.client(names[0], "t")
        chat = client.open("Chat")
        await chat.send(Spec("a"))
        assert (await chat.recv(1)).texts == ["a"]
        stopping = asyncio.ensure_future(server.stop())
        await tap.seen(1, client=False, kind=GOAWAY, flags=0)
        await chat.send(Spec("b"))
        assert (await chat.recv(1)).texts == ["b"]
        assert not stopping.done()
        await chat.send(Spec("end"))
        answer = await chat.recv()
        assert (answer.texts, answer.status.code) == (["end"], 0)
        await stopping
        answer = await client.open("Say", Spec("late")).recv()
        assert answer.status.code == Code.UNAVAILABLE
        await client.aclose()


async def test_lost_servers(names: tuple[str, str], peers: Peers) -> None:
    pair = await peers.pair(names)
    call = pair.client.open("Say", Spec("hang"), metadata=[("key", "lost")])
    await pair.say("started", "lost")
    await pair.server.aclose()
    assert (await call.recv()).status.code == Code.UNAVAILABLE
