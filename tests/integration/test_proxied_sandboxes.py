"""A sandbox controller that another process serves (``proxy_plugins``)."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from harness.contract import router
from harness.daemon import Daemon
from harness.fake_shim import FakeShims

from cradled.aio import threads
from cradled.api import sandbox_pb2 as pb
from cradled.api.types_pb2 import Sandbox
from cradled.errors import NotFound
from cradled.events.exchange import Exchange
from cradled.rpc import grpc_client
from cradled.rpc.grpc_server import GrpcServer
from cradled.rpc.stub import Stub
from cradled.runtime.sandbox import ShimSandboxes
from cradled.runtime.shims import Shims
from cradled.services.sandboxes import SandboxControllerService

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

SETTINGS = """
[proxy_plugins.elsewhere]
  type = "sandbox"
  address = "{0}/far.sock"
"""


@pytest.fixture
async def far() -> AsyncIterator[Path]:
    """The directory of a server whose controller is called ``elsewhere``."""
    async with AsyncExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="crx"))
        stack.callback(shutil.rmtree, directory)
        shims = FakeShims(directory)
        stack.push_async_callback(shims.aclose)
        where: Any = shims
        sandboxes = ShimSandboxes(Shims(f"{directory}/s", f"{directory}/r", where))
        stack.push_async_callback(sandboxes.aclose)
        no_db: Any = None  # every request has its record
        service = SandboxControllerService(no_db, {"elsewhere": sandboxes}, Exchange())
        server = GrpcServer(router([(pb.Controller, service)]))
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(f"{directory}/far.sock")
        listener.listen()
        await server.serve(listener)
        stack.push_async_callback(server.stop, 0)
        yield directory
    threads.close()


async def test_a_sandbox_elsewhere(far: Path, tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, "cradled", settings=SETTINGS.format(far))
    await asyncio.to_thread(daemon.start)
    try:
        async with await grpc_client.connect(str(daemon.socket)) as channel:
            pods = Stub(channel, pb.Controller, [("containerd-namespace", "ns")])
            by: Any = {"sandbox_id": "pod", "sandboxer": "elsewhere"}
            record = Sandbox(sandbox_id="pod", runtime=Sandbox.Runtime(name="x"))
            await pods.create(pb.ControllerCreateRequest(sandbox=record, **by))
            assert (far / "s" / "ns" / "pod").is_dir()
            started = await pods.start(pb.ControllerStartRequest(**by))
            assert (started.pid, started.version) == (7, 3)
            status = await pods.status(pb.ControllerStatusRequest(**by))
            assert status.state == "SANDBOX_READY"
            await pods.stop(pb.ControllerStopRequest(timeout_secs=2, **by))
            assert (await pods.wait(pb.ControllerWaitRequest(**by))).exit_status == 2
            await pods.shutdown(pb.ControllerShutdownRequest(**by))
            assert [path for path in (far / "s" / "ns").iterdir() if path.name == "pod"] == []
            with pytest.raises(NotFound, match="pod"):
                await pods.start(pb.ControllerStartRequest(**by))
    finally:
        await asyncio.to_thread(daemon.destroy)
