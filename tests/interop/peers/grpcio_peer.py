"""A gRPC peer made of grpcio: ``server SOCKET`` or ``client SOCKET OPTION...``.

The echo service and the orders a client takes on its standard input are described in
tests/harness/peers.py.
"""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from cradled.api.version_pb2 import VersionResponse

LIMIT = 16 << 20
OPTIONS = [
    ("grpc.max_receive_message_length", LIMIT),
    ("grpc.max_send_message_length", -1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 50),
    ("grpc.enable_retries", 0),
]
KEEPALIVE = ("grpc.keepalive_time_ms", 50)
DETAILS = "grpc-status-details-bin"


def padded(text: str, revision: str = "", size: int = 0) -> VersionResponse:
    return VersionResponse(version=text.ljust(size, "."), revision=revision)


def encoded(metadata: Any) -> dict[str, list[str]]:
    """Metadata for JSON; values of -bin keys in base64."""
    out: dict[str, list[str]] = {}
    for key, value in metadata or ():
        text = base64.b64encode(value).decode() if isinstance(value, bytes) else value
        out.setdefault(key, []).append(text)
    return out


# Server


class Signals:
    """They are waited for under the key that a call has in its metadata."""

    def __init__(self) -> None:
        self._given: dict[str, asyncio.Semaphore] = {}

    def give(self, context: Any) -> None:
        self._of(dict(context.invocation_metadata()).get("key", "")).release()

    async def take(self, key: str) -> None:
        await self._of(key).acquire()

    def _of(self, key: str) -> asyncio.Semaphore:
        return self._given.setdefault(key, asyncio.Semaphore(0))


class Echo:
    def __init__(self) -> None:
        self._started = Signals()
        self._cancelled = Signals()
        self._sent = 0

    async def say(self, request: VersionResponse, context: Any) -> VersionResponse:
        match request.version:
            case "fail":
                await context.abort(grpc.StatusCode.NOT_FOUND, f"{request.revision}: not found")
            case "details":
                told = b"\x08\x09\x12\x0cwith details\x1a\x26"
                told += b"\x0a\x1ftype.googleapis.com/test.Detail\x12\x03\x0a\x01d"
                code = grpc.StatusCode.FAILED_PRECONDITION
                await context.abort(code, "with details", ((DETAILS, told),))
            case "hang":
                self._started.give(context)
                try:
                    await asyncio.Event().wait()
                finally:
                    self._cancelled.give(context)
            case "started":
                await self._started.take(request.revision)
            case "cancelled":
                await self._cancelled.take(request.revision)
            case "sent":
                return padded(str(self._sent))
            case "big":
                return padded("", size=int(request.revision))
            case "seen":
                left = context.time_remaining()
                seen = {"metadata": encoded(context.invocation_metadata()), "timeout": left}
                return padded(json.dumps(seen))
        return request

    async def count(self, request: VersionResponse, context: Any) -> AsyncIterator[VersionResponse]:
        await context.send_initial_metadata([("from", "zero")])
        context.set_trailing_metadata([("to-bin", b"\x00\xff"), ("to", "a"), ("to", "b")])
        left = int(request.version)
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(lambda _: left and self._cancelled.give(context))
        for number in range(left):
            yield padded(str(number), size=int(request.revision or 0))
            self._sent += 1
            left -= 1

    async def join(self, requests: Any, context: Any) -> VersionResponse:
        try:
            return padded(",".join([request.version async for request in requests]))
        except asyncio.CancelledError:
            self._cancelled.give(context)
            raise

    async def chat(self, requests: Any, context: Any) -> AsyncIterator[VersionResponse]:
        try:
            async for request in requests:
                if request.version == "fail":
                    await context.abort(grpc.StatusCode.ABORTED, "enough")
                yield request
                if request.version == "end":
                    return
                if request.version == "hang":
                    await asyncio.Event().wait()
        except (asyncio.CancelledError, GeneratorExit):
            self._cancelled.give(context)
            raise


KINDS = {
    "Say": "unary_unary",
    "Count": "unary_stream",
    "Join": "stream_unary",
    "Chat": "stream_stream",
    "Absent": "unary_unary",
}


async def serve(path: str) -> None:
    echo = Echo()
    handlers = {}
    for name, kind in KINDS.items():
        if name != "Absent":
            make = getattr(grpc, f"{kind}_rpc_method_handler")
            handlers[name] = make(
                getattr(echo, name.lower()),
                request_deserializer=VersionResponse.FromString,
                response_serializer=VersionResponse.SerializeToString,
            )
    server = grpc.aio.server(options=[*OPTIONS, KEEPALIVE])
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Echo", handlers)])
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print("ready", flush=True)
    await stop.wait()
    await server.stop(20)


# Client


class Call:
    def __init__(self, channel: Any, order: dict[str, Any]) -> None:
        self._id = order["id"]
        self._orders: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        kind = KINDS[order["method"]]
        make = getattr(channel, kind)(
            f"/test.Echo/{order['method']}",
            request_serializer=VersionResponse.SerializeToString,
            response_deserializer=VersionResponse.FromString,
        )
        request = () if kind.startswith("stream") else (padded(**order["message"]),)
        metadata = [
            (key, base64.b64decode(value + "==") if key.endswith("-bin") else value)
            for key, value in order.get("metadata", ())
        ]
        self._call = make(*request, metadata=metadata, timeout=order.get("timeout") or None)
        self._single = not kind.endswith("stream")
        self._over = False
        self._task = asyncio.get_running_loop().create_task(self._follow())

    def order(self, order: dict[str, Any]) -> None:
        if order["do"] == "cancel":
            self._call.cancel()
        else:
            self._orders.put_nowait(order)

    async def _follow(self) -> None:
        while True:
            order = await self._orders.get()
            try:
                match order["do"]:
                    case "send":
                        await self._call.write(padded(**order["message"]))
                    case "close":
                        await self._call.done_writing()
                    case "recv":
                        print(json.dumps(await self._receive(order.get("count", 0))), flush=True)
            except (grpc.RpcError, asyncio.InvalidStateError):
                pass  # the call has ended: recv tells

    async def _receive(self, count: int) -> dict[str, Any]:
        messages: list[tuple[str, int, str]] = []
        status = None
        while status is None and (not count or len(messages) < count):
            message = await self._next()
            if message is None:
                status = await self._end()
            else:
                text = message.version
                messages.append((text.rstrip("."), len(text.encode()), message.revision))
        return {"id": self._id, "messages": messages, "status": status}

    async def _next(self) -> VersionResponse | None:
        if self._over:
            return None
        try:
            if self._single:
                self._over = True
                return await self._call
            message = await self._call.read()
        except (grpc.RpcError, asyncio.CancelledError):
            return None
        return None if message is grpc.aio.EOF else message

    async def _end(self) -> dict[str, Any]:
        trailers = encoded(await self._call.trailing_metadata())
        code = await self._call.code()
        return {
            "code": code.value[0],
            "text": await self._call.details() or "",
            "headers": encoded(await self._call.initial_metadata()),
            "details": trailers.pop(DETAILS, [""])[0],
            "trailers": trailers,
        }


async def drive(path: str, options: list[str]) -> None:
    compression = grpc.Compression.Gzip if "gzip" in options else None
    settings = [*OPTIONS, KEEPALIVE] if "keepalive" in options else OPTIONS
    channel = grpc.aio.insecure_channel(f"unix:{path}", options=settings, compression=compression)
    reader = asyncio.StreamReader(limit=1 << 20)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    calls: dict[int, Call] = {}
    async with channel:
        while line := await reader.readline():
            order = json.loads(line)
            if order["do"] == "open":
                calls[order["id"]] = Call(channel, order)
            else:
                calls[order["id"]].order(order)


if __name__ == "__main__":
    _, role, socket, *words = sys.argv
    asyncio.run(serve(socket) if role == "server" else drive(socket, words))
