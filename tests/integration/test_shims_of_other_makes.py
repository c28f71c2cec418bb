"""Shim programs that nobody of ours has made: every form of answer, both protocols, and sandboxes
in them, over a restart of the daemon."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import leaks
from harness.daemon import Daemon, wait_until
from harness.shim_program import Kind, write
from harness.tasks import GO, OWN

from cradled.api import containers_pb2, sandbox_pb2, tasks_pb2
from cradled.api.types_pb2 import Sandbox
from cradled.api.wellknown_pb2 import Any as AnyMessage
from cradled.errors import NotFound, PermissionDenied, Unimplemented
from cradled.rpc import grpc_client
from cradled.rpc.stub import Stub

has_go_shim = pytest.mark.skipif(not os.path.exists(GO), reason="needs containerd's runc shim")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

KINDS = {
    "message": Kind(),
    "grpc": Kind("message", "grpc"),
    "json": Kind("json", "grpc", 3),
    "json of version 2": Kind("json", "ttrpc", 2),
    "text": Kind("text", "ttrpc", 2),
    "path": Kind("text", "ttrpc", 2, "{}"),
}

SETTINGS = """
[plugins."io.containerd.shim.v1.manager"]
  env = ["FAKE_SHIM=yes", "FAKE_SOCKETS={0}"]
  socket_dir = "{0}"
[timeouts]
  "io.containerd.timeout.shim.shutdown" = "200ms"
"""


@pytest.fixture(scope="module")
def shims(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    directory = tmp_path_factory.mktemp("d")
    with tempfile.TemporaryDirectory(prefix="s", dir="/tmp") as sockets:
        daemon = Daemon(directory, "cradled", settings=SETTINGS.format(sockets))
        daemon.start()
        try:
            yield daemon
        finally:
            daemon.destroy()
            shutil.rmtree(directory)
        assert os.listdir(sockets) == []


class Asked:
    """The services of a daemon, and a container ``c``."""

    def __init__(self, channel: grpc_client.GrpcChannel, daemon: Daemon, runtime: str) -> None:
        headers = [("containerd-namespace", daemon.namespace)]
        self.containers = Stub(channel, containers_pb2.Containers, headers)
        self.tasks = Stub(channel, tasks_pb2.Tasks, headers)
        self.store = Stub(channel, sandbox_pb2.Store, headers)
        self.pods = Stub(channel, sandbox_pb2.Controller, headers)
        self.runtime = runtime

    async def add(self, id: str, sandbox: str = "") -> None:
        container = containers_pb2.Container(
            id=id,
            runtime=containers_pb2.Container.Runtime(name=self.runtime),
            spec=AnyMessage(type_url="spec", value=b"{}"),
            sandbox=sandbox,
        )
        await self.containers.create(containers_pb2.CreateContainerRequest(container=container))

    async def remove(self, id: str) -> None:
        await self.tasks.delete(tasks_pb2.DeleteTaskRequest(container_id=id))
        await self.containers.delete(containers_pb2.DeleteContainerRequest(id=id))

    async def status(self, id: str) -> int:
        answer = await self.tasks.get(tasks_pb2.GetRequest(container_id=id))
        return int(answer.process.status)


@asynccontextmanager
async def asked(daemon: Daemon, runtime: str) -> AsyncIterator[Asked]:
    async with await grpc_client.connect(str(daemon.socket)) as channel:
        yield Asked(channel, daemon, runtime)


def left(daemon: Daemon) -> list[Path]:
    found = [path for kind in ("state", "root")
             for path in (daemon.directory / kind).glob("io.containerd.*v?.*/*/*")
             if daemon.namespace in path.parts]  # fmt: skip
    return [*found, *sockets_of(daemon)]


def sockets_of(daemon: Daemon) -> list[Path]:
    return list(Path(daemon.settings.partition('socket_dir = "')[2].partition('"')[0]).iterdir())


@pytest.mark.parametrize("name", KINDS)
async def test_a_task_over_a_restart(shims: Daemon, tmp_path: Path, name: str) -> None:
    runtime = write(tmp_path / "containerd-shim-fake-v1", KINDS[name])
    async with asked(shims, runtime) as services:
        await services.add("c")
        created = await services.tasks.create(tasks_pb2.CreateTaskRequest(container_id="c"))
        assert created.pid > 1000
        await services.tasks.start(tasks_pb2.StartRequest(container_id="c"))
    shims.kill()
    shims.start()
    async with asked(shims, runtime) as services:
        assert await services.status("c") == 2
        kill = tasks_pb2.KillRequest(container_id="c", signal=9)
        await services.tasks.kill(kill)
        ended = await services.tasks.wait(tasks_pb2.WaitRequest(container_id="c"))
        assert ended.exit_status == 137
        await services.remove("c")
    wait_until(lambda: not left(shims), lambda: str(left(shims)))
    # What was written before the daemon had its log open again has waited for it.
    for rpc in ("connect", "delete"):
        line = f"shim of c: {KINDS[name].protocol} {rpc}"
        wait_until(lambda line=line: line in shims.log.read_text(), line)


@pytest.mark.parametrize("name", ["message", "grpc"])
async def test_a_sandbox_over_a_restart(shims: Daemon, tmp_path: Path, name: str) -> None:
    runtime = write(tmp_path / "containerd-shim-fake-v1", KINDS[name])
    pod = Sandbox(sandbox_id="pod", runtime=Sandbox.Runtime(name=runtime), sandboxer="shim")
    by: Any = {"sandbox_id": "pod", "sandboxer": "shim"}
    async with asked(shims, runtime) as services:
        await services.store.create(sandbox_pb2.StoreCreateRequest(sandbox=pod))
        await services.pods.create(sandbox_pb2.ControllerCreateRequest(**by))
        started = await services.pods.start(sandbox_pb2.ControllerStartRequest(**by))
        assert started.address.startswith(f"{KINDS[name].protocol}+unix:///tmp/s")
        await services.add("c", sandbox="pod")
        await services.tasks.create(tasks_pb2.CreateTaskRequest(container_id="c"))
    bundle = shims.state / "io.containerd.runtime.v2.task" / shims.namespace / "c"
    assert (bundle / "sandbox").read_text() == "pod"
    assert len(sockets_of(shims)) == 1
    shims.kill()
    shims.start()
    async with asked(shims, runtime) as services:
        await services.tasks.start(tasks_pb2.StartRequest(container_id="c"))
        status = await services.pods.status(sandbox_pb2.ControllerStatusRequest(**by))
        assert (status.state, status.address) == ("SANDBOX_READY", started.address)
        await services.tasks.kill(tasks_pb2.KillRequest(container_id="c", signal=9))
        await services.remove("c")
        await services.add("d", sandbox="pod")
        given: Any = {"task_api_address": started.address, "task_api_version": 3}
        await services.tasks.create(tasks_pb2.CreateTaskRequest(container_id="d", **given))
        await services.remove("d")
        await services.pods.stop(sandbox_pb2.ControllerStopRequest(**by))
        await services.pods.shutdown(sandbox_pb2.ControllerShutdownRequest(**by))
        with pytest.raises(NotFound):
            await services.pods.start(sandbox_pb2.ControllerStartRequest(**by))
        await services.store.delete(sandbox_pb2.StoreDeleteRequest(sandbox_id="pod"))
    wait_until(lambda: not left(shims), lambda: str(left(shims)))


async def test_a_sandbox_whose_shim_does_not_go(shims: Daemon, tmp_path: Path) -> None:
    """It is ended when the sandbox cannot be started."""
    runtime = write(tmp_path / "containerd-shim-fake-v1", Kind(stubborn=True))
    pod = Sandbox(sandbox_id="pod", runtime=Sandbox.Runtime(name=runtime))
    by: Any = {"sandbox_id": "pod", "sandboxer": "shim"}
    async with asked(shims, runtime) as services:
        await services.pods.create(sandbox_pb2.ControllerCreateRequest(sandbox=pod, **by))
        assert len(leaks.processes_with(runtime)) == 1
        with pytest.raises(PermissionDenied, match="failed to start sandbox pod: not today"):
            await services.pods.start(sandbox_pb2.ControllerStartRequest(**by))
    assert leaks.processes_with(runtime) == {}
    wait_until(lambda: not left(shims), lambda: str(left(shims)))


@pytest.mark.parametrize("runtime", [OWN, pytest.param(GO, marks=has_go_shim)])
async def test_a_shim_that_runs_no_sandboxes(shims: Daemon, runtime: str) -> None:
    spec = AnyMessage(type_url="spec", value=b"{}")
    pod = Sandbox(sandbox_id="pod", runtime=Sandbox.Runtime(name=runtime), spec=spec)
    request = sandbox_pb2.ControllerCreateRequest(sandbox_id="pod", sandboxer="shim", sandbox=pod)
    running = []
    for _ in range(2):  # the first one may have the daemon start what shims are made with
        async with asked(shims, runtime) as services:
            with pytest.raises(Unimplemented, match="failed to create sandbox pod: "):
                await services.pods.create(request)
        wait_until(lambda: not left(shims), lambda: str(left(shims)))
        running.append(leaks.marked_processes(shims.mark).keys())
    assert running[0] == running[1]


def test_a_socket_directory_that_is_too_deep(tmp_path: Path) -> None:
    """There would be no room for the names that shims put behind it."""
    daemon = Daemon(tmp_path, "cradled", settings=SETTINGS.format("/run/" + "x" * 40))
    done = subprocess.run(daemon.command(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "socket_dir is longer than 42 characters" in done.stderr
