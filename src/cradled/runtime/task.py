"""Async. One task as the daemon knows it: its bundle, the connection to its shim, how it ended.

The state is kept up to date by what the daemon asks of the shim and by exits, so that listing
tasks asks nobody. An exit is learned from whichever comes first, the shim's exit event or the one
``Wait`` call that is held open for init; all who wait for a process share one future.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from cradled import errors, spans
from cradled.core.tasks import Exit, Process, Status, Stdio
from cradled.runtime.bundle import Bundle
from cradled.runtime.launcher import Launcher
from cradled.runtime.shim_client import ShimClient
from cradled.runtime.shim_log import ShimLog

log = logging.getLogger(__name__)

INIT = ""
"""The exec id of a task's first process."""


class Task:
    """``sandboxed``: the shim belongs to a sandbox and is not shut down with this task."""

    def __init__(
        self,
        bundle: Bundle,
        launcher: Launcher,
        client: ShimClient,
        shim_log: ShimLog,
        *,
        sandboxed: bool = False,
    ) -> None:
        self.bundle = bundle
        self.launcher = launcher
        self.client = client
        self.sandboxed = sandboxed
        self._log = shim_log
        self.pid = 0
        self.stdio = Stdio()
        self.upper = ""
        """The upper directory of its root file system, if it is known and is an overlay."""
        self.checkpoint = ""
        """The directory that it starts from and that is of no use afterwards."""
        self.deleting: asyncio.Task[Exit] | None = None
        """The call that has the shim delete the container; to be given up, if it must be."""
        self.status = Status.CREATED
        self._exec_pids: dict[str, int] = {}
        self._ended: dict[str, asyncio.Future[Exit]] = {}
        self._watchers: set[asyncio.Task[None]] = set()

    @property
    def id(self) -> str:
        return self.bundle.id

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and id."""
        return self.bundle.namespace, self.bundle.id

    @property
    def exit(self) -> Exit | None:
        """How init ended; None while it has not."""
        future = self._ended.get(INIT)
        if future is None or not future.done() or future.exception() is not None:
            return None
        return future.result()

    def process(self) -> Process:
        """The state of init, as far as the daemon knows it."""
        end = self.exit
        if end is None:
            return Process(self.id, self.id, self.pid, self.status, self.stdio)
        return Process(
            self.id, self.id, end.pid, Status.STOPPED, self.stdio, end.status, end.exited_at
        )

    def adopt(self, process: Process) -> None:
        """Take over the state that the shim tells of init."""
        self.pid = process.pid
        self.stdio = process.stdio
        self.status = process.status
        if process.status == Status.STOPPED:
            self.has_exited(INIT, Exit(process.pid, process.exit_status, process.exited_at))

    def has_started(self, exec_id: str, pid: int) -> None:
        if exec_id:
            self._exec_pids[exec_id] = pid
        else:
            self.pid = pid
            self.status = Status.RUNNING

    def has_exited(self, exec_id: str, end: Exit) -> None:
        """Learn of an exit; also a second time."""
        future = self._ended.get(exec_id)
        if future is None and not exec_id:
            future = self._ended[exec_id] = self._future()
        if future is not None and not future.done():
            future.set_result(end)

    def ended(self, exec_id: str) -> asyncio.Future[Exit]:
        """Done when the process has ended; shared, so await it shielded.

        Fails with the shim's error, or when the shim is gone.
        """
        future = self._ended.get(exec_id)
        if future is None:
            future = self._ended[exec_id] = self._future()
            self._spawn(self._watch(exec_id, future))
        return future

    def forget(self, exec_id: str) -> None:
        """An exec was deleted; its id may come again."""
        self._exec_pids.pop(exec_id, None)
        self._ended.pop(exec_id, None)

    async def aclose(self) -> None:
        """Hang up; shim and container go on."""
        for watcher in self._watchers:
            watcher.cancel()
        await self.client.aclose()
        if self._watchers:
            await asyncio.wait(self._watchers)
        self._log.close()
        for future in self._ended.values():
            if not future.done():
                future.set_exception(errors.Error("ttrpc: closed"))

    async def _watch(self, exec_id: str, future: asyncio.Future[Exit]) -> None:
        spans.detach()  # it goes on when the call that began it has long been answered
        try:
            status, at = await self.client.wait(self.id, exec_id)
        except errors.Error as error:
            if not future.done():
                if self._ended.get(exec_id) is future:
                    del self._ended[exec_id]  # who asks again asks the shim again
                future.set_exception(error)
            return
        pid = self._exec_pids.get(exec_id, 0) if exec_id else self.pid
        if not future.done():
            future.set_result(Exit(pid, status, at))

    def _future(self) -> asyncio.Future[Exit]:
        future: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda done: done.exception())  # nobody may be waiting
        return future

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        watcher = asyncio.get_running_loop().create_task(work)
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)
