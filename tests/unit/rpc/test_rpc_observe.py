"""Calls as spans and in numbers, over the real transports."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cradled import errors, spans
from cradled.api import content_pb2, events_ttrpc_pb2
from cradled.api.wellknown_pb2 import Empty
from cradled.rpc import grpc_client, grpc_request, ttrpc_client
from cradled.rpc.call import Call
from cradled.rpc.grpc_server import GrpcServer
from cradled.rpc.inprocess import InProcess
from cradled.rpc.observe import Calls, Observer
from cradled.rpc.service import Router
from cradled.rpc.status import Code
from cradled.rpc.stub import Stub
from cradled.rpc.ttrpc_server import TtrpcServer

REMOTE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CONTENT = "containerd.services.content.v1.Content"


class Content:
    """Some of the service, each rpc ending in its own way."""

    async def info(self, call: Call, request: Any) -> Any:
        with spans.span("look"):
            return content_pb2.InfoResponse()

    async def delete(self, call: Call, request: Any) -> Any:
        raise errors.NotFound("content x")

    async def abort(self, call: Call, request: Any) -> Any:
        await asyncio.Event().wait()

    async def read(self, call: Call, request: Any) -> AsyncIterator[Any]:
        for _ in range(3):
            yield content_pb2.ReadContentResponse(data=b"x")
        if request.size:
            raise errors.OutOfRange("size")

    async def write(self, call: Call, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            yield content_pb2.WriteContentResponse(offset=request.offset)


class Events:
    async def forward(self, call: Call, request: Any) -> Any:
        return Empty()


@pytest.fixture(autouse=True)
def empty() -> Iterator[None]:
    spans.clear()
    yield
    spans.clear()


@pytest.fixture
def observer() -> Observer:
    return Observer()


@pytest.fixture
def router(observer: Observer) -> Router:
    router = Router(observer.wrap)
    router.add(content_pb2.Content, Content())
    router.add(events_ttrpc_pb2.Events, Events())
    return router


@asynccontextmanager
async def served(kind: str, router: Router, path: Path) -> AsyncIterator[Any]:
    if kind == "inprocess":
        yield InProcess(router)
        return
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path / "s"))
    sock.listen()
    server: Any = {"grpc": GrpcServer, "ttrpc": TtrpcServer}[kind](router)
    await server.serve(sock)
    connect: Any = {"grpc": grpc_client, "ttrpc": ttrpc_client}[kind].connect
    channel = await connect(str(path / "s"))
    try:
        yield channel
    finally:
        await channel.aclose()
        await server.stop(0)


@pytest.fixture(params=["grpc", "ttrpc", "inprocess"])
async def stub(request: Any, router: Router, tmp_path: Path) -> AsyncIterator[Stub]:
    metadata = [("containerd-namespace", "ns"), ("containerd-namespace-ttrpc", "ns")]
    async with served(request.param, router, tmp_path) as transport:
        yield Stub(transport, content_pb2.Content, metadata)


async def until(true: Callable[[], object]) -> None:
    while not true():  # noqa: ASYNC110 - plain numbers: nothing to be woken by
        await asyncio.sleep(0)


def counts(observer: Observer, name: str) -> Calls:
    (found,) = [calls for calls in observer.methods if calls.name == f"{CONTENT}/{name}"]
    return found


async def test_a_unary_call(stub: Stub, observer: Observer) -> None:
    await stub.info(content_pb2.InfoRequest())
    calls = counts(observer, "Info")
    assert (calls.started, calls.received, calls.sent, calls.ok, calls.codes) == (1, 1, 1, 1, {})
    (trace,) = spans.traces()
    first, step = trace.spans
    assert first.name == f"{CONTENT}/Info"
    assert first.attributes == {"namespace": "ns"}
    assert (step.name, step.parent) == ("look", first.id)


async def test_a_call_that_fails(stub: Stub, observer: Observer) -> None:
    with pytest.raises(errors.NotFound):
        await stub.delete(content_pb2.DeleteContentRequest())
    calls = counts(observer, "Delete")
    assert (calls.started, calls.received, calls.sent, calls.ok) == (1, 1, 0, 0)
    assert calls.codes == {Code.NOT_FOUND: 1}
    (trace,) = spans.traces()
    assert trace.spans[0].error == "content x: not found"


async def test_a_call_that_is_late(stub: Stub, observer: Observer) -> None:
    with pytest.raises(errors.DeadlineExceeded):
        await stub.abort(content_pb2.AbortRequest(), timeout=0.05)
    await until(lambda: counts(observer, "Abort").codes)
    assert counts(observer, "Abort").codes == {Code.DEADLINE_EXCEEDED: 1}


async def test_a_stream_of_responses(stub: Stub, observer: Observer) -> None:
    assert len([one async for one in stub.read(content_pb2.ReadContentRequest())]) == 3
    calls = counts(observer, "Read")
    assert (calls.started, calls.received, calls.sent, calls.ok) == (1, 1, 3, 1)
    with pytest.raises(errors.OutOfRange):
        async for _ in stub.read(content_pb2.ReadContentRequest(size=1)):
            pass
    assert (calls.started, calls.received, calls.sent, calls.ok) == (2, 2, 6, 1)
    assert calls.codes == {Code.OUT_OF_RANGE: 1}
    assert [trace.spans[0].error for trace in spans.traces()] == ["", "size: out of range"]


async def test_streams_both_ways(stub: Stub, observer: Observer) -> None:
    async with stub.write() as stream:
        for offset in range(4):
            await stream.send(content_pb2.WriteContentRequest(offset=offset))
            assert (await stream.recv()).offset == offset
        await stream.done()
        assert await stream.recv() is None
    calls = counts(observer, "Write")
    assert (calls.started, calls.received, calls.sent, calls.ok) == (1, 4, 4, 1)


async def test_a_client_that_goes_away(observer: Observer, router: Router, tmp_path: Path) -> None:
    async with served("grpc", router, tmp_path) as transport:
        async with Stub(transport, content_pb2.Content).write() as stream:
            await stream.send(content_pb2.WriteContentRequest())
            await stream.recv()
        calls = counts(observer, "Write")
        await until(lambda: calls.codes)
    assert calls.codes == {Code.CANCELLED: 1}
    assert calls.ok == 0


async def test_methods_nobody_called_are_known(router: Router, observer: Observer) -> None:
    assert counts(observer, "Info").started == 0
    assert len(observer.methods) == 6


async def test_durations_where_they_are_wanted(observer: Observer, router: Router) -> None:
    stub = Stub(InProcess(router), content_pb2.Content)
    await stub.info(content_pb2.InfoRequest())
    assert counts(observer, "Info").seconds is None
    observer.time_calls()
    await stub.info(content_pb2.InfoRequest())
    assert len([one async for one in stub.read(content_pb2.ReadContentRequest())]) == 3
    for name in ("Info", "Read"):
        seconds = counts(observer, name).seconds
        assert seconds is not None
        assert seconds.count == 1


@pytest.mark.parametrize("kind", ["grpc", "ttrpc"])
async def test_a_callers_trace_goes_on(kind: str, router: Router, tmp_path: Path) -> None:
    async with served(kind, router, tmp_path) as transport:
        stub = Stub(transport, content_pb2.Content, [("traceparent", REMOTE)])
        await stub.info(content_pb2.InfoRequest())
    (trace,) = spans.traces()
    assert trace.id == 0x0AF7651916CD43DD8448EB211C80319C
    assert trace.spans[0].parent == 0xB7AD6B7169203331


async def test_a_call_in_process_is_a_step_of_its_caller(router: Router) -> None:
    with spans.span("program"):
        await Stub(InProcess(router), content_pb2.Content).info(content_pb2.InfoRequest())
    (trace,) = spans.traces()
    assert [one.name for one in trace.spans] == ["program", "look", f"{CONTENT}/Info"]


async def test_a_served_call_is_no_step_of_who_started_the_server(
    router: Router, tmp_path: Path
) -> None:
    with spans.span("program"):
        async with served("grpc", router, tmp_path) as transport:
            await Stub(transport, content_pb2.Content).info(content_pb2.InfoRequest())
    assert len(spans.traces()) == 2


async def test_a_programs_calls_are_one_trace(router: Router, tmp_path: Path) -> None:
    async with served("grpc", router, tmp_path) as transport:
        stub = Stub(transport, content_pb2.Content)
        with spans.program("program"):
            await stub.info(content_pb2.InfoRequest())
            await stub.info(content_pb2.InfoRequest())
        await stub.info(content_pb2.InfoRequest())
    first, second, program, other = spans.traces()
    assert first.id == second.id == program.id != other.id
    assert first.spans[0].parent == second.spans[0].parent == program.spans[0].id
    assert first.sampled is True


async def test_heads_that_differ_in_their_span_are_remembered_once(
    router: Router, tmp_path: Path
) -> None:
    async with served("grpc", router, tmp_path) as transport:
        stub = Stub(transport, content_pb2.Content, [("containerd-lease", str(tmp_path))])
        before = grpc_request._remembered_head.cache_info().misses
        for _ in range(5):
            with spans.program("program"):
                await stub.info(content_pb2.InfoRequest(), timeout=10.0)
    assert grpc_request._remembered_head.cache_info().misses == before + 1
    assert len({trace.id for trace in spans.traces()}) == 5


def test_a_head_with_what_is_its_own() -> None:
    fields = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/a/b"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        (b"traceparent", REMOTE.encode()),
        (b"grpc-timeout", b"5S"),
        (b"traceparent", b"second"),
    ]
    head = grpc_request.request_head(fields)
    assert head.served
    assert head.timeout == 5.0
    assert head.metadata["traceparent"] == REMOTE
    assert "traceparent" not in grpc_request.request_head(fields[:5]).metadata
    assert not grpc_request.request_head([*fields[:5], (b"traceparent", b"a\nb")]).served
    assert not grpc_request.request_head([*fields[:5], (b"grpc-timeout", b"x")]).served
