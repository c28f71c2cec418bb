"""A shim without containers: the Task service over ttrpc or gRPC, its processes in a table.

``FakeShims`` is a launcher of such shims, each on a socket of its own in this process. They behave
as the reference says, as far as the daemon can tell; ``script`` has them fail or hang.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cradled.api import runc_options_pb2, task_v2_pb2, wellknown_pb2
from cradled.api import shim_sandbox_pb2 as sandbox_pb
from cradled.api import task_v3_pb2 as pb
from cradled.api.task_types_pb2 import ProcessInfo
from cradled.api.types_pb2 import Metric, Platform
from cradled.convert.values import timestamp
from cradled.core.tasks import Exit
from cradled.core.values import AnyValue
from cradled.errors import AlreadyExists, Error, NotFound, Unavailable
from cradled.rpc.call import Call
from cradled.rpc.grpc_server import GrpcServer
from cradled.rpc.service import Encoded, Router
from cradled.rpc.ttrpc_server import TtrpcServer
from cradled.runtime.bootstrap import Bootstrap
from cradled.runtime.bundle import Bundle
from cradled.runtime.timeouts import DEFAULT

CREATED, RUNNING, STOPPED, PAUSED = 1, 2, 3, 4


class _Process:
    def __init__(self, pid: int, request: Any) -> None:
        self.pid = pid
        self.request = request
        self.status = CREATED
        self.exit_status = 0
        self.exited_at = 0
        self.ended = asyncio.Event()


class _Answered(Exception):
    """A script has given the answer, as bytes."""


class _Scripted:
    """A service as it is served: an answer that a script gives is the answer."""

    def __init__(self, service: Any) -> None:
        self._service = service

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._service, name)

        async def answer(call: Call, request: Any) -> Any:
            try:
                return await method(call, request)
            except _Answered as given:
                return Encoded(given.args[0])

        return answer


class FakeShim:
    """One shim and its calls by name; ``script[name]`` runs before a call is answered, and may
    give the answer itself."""

    def __init__(self, path: str, version: int, protocol: str = "ttrpc") -> None:
        self.path = path
        self.protocol = protocol
        self.calls: list[str] = []
        self.namespaces: set[str] = set()
        self.checkpoints: list[str] = []
        self.requests: dict[str, Any] = {}
        self.script: dict[str, Callable[[], Any]] = {}
        self.processes: dict[tuple[str, str], _Process] = {}
        self.gone = asyncio.Event()
        self._next_pid = 1000
        router = Router()
        router.add(pb.Task if version >= 3 else task_v2_pb2.Task, _Scripted(self))
        self.pod = FakeSandbox(self)
        router.add(sandbox_pb.Sandbox, _Scripted(self.pod))
        self._server = GrpcServer(router) if protocol == "grpc" else TtrpcServer(router)

    async def serve(self) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        listener.listen()
        await self._server.serve(listener)

    async def stop(self) -> None:
        await self._server.stop(0)

    async def die(self) -> None:
        """Be gone, as if killed."""
        await self.stop()
        self.gone.set()
        if os.path.exists(self.path):
            os.unlink(self.path)

    def exit(self, id: str, status: int, exec_id: str = "") -> Exit:
        """A process ends."""
        process = self.processes[id, exec_id]
        process.status, process.exit_status = STOPPED, status
        process.exited_at = time.time_ns()
        process.ended.set()
        return Exit(process.pid, status, process.exited_at)

    # The Task service

    async def create(self, call: Call, request: Any) -> Any:
        await self.enter("create", call)
        if (request.id, "") in self.processes:
            raise AlreadyExists(f"container {request.id}")
        return pb.CreateTaskResponse(pid=self._add(request.id, "", request))

    async def start(self, call: Call, request: Any) -> Any:
        await self.enter("start", call)
        process = self._find(request)
        if process.status != CREATED:
            raise Error("cannot start a running process")
        process.status = RUNNING
        return pb.StartResponse(pid=process.pid)

    async def delete(self, call: Call, request: Any) -> Any:
        await self.enter("delete", call)
        process = self._find(request)
        if process.status == RUNNING:
            raise Error("cannot delete a running process")
        del self.processes[request.id, request.exec_id]
        return pb.DeleteResponse(
            pid=process.pid,
            exit_status=process.exit_status,
            exited_at=timestamp(process.exited_at),
        )

    async def exec(self, call: Call, request: Any) -> Any:
        await self.enter("exec", call)
        if (request.id, request.exec_id) in self.processes:
            raise AlreadyExists(f"id {request.exec_id}")
        self._add(request.id, request.exec_id, request)
        return wellknown_pb2.Empty()

    async def wait(self, call: Call, request: Any) -> Any:
        await self.enter("wait", call)
        process = self._find(request)
        await process.ended.wait()
        at = timestamp(process.exited_at)
        return pb.WaitResponse(exit_status=process.exit_status, exited_at=at)

    async def kill(self, call: Call, request: Any) -> Any:
        await self.enter("kill", call)
        if self._find(request).status == STOPPED:
            raise NotFound("process already finished", verbatim=True)
        self.exit(request.id, 128 + request.signal, request.exec_id)
        return wellknown_pb2.Empty()

    async def pause(self, call: Call, request: Any) -> Any:
        await self.enter("pause", call)
        self.processes[request.id, ""].status = PAUSED
        return wellknown_pb2.Empty()

    async def resume(self, call: Call, request: Any) -> Any:
        await self.enter("resume", call)
        self.processes[request.id, ""].status = RUNNING
        return wellknown_pb2.Empty()

    async def state(self, call: Call, request: Any) -> Any:
        await self.enter("state", call)
        process, made = self._find(request), self._find(request).request
        return pb.StateResponse(
            id=request.id,
            pid=process.pid,
            status=process.status,
            stdin=made.stdin,
            stdout=made.stdout,
            stderr=made.stderr,
            terminal=made.terminal,
            exit_status=process.exit_status,
            exited_at=timestamp(process.exited_at),
            exec_id=request.exec_id,
        )

    async def stats(self, call: Call, request: Any) -> Any:
        await self.enter("stats", call)
        self._find(request)
        return pb.StatsResponse(stats=wellknown_pb2.Any(type_url="stats", value=b"1"))

    async def pids(self, call: Call, request: Any) -> Any:
        await self.enter("pids", call)
        self._find(request)
        return pb.PidsResponse(
            processes=[
                ProcessInfo(pid=process.pid, info=_details(exec_id) if exec_id else None)
                for (id, exec_id), process in self.processes.items()
                if id == request.id
            ]
        )

    async def update(self, call: Call, request: Any) -> Any:
        return await self._noted("update", call, request)

    async def resize_pty(self, call: Call, request: Any) -> Any:
        return await self._noted("resize_pty", call, request)

    async def close_io(self, call: Call, request: Any) -> Any:
        return await self._noted("close_io", call, request)

    async def _noted(self, name: str, call: Call, request: Any) -> Any:
        await self.enter(name, call)
        self._find(request)
        self.requests[name] = request
        return wellknown_pb2.Empty()

    async def checkpoint(self, call: Call, request: Any) -> Any:
        await self.enter("checkpoint", call)
        self._find(request)
        self.checkpoints.append(request.path)
        Path(request.path, "pages").write_bytes(b"pages of " + request.id.encode())
        return wellknown_pb2.Empty()

    async def connect(self, call: Call, request: Any) -> Any:
        await self.enter("connect", call)
        process = self.processes.get((request.id, ""))
        return pb.ConnectResponse(shim_pid=1, task_pid=process.pid if process else 0)

    async def shutdown(self, call: Call, request: Any) -> Any:
        await self.enter("shutdown", call)
        if not self.processes:
            asyncio.get_running_loop().create_task(self.die())
        return wellknown_pb2.Empty()

    async def enter(self, name: str, call: Call) -> None:
        """A call has come in."""
        self.calls.append(name)
        self.namespaces.add(call.scope().namespace)
        if name in self.script:
            answer = await self.script[name]()
            if answer is not None:
                raise _Answered(answer)

    def _add(self, id: str, exec_id: str, request: Any) -> int:
        self._next_pid += 1
        self.processes[id, exec_id] = _Process(self._next_pid, request)
        return self._next_pid

    def _find(self, request: Any) -> _Process:
        process = self.processes.get((request.id, getattr(request, "exec_id", "")))
        if process is None:
            exec_id = getattr(request, "exec_id", "")
            if exec_id and (request.id, "") in self.processes:
                raise NotFound(f"process does not exist {exec_id}", verbatim=True)
            raise NotFound("container not created", verbatim=True)
        return process


def _details(exec_id: str) -> Any:
    """What the standard shim says of the process of an exec."""
    details = runc_options_pb2.ProcessDetails(exec_id=exec_id)
    kind = details.DESCRIPTOR.full_name
    return wellknown_pb2.Any(type_url=kind, value=details.SerializeToString())


class FakeSandbox:
    """The Sandbox service of a shim."""

    def __init__(self, shim: FakeShim) -> None:
        self.shim = shim
        self.request: Any = None
        self.state = ""
        self.ended = asyncio.Event()
        self.end = (0, 0)

    def exit(self, status: int) -> None:
        """The sandbox ends."""
        self.state = "SANDBOX_NOTREADY"
        self.end = (status, time.time_ns())
        self.ended.set()

    async def create_sandbox(self, call: Call, request: Any) -> Any:
        await self.shim.enter("create_sandbox", call)
        self.request = request
        return sandbox_pb.CreateSandboxResponse()

    async def start_sandbox(self, call: Call, request: Any) -> Any:
        await self._enter("start_sandbox", call, request)
        self.state = "SANDBOX_READY"
        spec = wellknown_pb2.Any(type_url="spec", value=b"2")
        return sandbox_pb.StartSandboxResponse(pid=7, created_at=timestamp(8), spec=spec)

    async def platform(self, call: Call, request: Any) -> Any:
        await self._enter("platform", call, request)
        return sandbox_pb.PlatformResponse(platform=Platform(os="linux", architecture="s390x"))

    async def stop_sandbox(self, call: Call, request: Any) -> Any:
        await self._enter("stop_sandbox", call, request)
        self.exit(request.timeout_secs)
        return sandbox_pb.StopSandboxResponse()

    async def wait_sandbox(self, call: Call, request: Any) -> Any:
        await self._enter("wait_sandbox", call, request)
        await self.ended.wait()
        status, at = self.end
        return sandbox_pb.WaitSandboxResponse(exit_status=status, exited_at=timestamp(at))

    async def sandbox_status(self, call: Call, request: Any) -> Any:
        await self._enter("sandbox_status", call, request)
        return sandbox_pb.SandboxStatusResponse(
            sandbox_id=request.sandbox_id,
            pid=7,
            state=self.state,
            info={"much": "told"} if request.verbose else None,
            created_at=timestamp(8),
        )

    async def shutdown_sandbox(self, call: Call, request: Any) -> Any:
        await self.shim.enter("shutdown_sandbox", call)
        self.request = None
        return sandbox_pb.ShutdownSandboxResponse()

    async def sandbox_metrics(self, call: Call, request: Any) -> Any:
        await self._enter("sandbox_metrics", call, request)
        data = wellknown_pb2.Any(type_url="stats", value=b"1")
        metrics = Metric(id=request.sandbox_id, timestamp=timestamp(9), data=data)
        return sandbox_pb.SandboxMetricsResponse(metrics=metrics)

    async def _enter(self, name: str, call: Call, request: Any) -> None:
        await self.shim.enter(name, call)
        if self.request is None or self.request.sandbox_id != request.sandbox_id:
            raise NotFound(f"sandbox {request.sandbox_id}")


class FakeShims:
    """A launcher; ``shims`` by container id, ``deleted`` what was cleaned up after."""

    path = "/fake/containerd-shim-fake-v1"
    is_tidy = True
    group = ""

    def __init__(self, directory: Path, version: int = 3, protocol: str = "ttrpc") -> None:
        self.directory = directory
        self.version = version
        self.protocol = protocol
        self.shims: dict[str, FakeShim] = {}
        self.deleted: list[str] = []
        self.script: dict[str, Callable[[], Any]] = {}
        self.broken = False
        self.wires: dict[str, Any] | None = None  # by container id; None: straight to the shims
        self.program = self.path
        self.end = Exit(77, 137, 5)
        self.timeouts = DEFAULT

    def of_runtime(self, name: str) -> FakeShims:
        if name == "unknown":
            raise Error("invalid runtime name unknown")
        return self

    def of_program(self, path: str) -> FakeShims:
        assert path == self.path
        return self

    def command(self, name: str) -> list[str]:
        return [self.program]

    def options(self, options: AnyValue | None, /) -> AnyValue | None:
        return options

    async def start(self, bundle: Bundle, options: AnyValue | None, group: str, /) -> Bootstrap:
        if self.broken:
            raise Unavailable("no shim today")
        path = str(self.directory / f"{bundle.id}.{len(self.shims)}")
        shim = self.shims[bundle.id] = FakeShim(path, self.version, self.protocol)
        shim.script.update(self.script)
        await shim.serve()
        if self.wires is not None:
            from harness.faults import Wire

            wire = self.wires[bundle.id] = Wire(f"{path}.wire", path)
            await wire.open()
            path = wire.path
        result = Bootstrap(3, f"unix://{path}", self.protocol)
        bundle.save_bootstrap(result)
        return result

    async def delete(self, bundle: Bundle, /) -> Exit:
        self.deleted.append(bundle.id)
        if self.broken:
            raise Error("cannot clean up")
        return self.end

    async def aclose(self) -> None:
        for shim in self.shims.values():
            await shim.die()
        for wire in (self.wires or {}).values():
            await wire.close()
