"""Async. Making a task of a bundle, a shim and a container, and taking it apart.

No registry and no events here. What fails half way takes back what was done; what is left of a task
whose shim is dead is cleaned up by the shim's own program.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass

from cradled import errors, failpoints
from cradled.aio import threads
from cradled.aio.undo import Undo
from cradled.core.containers import Container
from cradled.core.scope import Scope
from cradled.core.tasks import CreateTask, Exit
from cradled.core.values import AnyValue
from cradled.errors import Unimplemented
from cradled.linux.tree import remove_tree
from cradled.runtime import bootstrap, dialing
from cradled.runtime.bootstrap import Bootstrap
from cradled.runtime.bundle import Bundle, group_of
from cradled.runtime.launcher import RUNC_OPTIONS, Launcher, Launchers, runc_options
from cradled.runtime.rootfs import Overlays, upper_of
from cradled.runtime.shim_client import ShimClient
from cradled.runtime.task import INIT, ShimLog, Task
from cradled.spans import span, traced

log = logging.getLogger(__name__)

GONE_SECONDS = 1.0
"""How long a shim that has nothing left may take to exit."""

UNKNOWN_EXIT = 255


@dataclass(slots=True)
class _Shim:
    """A shim in the making."""

    bundle: Bundle
    launcher: Launcher
    sandboxed: bool
    client: ShimClient | None = None


class Assembly:
    """``state`` and ``root`` are the directories that bundles and work directories are in."""

    def __init__(self, state: str, root: str, launchers: Launchers) -> None:
        self.state = state
        self.root = root
        self.launchers = launchers
        self._overlays = Overlays()

    async def make(self, scope: Scope, container: Container, request: CreateTask) -> Task:
        """Make a task; raises what shim and OCI runtime say, and leaves nothing then."""
        launcher = self.launchers.of_runtime(request.runtime or container.runtime.name)
        options = launcher.options(_chosen(request.options, container.runtime.options))
        checkpoint = _restore_from(request, options)
        bundle = self._bundle(scope.namespace, request.id)
        spec = container.spec.value if container.spec is not None else b""
        async with Undo() as undo:
            with span("bundle.create"):
                await threads.run("fs", bundle.create, spec, launcher.path, container.sandbox)
            undo.push("removal of the bundle", threads.run, "fs", bundle.remove)
            failpoints.hit("runtime.create.bundle")
            shim_log = ShimLog(bundle)
            undo.push("closing of the log", shim_log.aclose)
            shim = _Shim(bundle, launcher, bool(request.task_api_address))
            undo.push("clean-up of the shim", self._abandon, shim)
            client = shim.client = await self._connect(shim, request, options, group_of(spec))
            failpoints.hit("runtime.create.connected")
            task = Task(bundle, launcher, client, shim_log, sandboxed=shim.sandboxed)
            task.upper = upper_of(request.rootfs)
            await self._overlays.settled(task.upper)
            try:
                task.pid = await client.create(
                    task.id, bundle.path, request.rootfs, request.stdio, options, checkpoint
                )
            except errors.Error as error:
                raise _within("failed to create shim task", error) from error
            failpoints.hit("runtime.create.created")
            undo.commit()
        task.stdio = request.stdio
        return task

    async def delete(self, task: Task) -> Exit:
        """Have the shim delete the container. Raises what it says."""
        # Other shims might not take no for an answer when what they unmount is in use.
        upper = task.upper if task.launcher.is_tidy else ""
        with self._overlays.held(task.bundle.rootfs, upper):
            return await task.client.delete(task.id, INIT)

    async def dismantle(self, task: Task) -> None:
        """Remove all that is left of a task whose container was deleted."""
        await asyncio.gather(self._hang_up(task), self.remove(task.bundle))

    @traced("shim.bury")
    async def bury(self, bundle: Bundle, launcher: Launcher, pid: int) -> Exit:
        """Clean up after a dead shim; how its container ended, ``UNKNOWN_EXIT`` if none knows."""
        try:
            end = await launcher.delete(bundle)
        except (errors.Error, OSError) as error:
            log.warning("clean-up after the shim of %s: %s", bundle.id, error)
            return Exit(pid, UNKNOWN_EXIT, time.time_ns())
        return Exit(pid or end.pid, end.status, end.exited_at)

    async def dismiss(self, bundle: Bundle, launcher: Launcher, client: ShimClient) -> None:
        """End a shim that has no container of this bundle, or only half of one."""
        gone = asyncio.Event()
        client.on_close(gone.set)
        try:
            if not await self._end(bundle, client, gone):
                # It died, is still creating, or serves others of its group.
                await self.bury(bundle, launcher, 0)
                await self._end(bundle, client, gone)
            elif not launcher.is_tidy:
                await self.bury(bundle, launcher, 0)
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

    async def remove(self, bundle: Bundle) -> None:
        """Remove a bundle; if that fails it is the next start's.

        What takes time goes on when this returns.
        """
        try:
            with span("bundle.remove"):
                hidden = await threads.run("fs", bundle.hide)
        except OSError as error:
            log.error("bundle %s was not removed: %s", bundle.path, error)
        else:
            failpoints.hit("runtime.remove.removed")
            if hidden:
                threads.begin("fs", _clear, hidden)

    def _bundle(self, namespace: str, id: str) -> Bundle:
        path, work = (f"{base}/{namespace}/{id}" for base in (self.state, self.root))
        return Bundle(path, work, namespace, id)

    async def _connect(
        self, shim: _Shim, request: CreateTask, options: AnyValue | None, group: str
    ) -> ShimClient:
        """Start a shim, or take that of the sandbox, and connect to it."""
        result: Bootstrap
        if shim.sandboxed:
            result = bootstrap.parse_address(request.task_api_address, request.task_api_version)
            await threads.run("fs", shim.bundle.save_bootstrap, result)
        else:
            with span("shim.start"):
                result = await shim.launcher.start(shim.bundle, options, group)
        try:
            with span("shim.connect"):
                return await ShimClient.connect(
                    result,
                    shim.bundle.namespace,
                    timeout=dialing.LIMITS[result.protocol],
                    late=dialing.LATE_SECONDS,
                )
        except (OSError, errors.Unavailable) as error:
            raise errors.Error(f"failed to connect to shim: {error}") from error

    async def _abandon(self, shim: _Shim) -> None:
        """Take back a shim whose container could not be made."""
        if shim.client is None:
            if not shim.sandboxed:
                await self.bury(shim.bundle, shim.launcher, 0)
        elif shim.sandboxed:
            await shim.client.aclose()
        else:
            await self.dismiss(shim.bundle, shim.launcher, shim.client)

    async def _hang_up(self, task: Task) -> None:
        try:
            if not task.sandboxed:
                await task.client.shutdown(task.id, timeout=self.launchers.timeouts.shutdown)
                failpoints.hit("runtime.delete.shut_down")
        except errors.Error as error:  # many a shim exits before it answers
            log.debug("shutdown of the shim of %s: %s", task.id, error)
        finally:
            await task.aclose()


def _clear(directories: list[str]) -> None:
    """Blocking: remove what bundles left."""
    for directory in directories:
        try:
            remove_tree(directory)
        except OSError as error:
            log.error("%s was not removed: %s", directory, error)


def _chosen(of_task: AnyValue | None, of_container: AnyValue | None) -> AnyValue | None:
    """A request's options; empty ones say nothing, then the container's count."""
    return of_task if of_task is not None and of_task.type_url else of_container


def _restore_from(request: CreateTask, options: AnyValue | None) -> str:
    """The directory of the checkpoint that the task starts from; empty for none."""
    if request.checkpoint is not None:
        raise Unimplemented("checkpoints kept as content")
    if options is None or options.type_url.rpartition("/")[2] != RUNC_OPTIONS:
        return ""
    return runc_options(options).criu_image_path


def _within(step: str, error: errors.Error) -> errors.Error:
    return type(error)(f"{step}: {error.what}", verbatim=error.verbatim)
