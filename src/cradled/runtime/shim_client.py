"""Async. The Task service of one shim, in the daemon's own terms.

Version 3 of the service is spoken, and version 2, whose messages are the same, to shims that know
no other: ``create`` and ``pids_of`` find that out. A shim that is gone raises ``ConnectionLost``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cradled import spans
from cradled.api import task_v2_pb2
from cradled.api import task_v3_pb2 as pb
from cradled.convert import mounts
from cradled.convert.values import any_from_proto, any_to_proto, nanoseconds
from cradled.core.mount import Mount
from cradled.core.tasks import Exit, Process, Status, Stdio
from cradled.core.values import AnyValue
from cradled.errors import Unimplemented
from cradled.rpc.call import NAMESPACE, NAMESPACE_TTRPC
from cradled.runtime import dialing
from cradled.runtime.bootstrap import Bootstrap

_STATUSES = {status.value: status for status in Status}


class ShimClient:
    """A connection to a shim, on behalf of one namespace; it may serve several tasks."""

    def __init__(self, channel: dialing.Channel, namespace: str, bootstrap: Bootstrap) -> None:
        self._channel = channel
        self.bootstrap = bootstrap
        self._metadata = metadata_of(bootstrap, namespace)
        self._service = pb.Task if bootstrap.version >= 3 else task_v2_pb2.Task

    @classmethod
    async def connect(
        cls,
        bootstrap: Bootstrap,
        namespace: str,
        *,
        timeout: float | None = None,
        late: float = 0.0,
    ) -> ShimClient:
        """As ``dialing.connect``."""
        channel = await dialing.connect(bootstrap, timeout=timeout, late=late)
        return cls(channel, namespace, bootstrap)

    def on_close(self, callback: Callable[[], object]) -> None:
        """Call back once the shim has gone, or ``aclose`` was called."""
        self._channel.on_close(callback)

    async def aclose(self) -> None:
        await self._channel.aclose()

    async def create(
        self,
        id: str,
        bundle: str,
        rootfs: Sequence[Mount],
        stdio: Stdio,
        options: AnyValue | None,
        checkpoint: str = "",
    ) -> int:
        """Create the container; returns the pid of its init."""
        request = pb.CreateTaskRequest(
            id=id,
            bundle=bundle,
            rootfs=map(mounts.to_proto, rootfs),
            terminal=stdio.terminal,
            stdin=stdio.stdin,
            stdout=stdio.stdout,
            stderr=stdio.stderr,
            checkpoint=checkpoint,
            options=None if options is None else any_to_proto(options),
        )
        return int((await self._first_call("Create", request)).pid)

    async def pids_of(self, id: str, *, timeout: float | None = None) -> tuple[int, int]:
        """The pids of the shim and of a container's init, which is 0 when it has none so called."""
        response = await self._first_call("Connect", pb.ConnectRequest(id=id), timeout=timeout)
        return response.shim_pid, response.task_pid

    async def start(self, id: str, exec_id: str) -> int:
        return int((await self._call("Start", pb.StartRequest(id=id, exec_id=exec_id))).pid)

    async def delete(self, id: str, exec_id: str, *, timeout: float | None = None) -> Exit:
        request = pb.DeleteRequest(id=id, exec_id=exec_id)
        response = await self._call("Delete", request, timeout=timeout)
        return Exit(response.pid, response.exit_status, nanoseconds(response.exited_at))

    async def wait(self, id: str, exec_id: str) -> tuple[int, int]:
        """Exit status and time, once the process has ended."""
        response = await self._call("Wait", pb.WaitRequest(id=id, exec_id=exec_id))
        return response.exit_status, nanoseconds(response.exited_at)

    async def state(self, id: str, exec_id: str, *, timeout: float | None = None) -> Process:
        request = pb.StateRequest(id=id, exec_id=exec_id)
        response = await self._call("State", request, timeout=timeout)
        return Process(
            container_id=id,
            id=exec_id or id,
            pid=response.pid,
            status=_STATUSES.get(response.status, Status.UNKNOWN),
            stdio=Stdio(response.stdin, response.stdout, response.stderr, response.terminal),
            exit_status=response.exit_status,
            exited_at=nanoseconds(response.exited_at),
        )

    async def kill(self, id: str, exec_id: str, signal: int, all: bool) -> None:
        request = pb.KillRequest(id=id, exec_id=exec_id, signal=signal, all=all)
        await self._call("Kill", request)

    async def exec(self, id: str, exec_id: str, stdio: Stdio, spec: AnyValue) -> None:
        request = pb.ExecProcessRequest(
            id=id,
            exec_id=exec_id,
            terminal=stdio.terminal,
            stdin=stdio.stdin,
            stdout=stdio.stdout,
            stderr=stdio.stderr,
            spec=any_to_proto(spec),
        )
        await self._call("Exec", request)

    async def resize_pty(self, id: str, exec_id: str, width: int, height: int) -> None:
        request = pb.ResizePtyRequest(id=id, exec_id=exec_id, width=width, height=height)
        await self._call("ResizePty", request)

    async def close_stdin(self, id: str, exec_id: str) -> None:
        await self._call("CloseIO", pb.CloseIORequest(id=id, exec_id=exec_id, stdin=True))

    async def pause(self, id: str) -> None:
        await self._call("Pause", pb.PauseRequest(id=id))

    async def resume(self, id: str) -> None:
        await self._call("Resume", pb.ResumeRequest(id=id))

    async def pids(self, id: str) -> list[tuple[int, AnyValue | None]]:
        """The processes of a container; of an exec the runtime's own details are known."""
        response = await self._call("Pids", pb.PidsRequest(id=id))
        return [
            (entry.pid, any_from_proto(entry.info) if entry.HasField("info") else None)
            for entry in response.processes
        ]

    async def update(self, id: str, resources: AnyValue, annotations: Mapping[str, str]) -> None:
        request = pb.UpdateTaskRequest(
            id=id, resources=any_to_proto(resources), annotations=annotations
        )
        await self._call("Update", request)

    async def stats(self, id: str, *, timeout: float | None = None) -> AnyValue:
        response = await self._call("Stats", pb.StatsRequest(id=id), timeout=timeout)
        return any_from_proto(response.stats)

    async def checkpoint(self, id: str, path: str, options: AnyValue | None) -> None:
        request = pb.CheckpointTaskRequest(
            id=id, path=path, options=None if options is None else any_to_proto(options)
        )
        await self._call("Checkpoint", request)

    async def shutdown(self, id: str, *, timeout: float | None = None) -> None:
        """Have the shim exit unless it has containers."""
        await self._call("Shutdown", pb.ShutdownRequest(id=id), timeout=timeout)

    async def _first_call(self, name: str, request: Any, *, timeout: float | None = None) -> Any:
        try:
            return await self._call(name, request, timeout=timeout)
        except Unimplemented:
            if self._service is task_v2_pb2.Task:
                raise
            self._service = task_v2_pb2.Task
            return await self._call(name, request, timeout=timeout)

    async def _call(self, name: str, request: Any, *, timeout: float | None = None) -> Any:
        method = self._service.methods[name]
        with spans.span(f"shim.{name}"):
            return await self._channel.call(
                method, request, metadata=self._metadata, timeout=timeout
            )


def metadata_of(bootstrap: Bootstrap, namespace: str) -> tuple[tuple[str, str], ...]:
    """What tells a shim the namespace of a call."""
    return ((NAMESPACE if bootstrap.protocol == "grpc" else NAMESPACE_TTRPC, namespace),)
