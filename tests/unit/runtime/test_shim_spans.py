"""Calls of shims as spans, and what is handed on to them."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from cradled import spans
from cradled.api import task_v3_pb2 as pb
from cradled.api.wellknown_pb2 import Empty
from cradled.rpc.call import Call
from cradled.rpc.service import Router
from cradled.rpc.ttrpc_server import TtrpcServer
from cradled.runtime.bootstrap import Bootstrap
from cradled.runtime.shim_client import ShimClient

REMOTE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Shim:
    """Remembers the metadata of what it is asked."""

    def __init__(self) -> None:
        self.metadata: dict[str, str] = {}

    async def pause(self, call: Call, request: Any) -> Any:
        self.metadata = dict(call.metadata)
        return Empty()


@pytest.fixture(autouse=True)
def empty() -> Iterator[None]:
    spans.clear()
    yield
    spans.clear()


@pytest.fixture
def shim() -> Shim:
    return Shim()


@pytest.fixture
async def client(shim: Shim, tmp_path: Path) -> AsyncIterator[ShimClient]:
    router = Router()
    router.add(pb.Task, shim)
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "s"))
    sock.listen()
    server = TtrpcServer(router)
    await server.serve(sock)
    client = await ShimClient.connect(Bootstrap(3, f"unix://{tmp_path}/s"), "ns")
    yield client
    await client.aclose()
    await server.stop(0)


async def test_a_callers_trace_goes_on_in_the_shim(shim: Shim, client: ShimClient) -> None:
    with spans.program("program", REMOTE):
        await client.pause("c1")
    (trace,) = spans.traces()
    step = trace.spans[1]
    assert step.name == "shim.Pause"
    assert shim.metadata == {
        "containerd-namespace-ttrpc": "ns",
        "traceparent": f"00-0af7651916cd43dd8448eb211c80319c-{step.id:016x}-01",
    }


async def test_what_nobody_follows_is_kept_here(shim: Shim, client: ShimClient) -> None:
    with spans.span("local"):
        await client.pause("c1")
    assert shim.metadata == {"containerd-namespace-ttrpc": "ns"}
    await client.pause("c1")
    assert shim.metadata == {"containerd-namespace-ttrpc": "ns"}
