"""Our ttrpc with containerd's Go library, both ways, and for control with our own.

Peers serve and call ``test.Words``, whose method ``Say`` takes and gives a string: it echoes, but
for ``fail X`` (NOT_FOUND, "X: not found"), ``bug`` (an error without a code), ``big N`` (N dots),
``seen`` (metadata and time left, as JSON), and ``hang`` (to the end of the call; ``started`` and
``ended`` are answered once one has begun to hang, or has ended). A text is filled up with dots to
a size, and reported without them.

The Go client takes a JSON object on each line of its standard input: ``open`` a call (``id``,
``service``, ``method``, ``text``, ``size``, ``metadata``, ``timeout``), or ``cancel`` it. Each call
ends with one line of its standard output.

Where the library has streams (since 1.2), ``test.Streams`` has ``Count`` ("N SIZE": N texts of that
size), ``Join`` (all texts, comma between) and ``Chat`` (echoes; ``fail`` fails), and the order
``stream`` sends all of ``texts`` and takes what comes.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from google.protobuf.wrappers_pb2 import StringValue
from harness.peers import PATIENCE, Program, RemoteServer, go_program

from cradled import errors
from cradled.api.pool import Method, Service
from cradled.rpc.service import Router
from cradled.rpc.status import Code, to_status
from cradled.rpc.ttrpc_client import TtrpcChannel, connect
from cradled.rpc.ttrpc_server import TtrpcServer
from cradled.ttrpc.frames import MAX_DATA

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAME = "test.Words"
SAY = Method("Say", f"/{NAME}/Say", StringValue, StringValue, False, False)
WORDS = Service(NAME, {"Say": SAY})
STREAMS = Service(
    "test.Streams",
    {
        name: Method(name, f"/test.Streams/{name}", StringValue, StringValue, client, server)
        for name, client, server in (
            ("Count", False, True),
            ("Join", True, False),
            ("Chat", True, True),
        )
    },
)
LIBRARY = Path("/usr/share/gocode/src/github.com/containerd/ttrpc")
HAS_STREAMS = (LIBRARY / "stream.go").exists()

PAIRS = [("go", "ours"), ("ours", "go"), ("ours", "ours")]


class Answer(NamedTuple):
    text: str = ""
    size: int = 0
    code: int = 0
    status: str = ""
    texts: tuple[str, ...] = ()


def peer() -> tuple[list[str], dict[str, str]]:
    """How to start the Go peer."""
    return [str(go_program("ttrpc_go", *["stream.go"] * HAS_STREAMS))], {}


class GoClient:
    def __init__(self, program: Program) -> None:
        self._program = program
        self._ids = 0
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._reader = asyncio.get_running_loop().create_task(self._read())

    @classmethod
    async def start(cls, path: Path) -> GoClient:
        return cls(await Program.start(peer(), "client", str(path)))

    async def call(
        self,
        text: str,
        size: int = 0,
        *,
        path: tuple[str, str] = (NAME, "Say"),
        metadata: Sequence[tuple[str, str]] = (),
        timeout: float = 0,
    ) -> Answer:
        return await self._answer(
            do="open", service=path[0], method=path[1], text=text, size=size,
            metadata=list(metadata), timeout=timeout,
        )  # fmt: skip

    async def stream(self, method: str, texts: list[str], size: int = 0) -> Answer:
        return await self._answer(
            do="stream", service="test.Streams", method=method, texts=texts, size=size
        )

    async def _answer(self, **order: Any) -> Answer:
        self._ids += 1
        number = self._ids
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._order(id=number, **order)
        try:
            async with asyncio.timeout(PATIENCE):
                return await asyncio.shield(future)
        except asyncio.CancelledError:
            self._order(do="cancel", id=number)
            await future
            raise

    def _order(self, **fields: Any) -> None:
        self._program.stdin.write(json.dumps(fields).encode() + b"\n")

    async def _read(self) -> None:
        while line := await self._program.stdout.readline():
            told = json.loads(line)
            told["texts"] = tuple(told["texts"] or ())
            self._waiting.pop(told.pop("id")).set_result(Answer(**told))

    async def aclose(self) -> None:
        await self._program.end()
        await self._reader


class OurClient:
    def __init__(self, channel: TtrpcChannel) -> None:
        self._channel = channel

    @classmethod
    async def start(cls, path: Path) -> OurClient:
        return cls(await connect(f"unix://{path}"))

    async def call(
        self,
        text: str,
        size: int = 0,
        *,
        path: tuple[str, str] = (NAME, "Say"),
        metadata: Sequence[tuple[str, str]] = (),
        timeout: float = 0,
    ) -> Answer:
        method = Method(path[1], "/".join(("", *path)), StringValue, StringValue, False, False)
        request = StringValue(value=text.ljust(size, "."))
        try:
            async with asyncio.timeout(PATIENCE):
                response = await self._channel.call(
                    method, request, metadata=metadata, timeout=timeout or None
                )
        except errors.Error as error:
            code, status = to_status(error)
            return Answer(code=code, status=status)
        return Answer(response.value.rstrip("."), len(response.value))

    async def stream(self, method: str, texts: list[str], size: int = 0) -> Answer:
        got: list[str] = []
        total = code = 0
        status = ""
        async with self._channel.open(STREAMS.methods[method]) as stream:
            try:
                async with asyncio.timeout(PATIENCE):
                    for text in texts:
                        padding = 0 if method == "Count" else size
                        await stream.send(StringValue(value=text.ljust(padding, ".")))
                    await stream.done()
                    while (response := await stream.recv()) is not None:
                        got.append(response.value.rstrip("."))
                        total += len(response.value)
            except errors.Error as error:
                code, status = to_status(error)
        return Answer("", total, code, status, tuple(got))

    async def aclose(self) -> None:
        await self._channel.aclose()


class Words:
    def __init__(self) -> None:
        self._started = asyncio.Semaphore(0)
        self._ended = asyncio.Semaphore(0)

    async def say(self, call: Any, request: Any) -> Any:
        word, _, rest = request.value.partition(" ")
        match word:
            case "fail":
                raise errors.NotFound(rest)
            case "bug":
                raise ValueError("oops")
            case "big":
                return StringValue(value="." * int(rest))
            case "hang":
                self._started.release()
                try:
                    await asyncio.Event().wait()
                finally:
                    self._ended.release()
            case "started":
                await self._started.acquire()
            case "ended":
                await self._ended.acquire()
            case "seen":
                left = call.deadline and call.deadline - asyncio.get_running_loop().time()
                metadata = {key: [value] for key, value in call.metadata.items()}
                return StringValue(value=json.dumps({"metadata": metadata, "timeout": left}))
        return request


class Streams:
    async def count(self, call: Any, request: Any) -> AsyncIterator[Any]:
        word, _, size = request.value.partition(" ")
        if not word.isdecimal():
            raise errors.InvalidArgument("no number", verbatim=True)
        for number in range(int(word)):
            yield StringValue(value=str(number).ljust(int(size or 0), "."))

    async def join(self, call: Any, requests: Any) -> Any:
        return StringValue(value=",".join([request.value async for request in requests]))

    async def chat(self, call: Any, requests: Any) -> AsyncIterator[Any]:
        async for request in requests:
            if request.value == "fail":
                raise errors.Aborted("enough")
            yield request


class OurServer:
    def __init__(self, server: TtrpcServer) -> None:
        self._server = server

    @classmethod
    async def start(cls, path: Path) -> OurServer:
        router = Router()
        router.add(WORDS, Words())
        router.add(STREAMS, Streams())
        server = TtrpcServer(router)
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(path))
        sock.listen(100)
        await server.serve(sock)
        return cls(server)

    async def aclose(self) -> None:
        await self._server.stop(0)


async def go_server(path: Path) -> RemoteServer:
    program = await Program.start(peer(), "server", str(path))
    assert await program.stdout.readline() == b"ready\n"
    return RemoteServer(program)


class Pair(NamedTuple):
    client: Any
    server: Any
    names: tuple[str, str]


async def make(names: tuple[str, str], path: Path) -> Pair:
    server = await (OurServer.start(path) if names[1] == "ours" else go_server(path))
    client = await (OurClient if names[0] == "ours" else GoClient).start(path)
    return Pair(client, server, names)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=PAIRS, ids="-on-".join)
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    directory = Path(tempfile.mkdtemp(prefix="cradled-peers-"))
    pair = await make(request.param, directory / "s")
    yield pair
    await pair.client.aclose()
    await pair.server.aclose()
    shutil.rmtree(directory)


@pytest.fixture
async def client(pair: Pair) -> Any:
    return pair.client


async def test_calls(client: Any) -> None:
    assert await client.call("hi") == Answer("hi", 2)
    assert await client.call("漢") == Answer("漢", 3 if isinstance(client, GoClient) else 1)
    assert await client.call("") == Answer()


async def test_errors(client: Any) -> None:
    assert await client.call("fail it") == Answer(code=Code.NOT_FOUND, status="it: not found")
    strange = "100%\n漢"
    answer = await client.call(f"fail {strange}")
    assert answer == Answer(code=Code.NOT_FOUND, status=f"{strange}: not found")
    assert await client.call("bug") == Answer(code=Code.UNKNOWN, status="oops")


async def test_missing_services_and_methods(client: Any) -> None:
    answer = await client.call("", path=("test.None", "Say"))
    assert answer.code == Code.UNIMPLEMENTED
    assert answer.status.split(":")[0] == "service test.None"
    answer = await client.call("", path=(NAME, "None"))
    assert answer.code == Code.UNIMPLEMENTED
    assert answer.status.split(":")[0] == "method None"


async def test_metadata_and_time_left(client: Any) -> None:
    metadata = [("containerd-namespace-ttrpc", "n1"), ("long", "x" * 5000)]
    seen = json.loads((await client.call("seen", metadata=metadata, timeout=50)).text)
    assert seen["metadata"] == {"containerd-namespace-ttrpc": ["n1"], "long": ["x" * 5000]}
    assert 0 < seen["timeout"] <= 50
    assert json.loads((await client.call("seen")).text)["timeout"] is None


async def test_deadlines(client: Any) -> None:
    answer = await client.call("hang", timeout=0.5)
    assert answer.code in (Code.DEADLINE_EXCEEDED, Code.UNKNOWN)  # Go's has no code
    assert answer.status in ("context deadline exceeded", "deadline exceeded")
    assert (await client.call("started")).text == "started"
    assert (await client.call("ended")).text == "ended"


async def test_cancelling_midway(client: Any) -> None:
    """ttrpc does not tell the server; the connection is as good as before."""
    task = asyncio.ensure_future(client.call("hang", timeout=1))
    assert (await client.call("started")).text == "started"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await client.call("hi")).text == "hi"
    assert (await client.call("ended")).text == "ended"  # by its deadline
    assert (await client.call("hi")).text == "hi"


async def test_large_messages(client: Any) -> None:
    size = MAX_DATA - 100
    assert await client.call("a", size) == Answer("a", size)
    answers = await asyncio.gather(*(client.call(f"big {size}") for _ in range(8)))
    assert answers == [Answer("", size)] * 8


async def test_messages_over_the_limit(client: Any) -> None:
    answer = await client.call("a", MAX_DATA)
    assert answer.code == Code.RESOURCE_EXHAUSTED
    assert "exceed maximum message size of 4194304" in answer.status
    answer = await client.call(f"big {MAX_DATA}")
    assert answer.code == Code.RESOURCE_EXHAUSTED
    assert "exceed maximum message size of 4194304" in answer.status
    assert (await client.call("hi")).text == "hi"


async def test_a_thousand_calls_at_once(client: Any) -> None:
    answers = await asyncio.gather(*(client.call(str(number)) for number in range(1000)))
    assert [answer.text for answer in answers] == [str(number) for number in range(1000)]
    hanging = [asyncio.ensure_future(client.call("hang", timeout=20)) for _ in range(1000)]
    for _ in hanging:
        await client.call("started")
    assert (await client.call("hi")).text == "hi"
    for task in hanging:
        task.cancel()
    await asyncio.wait(hanging)


STREAMING = PAIRS if HAS_STREAMS else PAIRS[2:]


@pytest.fixture
def streamer(pair: Pair) -> Any:
    if pair.names not in STREAMING:
        pytest.skip("this version of the Go library has no streams")
    return pair.client


async def test_streams_from_the_server(streamer: Any) -> None:
    answer = await streamer.stream("Count", ["3"])
    assert (answer.texts, answer.code) == (("0", "1", "2"), 0)
    assert await streamer.stream("Count", ["0"]) == Answer()
    answer = await streamer.stream("Count", ["100 200000"])
    assert (len(answer.texts), answer.size) == (100, 100 * 200_000)
    answer = await streamer.stream("Count", ["x"])
    assert (answer.code, answer.texts) == (Code.INVALID_ARGUMENT, ())
    assert answer.status.startswith("no number")


async def test_streams_to_the_server(streamer: Any) -> None:
    assert (await streamer.stream("Join", ["a", "b", "c"])).texts == ("a,b,c",)
    assert (await streamer.stream("Join", [])).texts == ("",)
    assert (await streamer.stream("Join", ["x"] * 1000)).texts == (",".join("x" * 1000),)


async def test_streams_both_ways(streamer: Any) -> None:
    answer = await streamer.stream("Chat", ["a", "", "b"], size=100)
    assert (answer.texts, answer.size, answer.code) == (("a", "", "b"), 300, 0)
    assert await streamer.stream("Chat", []) == Answer()
    answer = await streamer.stream("Chat", ["a", "fail"])
    assert (answer.code, answer.status) == (Code.ABORTED, "enough: aborted")
    assert answer.texts == ("a",)


async def test_a_thousand_streams_at_once(streamer: Any) -> None:
    calls = [streamer.stream("Chat", [str(number), "x"]) for number in range(1000)]
    answers = await asyncio.gather(*calls)
    assert [answer.texts for answer in answers] == [(str(n), "x") for n in range(1000)]


@pytest.mark.parametrize("names", PAIRS, ids="-on-".join)
async def test_lost_servers(names: tuple[str, str], tmp_path: Path) -> None:
    pair = await make(names, tmp_path / "s")
    try:
        call = asyncio.ensure_future(pair.client.call("hang"))
        await pair.client.call("started")
        await pair.server.aclose()
        assert await call == Answer(code=Code.UNKNOWN, status="ttrpc: closed")
        assert (await pair.client.call("hi")).status == "ttrpc: closed"
    finally:
        await pair.client.aclose()
        await pair.server.aclose()
