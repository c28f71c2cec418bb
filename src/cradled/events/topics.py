"""Pure. What is told under which topic: (topic, event) pairs made from core objects, and back.

Events travel as ``AnyValue`` and are opened only here: for filters on ``event.<field>`` and for
recovery, which asks the journal for exits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.message import DecodeError

from cradled.api import events_pb2 as pb
from cradled.api import images_pb2 as images_pb
from cradled.convert import mounts
from cradled.convert.values import STATUS, nanoseconds, optional_any_to_proto, timestamp
from cradled.core.containers import Container
from cradled.core.images import Image
from cradled.core.mount import Mount
from cradled.core.tasks import Exit, Stdio
from cradled.core.values import AnyValue, Labels

Event = tuple[str, AnyValue]

TASKS = "/tasks/"
TASK_DELETE = "/tasks/delete"
TASK_EXIT = "/tasks/exit"
CONTAINER_CREATE = "/containers/create"
CONTAINER_DELETE = "/containers/delete"
CONTAINER_UPDATE = "/containers/update"

_KINDS = ("Container", "Content", "Image", "Namespace", "Snapshot", "Task", "Sandbox")


def container_created(container: Container) -> Event:
    runtime = container.runtime
    message = pb.ContainerCreate(
        id=container.id,
        image=container.image,
        runtime=pb.ContainerCreate.Runtime(
            name=runtime.name, options=optional_any_to_proto(runtime.options)
        ),
    )
    return _event(CONTAINER_CREATE, message)


def container_updated(container: Container) -> Event:
    message = pb.ContainerUpdate(
        id=container.id,
        image=container.image,
        labels=container.labels,
        snapshot_key=container.snapshot_key,
    )
    return _event(CONTAINER_UPDATE, message)


def container_deleted(container_id: str) -> Event:
    return _event(CONTAINER_DELETE, pb.ContainerDelete(id=container_id))


def content_created(digest: str, size: int) -> Event:
    return _event("/content/create", pb.ContentCreate(digest=digest, size=size))


def content_deleted(digest: str) -> Event:
    return _event("/content/delete", pb.ContentDelete(digest=digest))


def image_created(image: Image) -> Event:
    return _event("/images/create", images_pb.ImageCreate(name=image.name, labels=image.labels))


def image_updated(image: Image) -> Event:
    return _event("/images/update", images_pb.ImageUpdate(name=image.name, labels=image.labels))


def image_deleted(name: str) -> Event:
    return _event("/images/delete", images_pb.ImageDelete(name=name))


def namespace_created(name: str, labels: Labels) -> Event:
    return _event("/namespaces/create", pb.NamespaceCreate(name=name, labels=labels))


def namespace_updated(name: str, labels: Labels) -> Event:
    return _event("/namespaces/update", pb.NamespaceUpdate(name=name, labels=labels))


def namespace_deleted(name: str) -> Event:
    return _event("/namespaces/delete", pb.NamespaceDelete(name=name))


def snapshot_prepared(snapshotter: str, key: str, parent: str) -> Event:
    message = pb.SnapshotPrepare(key=key, parent=parent, snapshotter=snapshotter)
    return _event("/snapshot/prepare", message)


def snapshot_committed(snapshotter: str, key: str, name: str) -> Event:
    message = pb.SnapshotCommit(key=key, name=name, snapshotter=snapshotter)
    return _event("/snapshot/commit", message)


def snapshot_removed(snapshotter: str, key: str) -> Event:
    return _event("/snapshot/remove", pb.SnapshotRemove(key=key, snapshotter=snapshotter))


def task_created(
    container_id: str, bundle: str, rootfs: Sequence[Mount], stdio: Stdio, pid: int
) -> Event:
    message = pb.TaskCreate(
        container_id=container_id,
        bundle=bundle,
        rootfs=[mounts.to_proto(mount) for mount in rootfs],
        io=pb.TaskIO(
            stdin=stdio.stdin, stdout=stdio.stdout, stderr=stdio.stderr, terminal=stdio.terminal
        ),
        pid=pid,
    )
    return _event("/tasks/create", message)


def task_started(container_id: str, pid: int) -> Event:
    return _event("/tasks/start", pb.TaskStart(container_id=container_id, pid=pid))


def task_exited(container_id: str, process_id: str, end: Exit) -> Event:
    """``process_id`` is the container's id for init, else the exec's."""
    message = pb.TaskExit(
        container_id=container_id,
        id=process_id,
        pid=end.pid,
        exit_status=end.status,
        exited_at=timestamp(end.exited_at),
    )
    return _event(TASK_EXIT, message)


def task_deleted(container_id: str, process_id: str, end: Exit) -> Event:
    message = pb.TaskDelete(
        container_id=container_id,
        id=process_id,
        pid=end.pid,
        exit_status=end.status,
        exited_at=timestamp(end.exited_at),
    )
    return _event(TASK_DELETE, message)


def sandbox_created(sandbox_id: str) -> Event:
    return _event("/sandboxes/create", pb.SandboxCreate(sandbox_id=sandbox_id))


def sandbox_started(sandbox_id: str) -> Event:
    return _event("/sandboxes/start", pb.SandboxStart(sandbox_id=sandbox_id))


def sandbox_exited(sandbox_id: str, end: Exit) -> Event:
    message = pb.SandboxExit(
        sandbox_id=sandbox_id, exit_status=end.status, exited_at=timestamp(end.exited_at)
    )
    return _event("/sandboxes/exit", message)


def read_task_exit(event: AnyValue) -> tuple[str, str, Exit] | None:
    """(container id, process id, exit) of a task's exit event; None if it is not one."""
    message = _decode(event)
    if not isinstance(message, pb.TaskExit):
        return None
    end = Exit(message.pid, message.exit_status, nanoseconds(message.exited_at))
    return message.container_id, message.id, end


def read_task_deletion(event: AnyValue) -> tuple[str, str] | None:
    """(container id, process id, empty for init) of a deletion; None if it is not one."""
    message = _decode(event)
    if not isinstance(message, pb.TaskDelete):
        return None
    return message.container_id, message.id


def field_reader(event: AnyValue) -> Callable[[tuple[str, ...]], str | None]:
    """What filters can ask of an event: string fields by proto name, entries of ``labels``.

    Of the denial of a call these are its facts. An event of another type that is not ours, or that
    cannot be decoded, has no fields.
    """
    if event.type_url.rpartition("/")[2] == STATUS:
        from cradled.convert import denials

        texts = denials.texts(event)
        return lambda path: texts.get(".".join(path)) or None
    message = _decode(event)
    if message is None:
        return lambda path: None
    return lambda path: _field(message, path)


def _event(topic: str, message: Any) -> Event:
    return topic, AnyValue(message.DESCRIPTOR.full_name, message.SerializeToString())


def _decode(event: AnyValue) -> Any | None:
    message_type = _TYPES.get(event.type_url.rpartition("/")[2])
    if message_type is None:
        return None
    try:
        return message_type.FromString(event.value)
    except DecodeError:
        return None


def _field(message: Any, path: tuple[str, ...]) -> str | None:
    if not path:
        return None
    field = message.DESCRIPTOR.fields_by_name.get(path[0])
    if field is None:
        return None
    value = getattr(message, field.name)
    if field.name == "labels":
        found: str | None = value.get(".".join(path[1:]))
        return found
    if field.type == field.TYPE_STRING and isinstance(value, str):
        return value or None
    if field.type == field.TYPE_BOOL:
        return "true" if value else "false"
    if field.name in ("runtime", "io") and message.HasField(field.name):
        return _field(value, path[1:])
    return None


def _known_types() -> dict[str, Any]:
    modules: tuple[Any, ...] = (pb, images_pb)
    return {
        value.DESCRIPTOR.full_name: value
        for module in modules
        for name, value in vars(module).items()
        if name.startswith(_KINDS) and hasattr(value, "FromString")
    }


_TYPES = _known_types()
