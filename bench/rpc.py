"""``python -m bench.rpc``: the price of a call, beside Debian's containerd in the same run.

Four servers answer Version: containerd, our daemon, our RPC core with nothing behind it (``core``),
and a socket server that replies the right bytes without looking at the request (``floor``), which
is what Python and the loop cost by themselves. The client is a blocking socket that sends prepared
frames and looks only at the heads of what comes back; it costs less than any server here.

Also measured: a stream of 1 MiB messages each way through ``core``, with nothing behind it, as a
Go client would send it (16 KiB frames).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import uvloop

from bench.report import Report, interleaved
from bench.targets import Target
from cradled.api import content_pb2, version_pb2
from cradled.http2 import frames
from cradled.rpc import grpc_wire
from cradled.rpc.call import Call
from cradled.rpc.grpc_server import GrpcServer
from cradled.rpc.service import Encoded, Router

MIB = 1 << 20
VERSION = version_pb2.Version.methods["Version"].path
READ = content_pb2.Content.methods["Read"].path
WRITE = content_pb2.Content.methods["Write"].path
REPLY = version_pb2.VersionResponse(version="v2.3.4+cradled.bench", revision="0123456789abcdef")


# Servers


class VersionService:
    async def version(self, call: Call, request: object) -> object:
        return REPLY


class ContentService:
    """Takes and gives bytes that nobody keeps."""

    async def read(self, call: Call, request: object) -> AsyncIterator[object]:
        block = content_pb2.ReadContentResponse(data=bytes(MIB)).SerializeToString()
        for _ in range(request.size // MIB):  # type: ignore[attr-defined]
            yield Encoded(block)

    async def write(self, call: Call, requests: AsyncIterator[object]) -> AsyncIterator[object]:
        offset = 0
        async for request in requests:
            offset += len(request.data)  # type: ignore[attr-defined]
            yield content_pb2.WriteContentResponse(offset=offset)


class Floor(asyncio.Protocol):
    """Sends a canned reply for each request of an exactly known size."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.size = 0
        self.seen = -len(Client.HELLO)
        self.next_id = 1
        transport.write(frames.settings([]))  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.size = self.size or len(request_frames(VERSION, b"")(1))
        self.seen += len(data)
        out = []
        while self.seen >= self.size:
            self.seen -= self.size
            body = grpc_wire.PREFIX.pack(0, 40) + bytes(40)
            out.append(frames.header_frames(self.next_id, grpc_wire.RESPONSE, False, 1 << 14))
            out.append(frames.frame(frames.DATA, 0, self.next_id, body))
            out.append(frames.header_frames(self.next_id, grpc_wire.TRAILERS_OK, True, 1 << 14))
            self.next_id += 2
        if out:
            self.transport.write(b"".join(out))  # type: ignore[attr-defined]


async def serve(kind: str, path: str) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    sock.listen(100)
    if kind == "floor":
        await asyncio.get_running_loop().create_unix_server(Floor, sock=sock)
    else:
        router = Router()
        router.add(version_pb2.Version, VersionService())
        router.add(content_pb2.Content, ContentService())
        await GrpcServer(router).serve(sock)
    await asyncio.Event().wait()


# The client


def request_frames(path: str, body: bytes, end: bool = True) -> object:
    """A function from stream id to the frames of a request."""
    block = grpc_wire.request_block(path, "localhost", [("containerd-namespace", "bench")], None)
    data = grpc_wire.PREFIX.pack(0, len(body)) + body
    head = struct.Struct(f">IBI{len(block)}sIBI{len(data)}s")
    first = len(block) << 8 | frames.HEADERS
    flags = frames.END_STREAM if end else 0

    def make(stream_id: int) -> bytes:
        return head.pack(
            first, frames.END_HEADERS, stream_id, block, len(data) << 8, flags, stream_id, data
        )

    return make


class Client:
    """A connection that sends prepared frames, and tells frames that end a stream from others."""

    HELLO = (
        frames.PREFACE
        + frames.settings([(4, frames.MAX_WINDOW), (5, MIB)])
        + frames.window_update(0, frames.MAX_WINDOW - frames.DEFAULT_WINDOW)
    )

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(path))
        self.sock.sendall(self.HELLO)
        self.next_id = 1
        self.rest = b""
        self.windows = {0: frames.DEFAULT_WINDOW}
        self.initial_window = frames.DEFAULT_WINDOW

    def close(self) -> None:
        self.sock.close()

    def take_id(self) -> int:
        self.next_id += 2
        return self.next_id - 2

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Read once: (type, flags, stream, payload) of each whole frame; payloads are cut out of
        control frames only."""
        data = self.rest + self.sock.recv(MIB)
        pos, end = 0, len(data)
        while end - pos >= 9:
            word, flags, stream_id = frames.HEAD.unpack_from(data, pos)
            size, kind = word >> 8, word & 0xFF
            if pos + 9 + size > end:
                break
            payload = data[pos + 9 : pos + 9 + size] if kind > frames.HEADERS else b""
            pos += 9 + size
            if kind > frames.HEADERS:
                self.control(kind, flags, stream_id, payload)
            yield kind, flags, stream_id, payload
        self.rest = data[pos:]

    def control(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == frames.SETTINGS and not flags & frames.ACK:
            for key, value in frames.SETTING.iter_unpack(payload):
                if key == 4:
                    self.initial_window = value
        elif kind == frames.WINDOW_UPDATE and stream_id in self.windows:
            self.windows[stream_id] += int.from_bytes(payload, "big")
        elif kind in (frames.GOAWAY, frames.RST_STREAM):
            raise ConnectionError(f"{kind}: {payload!r}")

    def calls(self, make: object, concurrency: int, seconds: float) -> tuple[list[float], float]:
        """Keep calls in flight: (latencies, seconds it took)."""
        clock, latencies, began = time.perf_counter, [], {}
        start = clock()

        def issue() -> bytes:
            stream_id = self.take_id()
            began[stream_id] = clock()
            return make(stream_id)  # type: ignore[operator,no-any-return]

        self.sock.sendall(b"".join([issue() for _ in range(concurrency)]))
        stop = start + seconds
        while began:
            out = []
            for kind, flags, stream_id, _ in self.frames():
                if kind == frames.HEADERS and flags & frames.END_STREAM:
                    now = clock()
                    latencies.append(now - began.pop(stream_id))
                    if now < stop:
                        out.append(issue())
            if out:
                self.sock.sendall(b"".join(out))
        return latencies, clock() - start

    def read(self, size: int) -> float:
        """MiB/s of a stream of responses."""
        request = content_pb2.ReadContentRequest(digest="sha256:" + "0" * 64, size=size)
        make = request_frames(READ, request.SerializeToString())
        start = time.perf_counter()
        self.sock.sendall(make(self.take_id()))  # type: ignore[operator]
        ended = False
        while not ended:
            for kind, flags, *_ in self.frames():
                ended = ended or bool(kind == frames.HEADERS and flags & frames.END_STREAM)
        return size / MIB / (time.perf_counter() - start)

    def write(self, size: int) -> float:
        """MiB/s of a stream of requests, one answered before the next is sent."""
        data = content_pb2.WriteContentRequest(ref="r", data=bytes(MIB)).SerializeToString()
        data = grpc_wire.PREFIX.pack(0, len(data)) + data
        stream_id = self.take_id()
        pieces = b"".join(
            frames.frame(frames.DATA, 0, stream_id, data[at : at + (1 << 14)])
            for at in range(0, len(data), 1 << 14)
        )
        block = grpc_wire.request_block(WRITE, "localhost", [], None)
        start = time.perf_counter()
        self.sock.sendall(frames.header_frames(stream_id, block, False, 1 << 14))
        self.windows[stream_id] = self.initial_window
        for _ in range(size // MIB):
            while min(self.windows[0], self.windows[stream_id]) < len(data):
                list(self.frames())
            self.sock.sendall(pieces)
            for window in (0, stream_id):
                self.windows[window] -= len(data)
            while not any(kind == frames.DATA for kind, *_ in self.frames()):
                pass
        elapsed = time.perf_counter() - start
        self.sock.sendall(frames.rst_stream(stream_id, 8))
        return size / MIB / elapsed


# The run


@contextmanager
def core(kind: str, work: Path) -> Iterator[tuple[Path, int]]:
    """One of our servers in a process of its own: its socket and pid."""
    path = work / f"{kind}.sock"
    command = [sys.executable, "-m", "bench.rpc", "--serve", kind, str(path)]
    process = subprocess.Popen(command)
    try:
        while not path.exists():
            if process.poll() is not None:
                raise RuntimeError(f"{kind} died")
            time.sleep(0.01)
        time.sleep(0.05)
        yield path, process.pid
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def cpu(pid: int) -> float:
    """CPU seconds of a process, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(report: Report, servers: dict[str, tuple[Path, int]], rounds: int, secs: float) -> None:
    clients = {name: Client(path) for name, (path, _) in servers.items()}
    make = request_frames(VERSION, b"")
    for number, name in interleaved(servers, rounds):
        client, pid = clients[name], servers[name][1]
        for concurrency in (1, 16):
            before = cpu(pid)
            latencies, elapsed = client.calls(make, concurrency, secs)
            used = (cpu(pid) - before) / len(latencies) * 1e6
            if number < 0:
                continue
            at = f"c={concurrency}"
            report.add(f"{at}: p50", "us", name, statistics.median(latencies) * 1e6)
            report.add(f"{at}: rate", "1/s", name, len(latencies) / elapsed)
            report.add(f"{at}: CPU per call", "us", name, used)
    for _ in range(rounds):
        report.add("stream out, 1 MiB messages", "MiB/s", "core", clients["core"].read(256 * MIB))
        report.add("stream in, 1 MiB messages", "MiB/s", "core", clients["core"].write(256 * MIB))
    for client in clients.values():
        client.close()


async def run(rounds: int, seconds: float) -> Report:
    report = Report()
    async with AsyncExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-rpc-")))
        servers = {}
        for name in ("containerd", "cradled"):
            target = Target(name, work)
            stack.push_async_callback(target.destroy)
            await target.start()
            assert target.process is not None
            servers[name] = (target.socket, target.process.pid)
        for kind in ("core", "floor"):
            servers[kind] = stack.enter_context(core(kind, work))
        await asyncio.to_thread(measure, report, servers, rounds, seconds)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.rpc", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each sample")
    parser.add_argument("--serve", nargs=2, metavar=("KIND", "SOCKET"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        uvloop.run(serve(*args.serve))
    else:
        print(uvloop.run(run(args.rounds, args.seconds)).table())


if __name__ == "__main__":
    main()
