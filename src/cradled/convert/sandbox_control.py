"""Pure. What is asked of who runs a sandbox, and answered.

Shims and controllers of other processes answer in messages of the same fields; where containers
join is known only to those above shims.
"""

from __future__ import annotations

from typing import Any

from cradled.api import sandbox_pb2 as pb
from cradled.api import shim_sandbox_pb2 as shim_pb
from cradled.api.types_pb2 import Metric, Platform
from cradled.convert import mounts, sandboxes
from cradled.convert.values import (
    any_from_proto,
    any_to_proto,
    nanoseconds,
    optional_any_to_proto,
    timestamp,
    timestamp_or_none,
)
from cradled.core.containers import Runtime
from cradled.core.sandboxes import (
    CreateSandbox,
    Sandbox,
    SandboxPlatform,
    SandboxStatus,
    StartedSandbox,
)
from cradled.core.tasks import Exit
from cradled.core.values import AnyValue

Measured = tuple[str, int, AnyValue]


def create_to_proto(request: CreateSandbox) -> pb.ControllerCreateRequest:
    return pb.ControllerCreateRequest(
        sandbox_id=request.sandbox.id,
        rootfs=map(mounts.to_proto, request.rootfs),
        options=optional_any_to_proto(request.options),
        netns_path=request.netns_path,
        annotations=request.annotations,
        sandbox=sandboxes.to_proto(request.sandbox),
    )


def create_to_shim(request: CreateSandbox, bundle: str) -> shim_pb.CreateSandboxRequest:
    return shim_pb.CreateSandboxRequest(
        sandbox_id=request.sandbox.id,
        bundle_path=bundle,
        rootfs=map(mounts.to_proto, request.rootfs),
        options=optional_any_to_proto(request.options),
        netns_path=request.netns_path,
        annotations=request.annotations,
    )


def create_from_proto(message: pb.ControllerCreateRequest) -> CreateSandbox:
    """Without a record there is the id."""
    named = Sandbox(message.sandbox_id, Runtime(""))
    return CreateSandbox(
        sandboxes.from_proto(message.sandbox) if message.HasField("sandbox") else named,
        tuple(map(mounts.from_proto, message.rootfs)),
        any_from_proto(message.options) if message.HasField("options") else None,
        message.netns_path,
        dict(message.annotations),
    )


def started_to_proto(started: StartedSandbox) -> pb.ControllerStartResponse:
    return pb.ControllerStartResponse(
        sandbox_id=started.id,
        pid=started.pid,
        created_at=timestamp_or_none(started.created_at),
        labels=started.labels,
        address=started.address,
        version=started.version,
        spec=optional_any_to_proto(started.spec),
    )


def started_from_proto(message: pb.ControllerStartResponse) -> StartedSandbox:
    return StartedSandbox(
        id=message.sandbox_id,
        pid=message.pid,
        created_at=nanoseconds(message.created_at),
        labels=dict(message.labels),
        address=message.address,
        version=message.version,
        spec=any_from_proto(message.spec) if message.HasField("spec") else None,
    )


def status_to_proto(status: SandboxStatus) -> pb.ControllerStatusResponse:
    return pb.ControllerStatusResponse(
        sandbox_id=status.id,
        pid=status.pid,
        state=status.state,
        info=status.info,
        created_at=timestamp_or_none(status.created_at),
        exited_at=timestamp_or_none(status.exited_at),
        extra=optional_any_to_proto(status.extra),
        address=status.address,
        version=status.version,
    )


def status_from_proto(message: Any, address: str = "", version: int = 0) -> SandboxStatus:
    """Of a shim's answer, or a controller's."""
    return SandboxStatus(
        id=message.sandbox_id,
        pid=message.pid,
        state=message.state,
        info=dict(message.info),
        created_at=nanoseconds(message.created_at),
        exited_at=nanoseconds(message.exited_at),
        extra=any_from_proto(message.extra) if message.HasField("extra") else None,
        address=address,
        version=version,
    )


def platform_to_proto(platform: SandboxPlatform) -> Platform:
    return Platform(os=platform.os, architecture=platform.architecture, variant=platform.variant)


def platform_from_proto(message: Platform) -> SandboxPlatform:
    return SandboxPlatform(message.os, message.architecture, message.variant)


def metric_to_proto(measured: Measured) -> Metric:
    id, when, data = measured
    return Metric(id=id, timestamp=timestamp(when), data=any_to_proto(data))


def metric_from_proto(message: Metric) -> Measured:
    return message.id, nanoseconds(message.timestamp), any_from_proto(message.data)


def exit_from_proto(message: Any) -> Exit:
    """Of an answer to Wait, a shim's or a controller's."""
    return Exit(0, message.exit_status, nanoseconds(message.exited_at))
