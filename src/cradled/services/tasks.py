"""Async. Tasks: the running side of containers."""

from __future__ import annotations

from cradled.api import task_types_pb2 as types_pb
from cradled.api import tasks_pb2 as pb
from cradled.api.types_pb2 import Metric
from cradled.api.wellknown_pb2 import Empty
from cradled.convert import tasks as convert
from cradled.convert.values import (
    any_from_proto,
    any_to_proto,
    descriptor_to_proto,
    optional_any_to_proto,
    timestamp,
    timestamp_or_never,
)
from cradled.core.scope import Scope
from cradled.core.tasks import Process, Stdio
from cradled.errors import InvalidArgument
from cradled.metadata.db import Database
from cradled.rpc.call import Call
from cradled.runtime.manager import TaskManager


class TasksService:
    """Every rpc about one task first looks for its container, whose absence is told first."""

    def __init__(self, db: Database, tasks: TaskManager) -> None:
        self._db = db
        self._tasks = tasks

    async def _scope(self, call: Call, container_id: str) -> Scope:
        scope = call.scope()
        await self._db.scoped(scope).containers.get_record(container_id)
        return scope

    async def create(self, call: Call, request: pb.CreateTaskRequest) -> pb.CreateTaskResponse:
        pid = await self._tasks.create(call.scope(), convert.create_from_proto(request))
        return pb.CreateTaskResponse(container_id=request.container_id, pid=pid)

    async def start(self, call: Call, request: pb.StartRequest) -> pb.StartResponse:
        scope = await self._scope(call, request.container_id)
        pid = await self._tasks.start(scope, request.container_id, request.exec_id)
        return pb.StartResponse(pid=pid)

    async def delete(self, call: Call, request: pb.DeleteTaskRequest) -> pb.DeleteResponse:
        scope = await self._scope(call, request.container_id)
        return convert.exit_to_proto(await self._tasks.delete(scope, request.container_id))

    async def delete_process(
        self, call: Call, request: pb.DeleteProcessRequest
    ) -> pb.DeleteResponse:
        scope = await self._scope(call, request.container_id)
        end = await self._tasks.delete_process(scope, request.container_id, request.exec_id)
        return convert.exit_to_proto(end, request.exec_id)

    async def get(self, call: Call, request: pb.GetRequest) -> pb.GetResponse:
        scope = await self._scope(call, request.container_id)
        process = await self._tasks.get(scope, request.container_id, request.exec_id)
        return pb.GetResponse(process=_process(process))

    async def list(self, call: Call, request: pb.ListTasksRequest) -> pb.ListTasksResponse:
        """The filter is ignored, as in the original."""
        return pb.ListTasksResponse(tasks=map(_process, await self._tasks.list(call.scope())))

    async def kill(self, call: Call, request: pb.KillRequest) -> Empty:
        scope = await self._scope(call, request.container_id)
        await self._tasks.kill(
            scope, request.container_id, request.signal, request.exec_id, request.all
        )
        return Empty()

    async def exec(self, call: Call, request: pb.ExecProcessRequest) -> Empty:
        if not request.exec_id:
            raise InvalidArgument("exec id cannot be empty", verbatim=True)
        scope = await self._scope(call, request.container_id)
        stdio = Stdio(request.stdin, request.stdout, request.stderr, request.terminal)
        spec = any_from_proto(request.spec)
        await self._tasks.exec(scope, request.container_id, request.exec_id, stdio, spec)
        return Empty()

    async def resize_pty(self, call: Call, request: pb.ResizePtyRequest) -> Empty:
        scope = await self._scope(call, request.container_id)
        await self._tasks.resize_pty(
            scope, request.container_id, request.exec_id, request.width, request.height
        )
        return Empty()

    async def close_io(self, call: Call, request: pb.CloseIORequest) -> Empty:
        scope = await self._scope(call, request.container_id)
        await self._tasks.close_io(scope, request.container_id, request.exec_id, request.stdin)
        return Empty()

    async def pause(self, call: Call, request: pb.PauseTaskRequest) -> Empty:
        scope = await self._scope(call, request.container_id)
        await self._tasks.pause(scope, request.container_id)
        return Empty()

    async def resume(self, call: Call, request: pb.ResumeTaskRequest) -> Empty:
        scope = await self._scope(call, request.container_id)
        await self._tasks.resume(scope, request.container_id)
        return Empty()

    async def list_pids(self, call: Call, request: pb.ListPidsRequest) -> pb.ListPidsResponse:
        scope = await self._scope(call, request.container_id)
        found = await self._tasks.pids(scope, request.container_id)
        return pb.ListPidsResponse(
            processes=[
                types_pb.ProcessInfo(pid=pid, info=optional_any_to_proto(info))
                for pid, info in found
            ]
        )

    async def checkpoint(
        self, call: Call, request: pb.CheckpointTaskRequest
    ) -> pb.CheckpointTaskResponse:
        scope = await self._scope(call, request.container_id)
        options = any_from_proto(request.options) if request.HasField("options") else None
        made = await self._tasks.checkpoint(scope, request.container_id, options)
        return pb.CheckpointTaskResponse(descriptors=map(descriptor_to_proto, made))

    async def update(self, call: Call, request: pb.UpdateTaskRequest) -> Empty:
        scope = await self._scope(call, request.container_id)
        resources = any_from_proto(request.resources)
        annotations = dict(request.annotations)
        await self._tasks.update(scope, request.container_id, resources, annotations)
        return Empty()

    async def metrics(self, call: Call, request: pb.MetricsRequest) -> pb.MetricsResponse:
        found = await self._tasks.metrics(call.scope(), list(request.filters))
        return pb.MetricsResponse(
            metrics=[
                Metric(timestamp=timestamp(when), id=container_id, data=any_to_proto(data))
                for container_id, when, data in found
            ]
        )

    async def wait(self, call: Call, request: pb.WaitRequest) -> pb.WaitResponse:
        scope = await self._scope(call, request.container_id)
        end = await self._tasks.wait(scope, request.container_id, request.exec_id)
        return pb.WaitResponse(exit_status=end.status, exited_at=timestamp_or_never(end.exited_at))


def _process(process: Process) -> types_pb.Process:
    """As the original sends it: without the container's id."""
    message = convert.to_proto(process)
    message.container_id = ""
    return message
