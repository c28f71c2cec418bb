"""Async. Making a task of a bundle, a shim and a container, and taking it apart.

No registry and no events here. What fails half way takes back what was done; what is left of a task
whose shim is dead is cleaned up by the shim's own program.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from cradled import errors, failpoints
from cradled.aio import threads
from cradled.aio.undo import Undo
from cradled.core.containers import Container
from cradled.core.scope import Scope
from cradled.core.tasks import CreateTask, Exit
from cradled.core.values import AnyValue, Descriptor
from cradled.linux import processes
from cradled.linux.tree import remove_tree
from cradled.rpc.ttrpc_client import ConnectionLost
from cradled.runtime import bootstrap, checkpoints
from cradled.runtime.bootstrap import Bootstrap
from cradled.runtime.bundle import Bundle, group_of
from cradled.runtime.checkpoints import Checkpoints, Restore
from cradled.runtime.launcher import DEFAULT_RUNTIME, Launcher, remove_socket
from cradled.runtime.rootfs import Overlays, upper_of
from cradled.runtime.shim_client import ShimClient
from cradled.runtime.shim_log import ShimLog
from cradled.runtime.shims import Shims, reach
from cradled.runtime.task import INIT, Task
from cradled.spans import span

log = logging.getLogger(__name__)

GONE_SECONDS = 1.0
"""How long a shim that has nothing left may take to exit."""

_JOINABLE = 3
"""The first version of the Task API by which containers join the shim of a sandbox."""

Sandboxes = Callable[[Scope, str], Awaitable[Bootstrap | None]]
"""Where the shim of a sandbox serves, if that is known. Raises NotFound for no sandbox."""


@dataclass(slots=True)
class _Shim:
    """A shim in the making; ``joined`` is that of a sandbox, which is there already."""

    bundle: Bundle
    launcher: Launcher
    joined: Bootstrap | None
    group: str
    client: ShimClient | None = None


class Assembly:
    """``checkpoints`` and ``sandboxes`` are asked for when a task needs them."""

    def __init__(
        self, shims: Shims, checkpoints: Callable[[], Checkpoints], sandboxes: Sandboxes
    ) -> None:
        self.shims = shims
        self.launchers = shims.launchers
        self._checkpoints = checkpoints
        self._sandboxes = sandboxes
        self._overlays = Overlays()

    async def make(self, scope: Scope, container: Container, request: CreateTask) -> Task:
        """Make a task; raises what shim and OCI runtime say, and leaves nothing then."""
        runtime = request.runtime or container.runtime.name
        launcher = self.launchers.of_runtime(runtime)
        options = launcher.options(_chosen(request.options, container.runtime.options))
        restore = checkpoints.restore_of(request, runtime or DEFAULT_RUNTIME)
        joined = await self._sandbox(scope, container.sandbox, request)
        bundle = self.shims.bundle(scope.namespace, request.id)
        spec = container.spec.value if container.spec is not None else b""
        if b"idMappings" in spec:
            await self._check_mappings(spec, runtime, options)
        async with Undo() as undo:
            with span("bundle.create"):
                sandbox = container.sandbox if joined is not None else ""
                await threads.run("fs", bundle.create, spec, launcher.path, sandbox)
            undo.push("removal of the bundle", threads.run, "fs", bundle.remove)
            failpoints.hit("runtime.create.bundle")
            path = await self._unpacked(scope, restore, bundle)
            shim_log = ShimLog(bundle)
            undo.push("closing of the log", shim_log.aclose)
            shim = _Shim(bundle, launcher, joined, launcher.group or group_of(spec))
            undo.push("clean-up of the shim", self._abandon, shim)
            client = shim.client = await self._connect(shim, options)
            failpoints.hit("runtime.create.connected")
            task = Task(bundle, launcher, client, shim_log, sandboxed=joined is not None)
            await self._fill(task, request, options, path)
            if restore.blob is not None:
                task.checkpoint = path
            if restore.at_once:
                task.has_started(INIT, await client.start(task.id, INIT))
            failpoints.hit("runtime.create.created")
            undo.commit()
        return task

    async def _fill(
        self, task: Task, request: CreateTask, options: AnyValue | None, checkpoint: str
    ) -> None:
        """Have the shim create the container."""
        task.stdio = request.stdio
        task.upper = upper_of(request.rootfs)
        await self._overlays.settled(task.upper)
        try:
            task.pid = await task.client.create(
                task.id, task.bundle.path, request.rootfs, request.stdio, options, checkpoint
            )
        except errors.Error as error:
            raise _within("failed to create shim task", error) from error

    async def _check_mappings(self, spec: bytes, runtime: str, options: AnyValue | None) -> None:
        from cradled.runtime import features

        if features.maps_ids_of_mounts(spec):
            await features.require_mapped_mounts(self.launchers, runtime, options)

    async def _unpacked(self, scope: Scope, restore: Restore, bundle: Bundle) -> str:
        """The directory to restore from; empty for none."""
        if restore.blob is None:
            return restore.path
        await self._checkpoints().unpack(scope, restore.blob, bundle.checkpoint)
        return bundle.checkpoint

    async def checkpoint(
        self, scope: Scope, task: Task, container: Container, options: AnyValue | None
    ) -> list[Descriptor]:
        """Have the shim write a checkpoint where the options say, or make blobs of it."""
        path = checkpoints.image_path(options, container.runtime.name or DEFAULT_RUNTIME)
        if path:
            await task.client.checkpoint(task.id, path, options)
            return []
        directory = await threads.run("fs", task.bundle.make_directory)
        try:
            await task.client.checkpoint(task.id, directory, options)
            return await self._checkpoints().pack(scope, directory, container.spec)
        finally:
            await threads.run("fs", remove_tree, directory)

    async def delete(self, task: Task) -> Exit:
        """Have the shim delete the container. Raises what it says."""
        # Other shims might not take no for an answer when what they unmount is in use.
        upper = task.upper if task.launcher.is_tidy else ""
        with self._overlays.held(task.bundle.rootfs, upper):
            try:
                return await task.client.delete(task.id, INIT)
            except (errors.NotFound, ConnectionLost):
                raise
            except errors.Error as error:
                raise _within("failed to delete task", error) from error

    async def dismantle(self, task: Task) -> None:
        """Remove all that is left of a task whose container was deleted."""
        await asyncio.gather(self._hang_up(task), self.shims.remove(task.bundle))

    async def dismiss(
        self, bundle: Bundle, launcher: Launcher, client: ShimClient, *, shared: bool = False
    ) -> None:
        """End a shim that has no container of this bundle, or only half of one.

        One that is ``shared`` with others need not go.
        """
        gone = asyncio.Event()
        client.on_close(gone.set)
        if shared and launcher.is_tidy:
            gone.set()
        try:
            if not await self._end(bundle, client, gone):
                # It died, is still creating, or serves others of its group.
                await self.shims.bury(bundle, launcher, 0)
                await self._end(bundle, client, gone)
            elif not launcher.is_tidy:
                await self.shims.bury(bundle, launcher, 0)
        finally:
            await client.aclose()

    async def _end(self, bundle: Bundle, client: ShimClient, gone: asyncio.Event) -> bool:
        """Have a shim delete the container and exit; whether it went in good order."""
        try:
            with suppress(errors.NotFound):
                await client.delete(bundle.id, INIT, timeout=self.launchers.timeouts.shutdown)
            await client.shutdown(bundle.id, timeout=self.launchers.timeouts.shutdown)
            async with asyncio.timeout(GONE_SECONDS):
                await gone.wait()
        except (TimeoutError, errors.Error) as error:
            log.debug("shim of %s does not go: %r", bundle.id, error)
            return False
        return True

    async def _sandbox(self, scope: Scope, sandbox: str, request: CreateTask) -> Bootstrap | None:
        """The shim of a sandbox that the container is to be in; None: it gets one as others do."""
        if not sandbox:
            return None
        try:
            known = await self._sandboxes(scope, sandbox)
        except errors.NotFound:
            return None
        if request.task_api_address:
            known = bootstrap.parse_address(request.task_api_address, request.task_api_version)
        return known if known is not None and known.version >= _JOINABLE else None

    async def _connect(self, shim: _Shim, options: AnyValue | None) -> ShimClient:
        """Start a shim, or take that of the sandbox, and connect to it."""
        result = shim.joined
        if result is not None:
            await threads.run("fs", shim.bundle.save_bootstrap, result)
            return ShimClient(await reach(result), shim.bundle.namespace, result)
        start = shim.launcher.start
        with span("shim.start"):
            result = await start(shim.bundle, options, shim.group)
            try:
                channel = await reach(result, is_there=shim.launcher.is_tidy)
            except errors.Error:
                if not shim.group:
                    raise
                # The last of the group has gone since then, and the shim with it.
                result = await start(shim.bundle, options, shim.group)
                channel = await reach(result)
        return ShimClient(channel, shim.bundle.namespace, result)

    async def _abandon(self, shim: _Shim) -> None:
        """Take back a shim whose container could not be made."""
        if shim.joined is not None:
            if shim.client is not None:
                await self.leave(shim.bundle, shim.client)
            return
        if shim.client is None:
            await self.shims.bury(shim.bundle, shim.launcher, 0)
        else:
            await self.dismiss(shim.bundle, shim.launcher, shim.client, shared=bool(shim.group))
        if not shim.group:  # one that hears nothing, or has not gone when it was told to
            await threads.run("fs", _end_shim, shim.bundle)

    async def leave(self, bundle: Bundle, client: ShimClient) -> None:
        """Take a container that may be half made out of a sandbox's shim."""
        try:
            with suppress(errors.Error):
                await client.delete(bundle.id, INIT, timeout=self.launchers.timeouts.shutdown)
        finally:
            await client.aclose()

    async def _hang_up(self, task: Task) -> None:
        try:
            if not task.sandboxed:
                await task.client.shutdown(task.id, timeout=self.launchers.timeouts.shutdown)
                failpoints.hit("runtime.delete.shut_down")
        except errors.Error as error:  # many a shim exits before it answers
            log.debug("shutdown of the shim of %s: %s", task.id, error)
            await threads.run("fs", remove_socket, task.client.bootstrap)
        finally:
            await task.aclose()


def _end_shim(bundle: Bundle) -> None:
    """Blocking: end a shim that serves nobody else, wherever it hangs."""
    processes.end_those_in(bundle.path)
    with suppress(errors.Error, OSError):
        remove_socket(bundle.load_bootstrap())


def _chosen(of_task: AnyValue | None, of_container: AnyValue | None) -> AnyValue | None:
    """A request's options; empty ones say nothing, then the container's count."""
    return of_task if of_task is not None and of_task.type_url else of_container


def _within(step: str, error: errors.Error) -> errors.Error:
    return type(error)(f"{step}: {error.what}", verbatim=error.verbatim)
