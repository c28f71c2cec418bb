"""Async. The tasks of a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cradled.api import tasks_pb2 as pb
from cradled.convert import tasks as convert
from cradled.convert.values import (
    any_from_proto,
    any_to_proto,
    descriptor_from_proto,
    nanoseconds,
    optional_any_to_proto,
)
from cradled.core.scope import Scope
from cradled.core.tasks import CreateTask, Exit, Process, Stdio
from cradled.core.values import AnyValue, Descriptor
from cradled.proxies.scope import metadata
from cradled.rpc.stub import Stub, Transport


class ProxyTasks:
    def __init__(self, transport: Transport, scope: Scope) -> None:
        self._stub = Stub(transport, pb.Tasks, metadata(scope))

    async def create(self, task: CreateTask, /) -> int:
        """Returns the pid of the process that waits to be started."""
        response = await self._stub.create(convert.create_to_proto(task))
        return int(response.pid)

    async def start(self, id: str, exec_id: str = "", /) -> int:
        response = await self._stub.start(pb.StartRequest(container_id=id, exec_id=exec_id))
        return int(response.pid)

    async def delete(self, id: str, /) -> Exit:
        response = await self._stub.delete(pb.DeleteTaskRequest(container_id=id))
        return convert.exit_from_proto(response)

    async def delete_process(self, id: str, exec_id: str, /) -> Exit:
        request = pb.DeleteProcessRequest(container_id=id, exec_id=exec_id)
        return convert.exit_from_proto(await self._stub.delete_process(request))

    async def get(self, id: str, exec_id: str = "", /) -> Process:
        response = await self._stub.get(pb.GetRequest(container_id=id, exec_id=exec_id))
        return convert.from_proto(response.process)

    async def list(self) -> list[Process]:
        response = await self._stub.list(pb.ListTasksRequest())
        return [convert.from_proto(process) for process in response.tasks]

    async def kill(self, id: str, signal: int, exec_id: str = "", /, *, all: bool = False) -> None:
        await self._stub.kill(
            pb.KillRequest(container_id=id, exec_id=exec_id, signal=signal, all=all)
        )

    async def exec(self, id: str, exec_id: str, stdio: Stdio, spec: AnyValue, /) -> None:
        await self._stub.exec(
            pb.ExecProcessRequest(
                container_id=id,
                exec_id=exec_id,
                stdin=stdio.stdin,
                stdout=stdio.stdout,
                stderr=stdio.stderr,
                terminal=stdio.terminal,
                spec=any_to_proto(spec),
            )
        )

    async def resize_pty(self, id: str, exec_id: str, width: int, height: int, /) -> None:
        await self._stub.resize_pty(
            pb.ResizePtyRequest(container_id=id, exec_id=exec_id, width=width, height=height)
        )

    async def close_io(self, id: str, exec_id: str = "", /) -> None:
        """Let the process read the end of its input."""
        await self._stub.close_io(pb.CloseIORequest(container_id=id, exec_id=exec_id, stdin=True))

    async def pause(self, id: str, /) -> None:
        await self._stub.pause(pb.PauseTaskRequest(container_id=id))

    async def resume(self, id: str, /) -> None:
        await self._stub.resume(pb.ResumeTaskRequest(container_id=id))

    async def pids(self, id: str, /) -> Sequence[tuple[int, AnyValue | None]]:
        response = await self._stub.list_pids(pb.ListPidsRequest(container_id=id))
        return [
            (entry.pid, any_from_proto(entry.info) if entry.HasField("info") else None)
            for entry in response.processes
        ]

    async def checkpoint(self, id: str, options: AnyValue | None = None, /) -> Sequence[Descriptor]:
        """The blobs that it became; none where the options name a directory."""
        response = await self._stub.checkpoint(
            pb.CheckpointTaskRequest(container_id=id, options=optional_any_to_proto(options))
        )
        return [descriptor_from_proto(made) for made in response.descriptors]

    async def update(
        self, id: str, resources: AnyValue | None, annotations: Mapping[str, str] | None = None, /
    ) -> None:
        await self._stub.update(
            pb.UpdateTaskRequest(
                container_id=id,
                resources=optional_any_to_proto(resources),
                annotations=annotations,
            )
        )

    async def metrics(self, filters: Sequence[str] = (), /) -> Sequence[tuple[str, int, AnyValue]]:
        """(id, time, metrics) of each task."""
        response = await self._stub.metrics(pb.MetricsRequest(filters=filters))
        return [
            (metric.id, nanoseconds(metric.timestamp), any_from_proto(metric.data))
            for metric in response.metrics
        ]

    async def wait(self, id: str, exec_id: str = "", /) -> Exit:
        """Returns when the process has exited; the pid is not told (0)."""
        response = await self._stub.wait(pb.WaitRequest(container_id=id, exec_id=exec_id))
        return Exit(0, response.exit_status, nanoseconds(response.exited_at))
