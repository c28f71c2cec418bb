"""Async. The sandbox controller ``shim``: each sandbox is a shim that runs it.

A sandbox has a bundle as a task has, below a state directory of its own, so its shim is found again
after a restart. Containers join by the shim's Task API. A shim that goes away takes the sandbox
with it; what it left is cleaned up by its program's ``delete``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from cradled import errors, identifiers
from cradled.aio import threads
from cradled.aio.keyed_lock import KeyedLock
from cradled.aio.undo import Undo
from cradled.core.sandboxes import (
    CreateSandbox,
    Sandbox,
    SandboxPlatform,
    SandboxStatus,
    StartedSandbox,
)
from cradled.core.scope import Scope
from cradled.core.tasks import Exit
from cradled.core.values import AnyValue
from cradled.errors import AlreadyExists, NotFound, quote
from cradled.linux import processes
from cradled.rpc.ttrpc_client import ConnectionLost
from cradled.runtime import dialing
from cradled.runtime.bootstrap import Bootstrap
from cradled.runtime.bundle import Bundle, bundles, group_of, remove_orphans
from cradled.runtime.launcher import Launcher
from cradled.runtime.sandbox_client import SandboxClient
from cradled.runtime.shim_log import ShimLog
from cradled.runtime.shims import Shims, reach

log = logging.getLogger(__name__)

GONE_SECONDS = 1.0
"""How long a shim that has nothing left may take to exit."""

Key = tuple[str, str]

_GONE = (errors.NotFound, errors.Unavailable, ConnectionLost)


@dataclass(frozen=True, slots=True)
class _Running:
    """A sandbox and its shim."""

    bundle: Bundle
    launcher: Launcher
    bootstrap: Bootstrap
    shim_log: ShimLog
    client: SandboxClient

    @property
    def key(self) -> Key:
        return self.bundle.namespace, self.bundle.id


class ShimSandboxes:
    """Implements core.sandboxes.SandboxController.

    Call ``recover`` before anything else, ``aclose`` at the end: sandboxes go on.
    """

    def __init__(self, shims: Shims) -> None:
        self._shims = shims
        self._timeouts = shims.launchers.timeouts
        self._running: dict[Key, _Running] = {}
        self._locks: KeyedLock[Key] = KeyedLock("sandbox")
        self._background: set[asyncio.Task[None]] = set()
        self._closing = False

    def endpoint(self, scope: Scope, id: str) -> Bootstrap | None:
        """Where the shim of a sandbox serves; None for one that is not of ours."""
        found = self._running.get((scope.namespace, id))
        return None if found is None else found.bootstrap

    async def create(self, scope: Scope, request: CreateSandbox, /) -> None:
        """Start a shim and have it create the sandbox; leaves nothing when that fails.

        Raises AlreadyExists, and what the shim says.
        """
        sandbox = request.sandbox
        identifiers.validate(sandbox.id)
        key = (scope.namespace, sandbox.id)
        async with self._locks(key):
            if key in self._running:
                raise AlreadyExists(f"sandbox {quote(sandbox.id)}")
            launcher = self._shims.launchers.of_runtime(sandbox.runtime.name)
            bundle = self._shims.bundle(*key)
            async with Undo() as undo:
                spec = b"" if sandbox.spec is None else sandbox.spec.value
                await threads.run("fs", bundle.create, spec, launcher.path)
                undo.push("removal of the bundle", threads.run, "fs", bundle.remove)
                running = await self._started(bundle, launcher, request, undo)
                with _telling(f"failed to create sandbox {sandbox.id}"):
                    await running.client.create(request, bundle.path)
                undo.commit()
            self._register(running)

    async def start(self, scope: Scope, id: str, /) -> StartedSandbox:
        """Start what was created; a sandbox that cannot be started is removed."""
        running = self._find(scope, id)
        try:
            with _telling(f"failed to start sandbox {id}"):
                return await running.client.start()
        except errors.Error:
            await self._remove(running)
            raise

    async def platform(self, scope: Scope, id: str, /) -> SandboxPlatform:
        return await self._find(scope, id).client.platform()

    async def stop(self, scope: Scope, id: str, timeout: int, /) -> None:
        """Stop it within so many seconds (0: the shim's idea); one that is gone is fine."""
        with suppress(*_GONE), _telling(f"failed to stop sandbox {id}"):
            await self._find(scope, id).client.stop(timeout)

    async def wait(self, scope: Scope, id: str, /) -> Exit:
        return await self._find(scope, id).client.wait()

    async def status(self, scope: Scope, id: str, verbose: bool, /) -> SandboxStatus:
        """One that is gone has ended now, for all we know."""
        try:
            running = self._find(scope, id)
            return await running.client.status(verbose, timeout=self._timeouts.state)
        except (NotFound, ConnectionLost):
            return SandboxStatus(id, exited_at=time.time_ns())

    async def shutdown(self, scope: Scope, id: str, /) -> None:
        """Have the shim take the sandbox apart, and remove what is left."""
        try:
            running = self._find(scope, id)
        except NotFound:
            return
        with suppress(*_GONE), _telling(f"failed to shutdown sandbox {id}"):
            await running.client.shutdown()
        await self._remove(running)

    async def metrics(self, scope: Scope, id: str, /) -> tuple[str, int, AnyValue]:
        return await self._find(scope, id).client.metrics()

    async def update(self, scope: Scope, sandbox: Sandbox, fieldpaths: Sequence[str], /) -> None:
        """Shims are told nothing."""

    async def recover(self) -> None:
        """Find all sandboxes again; those whose shim is gone, or has none, are removed."""
        state, root = self._shims.state, self._shims.root
        found = await threads.run("fs", bundles, state, root)
        await asyncio.gather(*map(self._recover, found))
        await threads.run("fs", remove_orphans, state, root)

    async def aclose(self) -> None:
        self._closing = True
        if self._background:
            await asyncio.wait(self._background)
        await asyncio.gather(*map(_let_go, self._running.values()))
        self._running.clear()

    # Inside

    def _find(self, scope: Scope, id: str) -> _Running:
        running = self._running.get((scope.namespace, id))
        if running is None:
            raise NotFound(f"sandbox {quote(id)}")
        return running

    async def _started(
        self, bundle: Bundle, launcher: Launcher, request: CreateSandbox, undo: Undo
    ) -> _Running:
        """Start the shim, and connect to it."""
        shim_log = ShimLog(bundle)
        undo.push("closing of the log", shim_log.aclose)
        options = launcher.options(request.sandbox.runtime.options)
        undo.push("clean-up of the shim", self._shims.bury, bundle, launcher, 0)
        with _telling(f"failed to start new shim for sandbox {bundle.id}"):
            group = group_of(request.sandbox.spec.value) if request.sandbox.spec else ""
            result = await launcher.start(bundle, options, group)
            channel = await reach(result)
        client = SandboxClient(channel, bundle.namespace, bundle.id, result)
        undo.push("hanging up", client.aclose)
        undo.push("end of the shim", self._end, bundle, client)
        return _Running(bundle, launcher, result, shim_log, client)

    def _register(self, running: _Running) -> None:
        self._running[running.key] = running
        running.client.on_close(lambda: self._lost(running))

    def _lost(self, running: _Running) -> None:
        if not self._closing and self._running.get(running.key) is running:
            log.warning("shim of sandbox %s is gone", running.bundle.id)
            self._spawn(self._remove(running))

    async def _remove(self, running: _Running) -> None:
        """End the shim, whatever it says, and remove what is left; only once."""
        async with self._locks(running.key):
            if self._running.get(running.key) is not running:
                return
            await self._end(running.bundle, running.client)
            await self._shims.bury(running.bundle, running.launcher, 0)
            del self._running[running.key]
            await _let_go(running)
            await self._shims.remove(running.bundle)

    async def _end(self, bundle: Bundle, client: SandboxClient) -> None:
        """Have a shim go that serves nobody any more; one that does not is killed."""
        gone = asyncio.Event()
        client.on_close(gone.set)
        limit = self._timeouts.shutdown
        with suppress(errors.Error):
            await client.shutdown(timeout=limit)
        with suppress(errors.Error):
            await client.shim.shutdown(client.id, timeout=limit)
        try:
            async with asyncio.timeout(GONE_SECONDS):
                await gone.wait()
        except TimeoutError:
            await threads.run("fs", processes.end_those_in, bundle.path)

    async def _recover(self, bundle: Bundle) -> None:
        async with self._locks((bundle.namespace, bundle.id)):
            try:
                program = await threads.run("fs", bundle.shim_path)
                launcher = self._shims.launchers.of_program(program) if program else None
                if launcher is None or not await self._found(bundle, launcher):
                    if launcher is not None:
                        await self._shims.bury(bundle, launcher, 0)
                    await self._shims.remove(bundle)
            except (errors.Error, OSError) as error:
                log.error("sandbox %s is left as it is: %s", bundle.id, error)

    async def _found(self, bundle: Bundle, launcher: Launcher) -> bool:
        """Whether a shim still runs the sandbox of a bundle; then it is one of ours again."""
        saved = await threads.run("fs", bundle.load_bootstrap)
        if saved is None:
            return False
        shim_log = ShimLog(bundle)
        client: SandboxClient | None = None
        try:
            channel = await dialing.connect(saved, timeout=self._timeouts.load)
            client = SandboxClient(channel, bundle.namespace, bundle.id, saved)
            await client.status(False, timeout=self._timeouts.load)
        except (OSError, errors.Error) as error:
            log.info("sandbox %s is gone: %s", bundle.id, error)
            if client is not None:
                await self._end(bundle, client)
                await client.aclose()
            shim_log.close()
            return False
        self._register(_Running(bundle, launcher, saved, shim_log, client))
        return True

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


@contextmanager
def _telling(step: str) -> Iterator[None]:
    """Say what failed, before what the shim says."""
    try:
        yield
    except errors.Error as error:
        raise type(error)(f"{step}: {error.what}", verbatim=error.verbatim) from error


async def _let_go(running: _Running) -> None:
    await running.client.aclose()
    running.shim_log.close()
