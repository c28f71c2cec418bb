"""gRPC peers for the interop tests: others' implementations, and ours in the same shape.

Every peer serves ``test.Echo`` with the same rules, and drives calls by the same orders, so that a
test is written once and runs with any client on any server. A message has a text and a revision;
texts are filled up with dots to a size and reported without them, so damage would be seen.

The service:

- ``Say`` echoes, but for these texts: ``fail`` (NOT_FOUND, "<revision>: not found"), ``details``
  (FAILED_PRECONDITION with a detail), ``big`` (a text of <revision> dots), ``seen`` (the call's
  metadata and time left, as JSON), ``sent`` (how many messages all ``Count`` have sent), ``hang``
  (for ever; ``started`` and ``cancelled`` answer once a call with the metadata ``key`` = <revision>
  has begun to hang, or was cancelled).
- ``Count`` sends <text> messages of <revision> bytes, with initial and trailing metadata.
- ``Join`` answers with all texts, comma between.
- ``Chat`` echoes each message; then ``end`` ends the call, ``hang`` keeps it for ever; ``fail``
  fails it (ABORTED, "enough").

A client program takes a JSON object on each line of its standard input: ``do`` is ``open`` (with
``id``, ``method``, for one request ``message``, and ``metadata``, ``timeout``), ``send``,
``close`` (no more requests), ``cancel``, and ``recv``, which it answers with a line that has up to
``count`` messages (0: all) and, if the call ended, its ``status``.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cradled import errors
from cradled.rpc.grpc_client import GrpcChannel, connect
from cradled.rpc.grpc_server import GrpcServer
from cradled.rpc.service import Router
from cradled.rpc.status import packed, to_status
from harness.echo import ECHO, message

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "peers"
SOURCES = ROOT / "tests" / "interop" / "peers"
PATIENCE = 60.0

Metadata = Sequence[tuple[str, str]]


class Spec(NamedTuple):
    """A message to send."""

    text: str
    revision: str = ""
    size: int = 0

    def message(self) -> Any:
        return message(self.text.ljust(self.size, "."), self.revision)


class Got(NamedTuple):
    """A message that came."""

    text: str
    size: int
    revision: str

    @classmethod
    def of(cls, message: Any) -> Got:
        text = message.version
        return cls(text.rstrip("."), len(text.encode()), message.revision)


class Status(NamedTuple):
    """How a call ended; ``details`` is a serialised google.rpc.Status, if the error had any."""

    code: int
    text: str
    headers: dict[str, list[str]]
    trailers: dict[str, list[str]]
    details: bytes


class Answer(NamedTuple):
    messages: list[Got]
    status: Status | None

    @property
    def texts(self) -> list[str]:
        return [got.text for got in self.messages]


# Programs


def go_program(name: str, *more: str) -> Path:
    """Build ``peers/<name>/peer.go`` with Debian's Go packages, once for each of its versions.

    ``more`` are other files beside it.
    """
    sources = [SOURCES / name / file for file in ("peer.go", *more)]
    environment = {
        **os.environ,
        "GOPATH": "/usr/share/gocode",
        "GO111MODULE": "off",
        "GOCACHE": str(CACHE / "go"),
        "CGO_ENABLED": "0",
    }
    parts = [source.read_bytes() for source in sources]
    target = CACHE / f"{name}-{_key(*parts, _go_packages())}"
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        made = target.with_name(f"{target.name}.{os.getpid()}")
        command = ["go", "build", "-o", str(made), *map(str, sources)]
        subprocess.run(command, env=environment, cwd="/", check=True)
        made.rename(target)
    return target


def _go_packages() -> bytes:
    """The versions of what Go peers are made of."""
    names = ["golang-go", "golang-google-grpc-dev", "golang-github-containerd-ttrpc-dev"]
    return subprocess.run(["dpkg-query", "-W", *names], check=True, capture_output=True).stdout


def node_modules() -> Path:
    """Install what the Node peer needs, once for each lock file."""
    source = SOURCES / "node"
    target = CACHE / f"node-{_key((source / 'package-lock.json').read_bytes())}"
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as made:
            for name in ("package.json", "package-lock.json", ".npmrc"):
                shutil.copy(source / name, made)
            subprocess.run(["npm", "ci", "--ignore-scripts", "--silent"], cwd=made, check=True)
            Path(made, "node_modules").rename(target)
    return target


def _key(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def command(peer: str) -> tuple[list[str], dict[str, str]]:
    """How to start the gRPC peer of an implementation: arguments, environment."""
    if peer == "go":
        return [str(go_program("grpc_go"))], {}
    if peer == "node":
        return ["node", str(SOURCES / "node" / "peer.js")], {"NODE_PATH": str(node_modules())}
    return [sys.executable, str(SOURCES / "grpcio_peer.py")], {}


class Program:
    """A peer's process; what it says on standard error is ours to see when a test fails."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        assert process.stdin is not None
        assert process.stdout is not None
        self.stdin, self.stdout = process.stdin, process.stdout

    @classmethod
    async def start(cls, program: tuple[list[str], dict[str, str]], *arguments: str) -> Program:
        argv, environment = program
        pipe = subprocess.PIPE
        return cls(
            await asyncio.create_subprocess_exec(
                *argv,
                *arguments,
                stdin=pipe,
                stdout=pipe,
                env={**os.environ, **environment},
                limit=1 << 20,
            )
        )

    async def end(self, number: int | None = None) -> None:
        """Close its standard input, or send a signal; wait for its end."""
        if number is not None and self.process.returncode is None:
            self.process.send_signal(number)
        self.stdin.close()
        try:
            async with asyncio.timeout(PATIENCE):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
            raise


# Clients


class RemoteClient:
    """A client program."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._ids = 0
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._reader = asyncio.get_running_loop().create_task(self._read())

    @classmethod
    async def start(cls, peer: str, path: Path, *options: str) -> RemoteClient:
        return cls(await Program.start(command(peer), "client", str(path), *options))

    def open(
        self,
        method: str,
        message: Spec | None = None,
        *,
        metadata: Metadata = (),
        timeout: float = 0,
    ) -> RemoteCall:
        self._ids += 1
        spec = None if message is None else message._asdict()
        self.order(
            "open", self._ids, method=method, message=spec, metadata=list(metadata), timeout=timeout
        )
        return RemoteCall(self, self._ids)

    def order(self, do: str, number: int, **fields: Any) -> None:
        line = json.dumps({"do": do, "id": number, **fields})
        self._program.stdin.write(line.encode() + b"\n")

    def answer(self, number: int) -> asyncio.Future[Answer]:
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        return future

    async def _read(self) -> None:
        while line := await self._program.stdout.readline():
            told = json.loads(line)
            status = told["status"]
            if status is not None:
                status["details"] = base64.b64decode(status["details"] + "==")
                status["headers"] = status["headers"] or {}
                status = Status(**status)
            answer = Answer([Got(*got) for got in told["messages"]], status)
            self._waiting.pop(told["id"]).set_result(answer)
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(AssertionError("the client program has ended"))

    async def aclose(self) -> None:
        await self._program.end()
        await self._reader


class RemoteCall:
    def __init__(self, client: RemoteClient, number: int) -> None:
        self._client = client
        self._id = number

    async def send(self, spec: Spec) -> None:
        """Order it; the program sends as its windows allow."""
        self._client.order("send", self._id, message=spec._asdict())

    async def close(self) -> None:
        self._client.order("close", self._id)

    def cancel(self) -> None:
        self._client.order("cancel", self._id)

    async def recv(self, count: int = 0) -> Answer:
        self._client.order("recv", self._id, count=count)
        async with asyncio.timeout(PATIENCE):
            return await self._client.answer(self._id)


class OurClient:
    """Our channel, in the shape of a client program."""

    def __init__(self, channel: GrpcChannel) -> None:
        self._channel = channel

    @classmethod
    async def start(cls, peer: str, path: Path, *options: str) -> OurClient:
        return cls(await connect(f"unix://{path}"))

    def open(
        self,
        method: str,
        message: Spec | None = None,
        *,
        metadata: Metadata = (),
        timeout: float = 0,
    ) -> OurCall:
        stream = self._channel.open(
            ECHO.methods[method], metadata=metadata, timeout=timeout or None
        )
        return OurCall(stream, message)

    async def aclose(self) -> None:
        await self._channel.aclose()


class OurCall:
    def __init__(self, stream: Any, message: Spec | None) -> None:
        self._stream = stream
        self._tasks: list[asyncio.Task[None]] = []
        self._failed: errors.Error | None = None
        if message is not None:
            self._later(stream.send_only(message.message()))

    def _later(self, sending: Any) -> None:
        """Do it behind what was ordered before; the end of the call tells if it failed."""

        async def do(before: list[asyncio.Task[None]]) -> None:
            if before:
                await asyncio.wait(before)
            try:
                await sending
            except errors.Error as error:
                self._failed = self._failed or error
                self._stream.cancel()

        self._tasks = [asyncio.ensure_future(do(self._tasks))]

    async def send(self, spec: Spec) -> None:
        self._later(self._stream.send(spec.message()))

    async def close(self) -> None:
        self._later(self._stream.done())

    def cancel(self) -> None:
        self._stream.cancel()

    async def recv(self, count: int = 0) -> Answer:
        messages: list[Got] = []
        stream, code, text, details = self._stream, 0, "", b""
        try:
            async with asyncio.timeout(PATIENCE):
                while not count or len(messages) < count:
                    message = await stream.recv()
                    if message is None:
                        break
                    messages.append(Got.of(message))
                else:
                    return Answer(messages, None)
        except errors.Error as error:
            error = self._failed or error
            (code, text), details = to_status(error), packed(error)
        headers = {key: [value] for key, value in stream.initial_metadata.items()}
        trailers = {key: [value] for key, value in stream.trailing_metadata.items()}
        for key, value in stream.trailing_binary.items():
            trailers[key] = [base64.b64encode(value).decode()]
        return Answer(messages, Status(code, text, headers, trailers, details))


# Servers


class RemoteServer:
    """A server program."""

    def __init__(self, program: Program) -> None:
        self._program = program

    @classmethod
    async def start(cls, peer: str, path: Path) -> RemoteServer:
        program = await Program.start(command(peer), "server", str(path))
        async with asyncio.timeout(PATIENCE):
            assert await program.stdout.readline() == b"ready\n"
        return cls(program)

    async def stop(self) -> None:
        """Take no more calls, end with the last."""
        await self._program.end(signal.SIGTERM)

    async def aclose(self) -> None:
        if self._program.process.returncode is None:
            await self._program.end(signal.SIGKILL)


class Signals:
    """They are waited for under the key that a call has in its metadata."""

    def __init__(self) -> None:
        self._given: dict[str, asyncio.Semaphore] = {}

    def give(self, call: Any) -> None:
        self._of(call.metadata.get("key", "")).release()

    async def take(self, key: str) -> None:
        async with asyncio.timeout(PATIENCE):
            await self._of(key).acquire()

    def _of(self, key: str) -> asyncio.Semaphore:
        return self._given.setdefault(key, asyncio.Semaphore(0))


class PeerService:
    """The echo service with the rules of this module."""

    def __init__(self) -> None:
        self._started = Signals()
        self._cancelled = Signals()
        self._sent = 0

    async def say(self, call: Any, request: Any) -> Any:
        match request.version:
            case "fail":
                raise errors.NotFound(request.revision)
            case "details":
                detail = ("type.googleapis.com/test.Detail", b"\n\x01d")
                raise errors.FailedPrecondition("with details", verbatim=True, details=(detail,))
            case "hang":
                self._started.give(call)
                try:
                    await asyncio.Event().wait()
                finally:
                    self._cancelled.give(call)
            case "started":
                await self._started.take(request.revision)
            case "cancelled":
                await self._cancelled.take(request.revision)
            case "sent":
                return message(str(self._sent))
            case "big":
                return message("." * int(request.revision))
            case "seen":
                return message(json.dumps(_seen(call)))
        return request

    async def count(self, call: Any, request: Any) -> AsyncIterator[Any]:
        call.initial_metadata.append(("from", "zero"))
        call.trailing_metadata += [("to-bin", b"\x00\xff"), ("to", "a"), ("to", "b")]
        try:
            for number in range(int(request.version)):
                yield message(str(number).ljust(int(request.revision or 0), "."))
                self._sent += 1
        except (asyncio.CancelledError, GeneratorExit):
            self._cancelled.give(call)
            raise

    async def join(self, call: Any, requests: Any) -> Any:
        try:
            return message(",".join([request.version async for request in requests]))
        except asyncio.CancelledError:
            self._cancelled.give(call)
            raise

    async def chat(self, call: Any, requests: Any) -> AsyncIterator[Any]:
        try:
            async for request in requests:
                if request.version == "fail":
                    raise errors.Aborted("enough")
                yield request
                if request.version == "end":
                    return
                if request.version == "hang":
                    await asyncio.Event().wait()
        except (asyncio.CancelledError, GeneratorExit):
            self._cancelled.give(call)
            raise


def _seen(call: Any) -> dict[str, Any]:
    metadata = {key: [value] for key, value in call.metadata.items()}
    for key, value in call.binary.items():
        metadata[key] = [base64.b64encode(value).decode()]
    left = call.deadline and call.deadline - asyncio.get_running_loop().time()
    return {"metadata": metadata, "timeout": left}


class OurServer:
    """Our server on the test's loop, in the shape of a server program."""

    def __init__(self, server: GrpcServer) -> None:
        self._server = server

    @classmethod
    async def start(cls, peer: str, path: Path) -> OurServer:
        router = Router()
        router.add(ECHO, PeerService())
        server = GrpcServer(router)
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(path))
        sock.listen(100)
        await server.serve(sock)
        return cls(server)

    async def stop(self) -> None:
        await self._server.stop(PATIENCE)

    async def aclose(self) -> None:
        await self._server.stop(0)


async def start_client(peer: str, path: Path, *options: str) -> RemoteClient | OurClient:
    kind = OurClient if peer == "ours" else RemoteClient
    return await kind.start(peer, path, *options)


async def start_server(peer: str, path: Path) -> RemoteServer | OurServer:
    kind = OurServer if peer == "ours" else RemoteServer
    return await kind.start(peer, path)
