"""Pure. Sandboxes: what groups of containers share, such as a pod; records, and who runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cradled.core.containers import Runtime
from cradled.core.mount import Mount
from cradled.core.scope import Scope
from cradled.core.tasks import Exit
from cradled.core.values import AnyValue, Labels


@dataclass(frozen=True, slots=True)
class Sandbox:
    """Times are nanoseconds since the epoch; ``sandboxer`` names the controller that runs it."""

    id: str
    runtime: Runtime
    spec: AnyValue | None = None
    labels: Labels = field(default_factory=dict)
    created_at: int = 0
    updated_at: int = 0
    extensions: Mapping[str, AnyValue] = field(default_factory=dict)
    sandboxer: str = ""


@dataclass(frozen=True, slots=True)
class CreateSandbox:
    """What is needed to make a sandbox of a record."""

    sandbox: Sandbox
    rootfs: Sequence[Mount] = ()
    options: AnyValue | None = None
    netns_path: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StartedSandbox:
    """``address`` (``<protocol>+<address>``) and ``version`` are those of the Task API by which
    containers join it; empty and 0 where they cannot."""

    id: str
    pid: int = 0
    created_at: int = 0
    labels: Labels = field(default_factory=dict)
    address: str = ""
    version: int = 0
    spec: AnyValue | None = None


@dataclass(frozen=True, slots=True)
class SandboxStatus:
    """``state`` is ``SANDBOX_READY`` or ``SANDBOX_NOTREADY``; empty for one nobody knows."""

    id: str
    pid: int = 0
    state: str = ""
    info: Mapping[str, str] = field(default_factory=dict)
    created_at: int = 0
    exited_at: int = 0
    extra: AnyValue | None = None
    address: str = ""
    version: int = 0


@dataclass(frozen=True, slots=True)
class SandboxPlatform:
    """What containers of a sandbox run on."""

    os: str = ""
    architecture: str = ""
    variant: str = ""


class SandboxController(Protocol):
    """Runs sandboxes. All but ``stop``, ``status`` and ``shutdown`` raise NotFound."""

    async def create(self, scope: Scope, request: CreateSandbox, /) -> None:
        """Raises AlreadyExists."""
        ...

    async def start(self, scope: Scope, id: str, /) -> StartedSandbox: ...

    async def platform(self, scope: Scope, id: str, /) -> SandboxPlatform: ...

    async def stop(self, scope: Scope, id: str, timeout: int, /) -> None:
        """Stop it within so many seconds (0: its own idea); one that is not there is fine."""
        ...

    async def wait(self, scope: Scope, id: str, /) -> Exit:
        """How it ended, once it has; the pid is not told."""
        ...

    async def status(self, scope: Scope, id: str, verbose: bool, /) -> SandboxStatus:
        """One that is not there has an ``exited_at`` and nothing else."""
        ...

    async def shutdown(self, scope: Scope, id: str, /) -> None:
        """Remove all of it; one that is not there is fine."""
        ...

    async def metrics(self, scope: Scope, id: str, /) -> tuple[str, int, AnyValue]:
        """Id, time in nanoseconds, what was measured."""
        ...

    async def update(self, scope: Scope, sandbox: Sandbox, fieldpaths: Sequence[str], /) -> None:
        """Take note of changes to the record."""
        ...
