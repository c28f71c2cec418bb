"""Async. The Sandbox service of one shim, in the daemon's own terms."""

from __future__ import annotations

from typing import Any

from cradled import spans
from cradled.api import shim_sandbox_pb2 as pb
from cradled.convert import sandbox_control as convert
from cradled.convert.values import any_from_proto, nanoseconds
from cradled.core.sandboxes import CreateSandbox, SandboxPlatform, SandboxStatus, StartedSandbox
from cradled.core.tasks import Exit
from cradled.runtime.bootstrap import Bootstrap
from cradled.runtime.dialing import Channel
from cradled.runtime.shim_client import ShimClient, metadata_of


class SandboxClient:
    """One sandbox. Its shim raises ``ConnectionLost`` when it is gone."""

    def __init__(self, channel: Channel, namespace: str, id: str, bootstrap: Bootstrap) -> None:
        self._channel = channel
        self.id = id
        self._bootstrap = bootstrap
        self._metadata = metadata_of(bootstrap, namespace)
        self.on_close = channel.on_close
        self.aclose = channel.aclose
        self.shim = ShimClient(channel, namespace, bootstrap)

    @property
    def address(self) -> str:
        """As clients keep it."""
        return f"{self._bootstrap.protocol}+{self._bootstrap.address}"

    async def create(self, request: CreateSandbox, bundle: str) -> None:
        await self._call("CreateSandbox", convert.create_to_shim(request, bundle))

    async def start(self) -> StartedSandbox:
        answer = await self._call("StartSandbox", pb.StartSandboxRequest(sandbox_id=self.id))
        return StartedSandbox(
            id=self.id,
            pid=answer.pid,
            created_at=nanoseconds(answer.created_at),
            address=self.address,
            version=self._bootstrap.version,
            spec=any_from_proto(answer.spec) if answer.HasField("spec") else None,
        )

    async def platform(self) -> SandboxPlatform:
        answer = await self._call("Platform", pb.PlatformRequest(sandbox_id=self.id))
        return convert.platform_from_proto(answer.platform)

    async def stop(self, timeout: int) -> None:
        """``timeout`` is the seconds that the sandbox may take."""
        request = pb.StopSandboxRequest(sandbox_id=self.id, timeout_secs=timeout)
        await self._call("StopSandbox", request)

    async def wait(self) -> Exit:
        request = pb.WaitSandboxRequest(sandbox_id=self.id)
        return convert.exit_from_proto(await self._call("WaitSandbox", request))

    async def status(self, verbose: bool, *, timeout: float | None = None) -> SandboxStatus:
        request = pb.SandboxStatusRequest(sandbox_id=self.id, verbose=verbose)
        answer = await self._call("SandboxStatus", request, timeout=timeout)
        return convert.status_from_proto(answer, self.address, self._bootstrap.version)

    async def shutdown(self, *, timeout: float | None = None) -> None:
        request = pb.ShutdownSandboxRequest(sandbox_id=self.id)
        await self._call("ShutdownSandbox", request, timeout=timeout)

    async def metrics(self) -> convert.Measured:
        request = pb.SandboxMetricsRequest(sandbox_id=self.id)
        return convert.metric_from_proto((await self._call("SandboxMetrics", request)).metrics)

    async def _call(self, name: str, request: Any, *, timeout: float | None = None) -> Any:
        method = pb.Sandbox.methods[name]
        with spans.span(f"shim.{name}"):
            return await self._channel.call(
                method, request, metadata=self._metadata, timeout=timeout
            )
