"""Pure. Tasks: requests to make one, states, exits.

While a process has not exited its ``exited_at`` travels as the year-1 timestamp: Go clients turn
an absent one into 1970.
"""

from __future__ import annotations

from cradled.api import runc_options_pb2
from cradled.api import task_types_pb2 as types_pb
from cradled.api import tasks_pb2 as pb
from cradled.convert import mounts
from cradled.convert.values import (
    any_from_proto,
    descriptor_from_proto,
    descriptor_to_proto,
    nanoseconds,
    optional_any_to_proto,
    timestamp_or_never,
)
from cradled.core.tasks import CreateTask, Exit, Process, Status, Stdio
from cradled.core.values import AnyValue

_STATUSES = {status.value: status for status in Status}


def to_proto(process: Process) -> types_pb.Process:
    stdio = process.stdio
    return types_pb.Process(
        container_id=process.container_id,
        id=process.id,
        pid=process.pid,
        status=int(process.status),
        stdin=stdio.stdin,
        stdout=stdio.stdout,
        stderr=stdio.stderr,
        terminal=stdio.terminal,
        exit_status=process.exit_status,
        exited_at=timestamp_or_never(process.exited_at),
    )


def from_proto(message: types_pb.Process) -> Process:
    """A status this side does not know becomes UNKNOWN."""
    return Process(
        container_id=message.container_id,
        id=message.id,
        pid=message.pid,
        status=_STATUSES.get(message.status, Status.UNKNOWN),
        stdio=Stdio(message.stdin, message.stdout, message.stderr, message.terminal),
        exit_status=message.exit_status,
        exited_at=nanoseconds(message.exited_at),
    )


def create_to_proto(task: CreateTask) -> pb.CreateTaskRequest:
    checkpoint = task.checkpoint
    return pb.CreateTaskRequest(
        container_id=task.id,
        rootfs=[mounts.to_proto(mount) for mount in task.rootfs],
        stdin=task.stdio.stdin,
        stdout=task.stdio.stdout,
        stderr=task.stdio.stderr,
        terminal=task.stdio.terminal,
        checkpoint=None if checkpoint is None else descriptor_to_proto(checkpoint),
        options=optional_any_to_proto(task.options),
        runtime_path=task.runtime,
        task_api_address=task.task_api_address,
        task_api_version=task.task_api_version,
    )


def create_from_proto(message: pb.CreateTaskRequest) -> CreateTask:
    has = message.HasField
    return CreateTask(
        id=message.container_id,
        rootfs=tuple(mounts.from_proto(mount) for mount in message.rootfs),
        stdio=Stdio(message.stdin, message.stdout, message.stderr, message.terminal),
        checkpoint=descriptor_from_proto(message.checkpoint) if has("checkpoint") else None,
        options=any_from_proto(message.options) if has("options") else None,
        runtime=message.runtime_path,
        task_api_address=message.task_api_address,
        task_api_version=message.task_api_version,
    )


def exit_to_proto(end: Exit, exec_id: str = "") -> pb.DeleteResponse:
    return pb.DeleteResponse(
        id=exec_id,
        pid=end.pid,
        exit_status=end.status,
        exited_at=timestamp_or_never(end.exited_at),
    )


def exit_from_proto(message: pb.DeleteResponse) -> Exit:
    return Exit(message.pid, message.exit_status, nanoseconds(message.exited_at))


def runc_options(binary: str) -> AnyValue:
    """What has shims of runc's kind run another OCI runtime, by name or path."""
    message = runc_options_pb2.Options(binary_name=binary)
    return AnyValue(message.DESCRIPTOR.full_name, message.SerializeToString())


def exec_id(details: AnyValue | None) -> str:
    """Of what a shim says of a process: the exec that it is; empty for all others."""
    message = runc_options_pb2.ProcessDetails
    if details is None or not details.type_url.endswith(message.DESCRIPTOR.full_name):
        return ""
    found: str = message.FromString(details.value).exec_id
    return found
