"""Async. The Task service: requests to calls of containers, results to replies."""

from __future__ import annotations

import os

from cradled.errors import AlreadyExists, Error, FailedPrecondition, InvalidArgument, NotFound
from cradled.shim import log
from cradled.shim import messages as m
from cradled.shim.container import Container, Supervisor
from cradled.ttrpc.codec import decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from cradled.ttrpc.codec import Message

    M = TypeVar("M", bound=Message)

NAMES = ("containerd.task.v3.Task", "containerd.task.v2.Task")
"""The messages of both versions are the same."""

_METHODS = {
    "State": ("state", m.StateRequest),
    "Create": ("create", m.CreateTaskRequest),
    "Start": ("start", m.StartRequest),
    "Delete": ("delete", m.DeleteRequest),
    "Pids": ("pids", m.PidsRequest),
    "Pause": ("pause", m.PauseRequest),
    "Resume": ("resume", m.ResumeRequest),
    "Checkpoint": ("checkpoint", m.CheckpointTaskRequest),
    "Kill": ("kill", m.KillRequest),
    "Exec": ("exec", m.ExecProcessRequest),
    "ResizePty": ("resize_pty", m.ResizePtyRequest),
    "CloseIO": ("close_io", m.CloseIORequest),
    "Update": ("update", m.UpdateTaskRequest),
    "Wait": ("wait", m.WaitRequest),
    "Stats": ("stats", m.StatsRequest),
    "Connect": ("connect", m.ConnectRequest),
    "Shutdown": ("shutdown", m.ShutdownRequest),
}
METHODS = {name: _METHODS for name in NAMES}
"""Service and rpc: the handler's name and the class of its request."""


class TaskService:
    """Handlers by rpc name; ``dismiss`` is called when a client would have us exit."""

    def __init__(self, shim: Supervisor, dismiss: Callable[[], None]) -> None:
        self._shim = shim
        self._dismiss = dismiss
        self._containers: dict[str, Container] = {}
        self._creating: dict[str, bool] = {}
        """What is being made, and whether it is wanted still."""

    @property
    def idle(self) -> bool:
        """Whether there is no container, nor one being made."""
        return not self._containers and not self._creating

    async def create(self, request: m.CreateTaskRequest) -> Message:
        if request.id in self._containers or request.id in self._creating:
            raise AlreadyExists(f"container {request.id}")
        container = Container(self._shim, request, _options(request.options))
        log.stay(request.bundle)
        self._creating[request.id] = True
        try:
            pid = await container.create()
            self._containers[request.id] = container
        finally:
            is_wanted = self._creating.pop(request.id)
        if not is_wanted:
            await self.delete(m.DeleteRequest(id=request.id))
            raise Error(f"container {request.id} was deleted while it was created")
        return m.CreateTaskResponse(pid=pid)

    async def start(self, request: m.StartRequest) -> Message:
        container = self._container(request.id)
        if request.exec_id:
            return m.StartResponse(pid=await container.start_exec(request.exec_id))
        return m.StartResponse(pid=await container.start())

    async def delete(self, request: m.DeleteRequest) -> Message:
        if request.id in self._creating:
            self._creating[request.id] = False  # who will not wait for it has it taken back
            raise FailedPrecondition(f"container {request.id} is being created")
        container = self._container(request.id)
        if request.exec_id:
            process = await container.delete_exec(request.exec_id)
        else:
            process = await container.delete()
            self._containers.pop(request.id, None)
        return m.DeleteResponse(
            pid=process.pid, exit_status=process.exit_status, exited_at=process.end
        )

    async def exec(self, request: m.ExecProcessRequest) -> None:
        self._container(request.id).add_exec(request)

    async def kill(self, request: m.KillRequest) -> None:
        container = self._container(request.id)
        await container.kill(request.exec_id, request.signal, all=request.all)

    async def pause(self, request: m.PauseRequest) -> None:
        await self._container(request.id).pause()

    async def resume(self, request: m.ResumeRequest) -> None:
        await self._container(request.id).resume()

    async def checkpoint(self, request: m.CheckpointTaskRequest) -> None:
        options = _decoded(m.CheckpointOptions, request.options)
        await self._container(request.id).dump(request.path, options)

    async def update(self, request: m.UpdateTaskRequest) -> None:
        container = self._container(request.id)
        if request.resources is None:
            raise InvalidArgument("no resources to update")
        await container.update(request.resources.value)

    async def resize_pty(self, request: m.ResizePtyRequest) -> None:
        container = self._container(request.id)
        container.resize(request.exec_id, request.width, request.height)

    async def close_io(self, request: m.CloseIORequest) -> None:
        self._container(request.id).close_stdin(request.exec_id)

    async def state(self, request: m.StateRequest) -> Message:
        container = self._container(request.id)
        process = container.process(request.exec_id)
        given = process.request
        return m.StateResponse(
            id=process.id or request.id, exec_id=process.id, bundle=container.bundle,
            pid=process.pid, status=container.status(process), terminal=given.terminal,
            stdin=given.stdin, stdout=given.stdout, stderr=given.stderr,
            exit_status=process.exit_status, exited_at=process.end,
        )  # fmt: skip

    async def pids(self, request: m.PidsRequest) -> Message:
        return m.PidsResponse(processes=await self._container(request.id).pids())

    async def stats(self, request: m.StatsRequest) -> Message:
        return m.StatsResponse(stats=self._container(request.id).stats())

    async def wait(self, request: m.WaitRequest) -> Message:
        process = self._container(request.id).process(request.exec_id)
        await process.exited
        return m.WaitResponse(exit_status=process.exit_status, exited_at=process.end)

    async def connect(self, request: m.ConnectRequest) -> Message:
        container = self._containers.get(request.id)
        pid = container.init.pid if container is not None else 0
        return m.ConnectResponse(shim_pid=os.getpid(), task_pid=pid)

    async def shutdown(self, request: m.ShutdownRequest) -> None:
        if self.idle:
            self._dismiss()

    def _container(self, id: str) -> Container:
        container = self._containers.get(id)
        if container is None:
            raise NotFound("container not created")
        return container


def _options(options: m.Any | None) -> m.Options:
    """The runc options in an Any. Raises InvalidArgument for those of another runtime."""
    if options is None or not options.type_url:
        return m.Options()
    name = options.type_url.rpartition("/")[2]
    if name != m.Options.NAME:
        raise InvalidArgument(f"options of type {name}")
    return _decoded(m.Options, options)


def _decoded(kind: type[M], options: m.Any | None) -> M:
    try:
        return decode(kind, options.value if options is not None else b"")
    except ValueError as error:
        raise InvalidArgument(f"options: {error}") from None
