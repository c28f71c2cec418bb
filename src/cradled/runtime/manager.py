"""Async. Tasks: made of a bundle and a shim, kept, found again after a restart, taken apart.

A task is registered once its shim has created the container. Creating and deleting hold the lock of
the task's key; all else goes straight to the shim, which orders what happens to one container.
Nothing is synced: a task does not outlive a reboot. A shim that goes away takes its task with it:
its program's ``delete`` cleans up, and the exit and the deletion are told.

Events of shims come in by ``forward``, so that an exit is known here before anybody hears of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from cradled import errors, failpoints, identifiers
from cradled.aio import threads
from cradled.aio.keyed_lock import KeyedLock
from cradled.core.containers import Container
from cradled.core.events import Envelope
from cradled.core.scope import Scope
from cradled.core.tasks import CreateTask, Exit, Process, Status, Stdio
from cradled.core.values import AnyValue, Descriptor
from cradled.errors import AlreadyExists, InvalidArgument, NotFound
from cradled.events import topics
from cradled.events.segments import Told
from cradled.linux.tree import remove_tree
from cradled.rpc.ttrpc_client import ConnectionLost
from cradled.runtime import metrics
from cradled.runtime.assembly import Assembly
from cradled.runtime.bundle import Bundle, bundles, remove_orphans
from cradled.runtime.exits import Key, ToldExits
from cradled.runtime.launcher import Launcher
from cradled.runtime.recovery import Facts, Verdict, gather, judge
from cradled.runtime.shims import UNKNOWN_EXIT
from cradled.runtime.task import INIT, Task

log = logging.getLogger(__name__)

T = TypeVar("T")

CLOSE_SECONDS = 2.0
TAKE_BACK_SECONDS = 10.0
"""How long a task may go on being made, for nobody, before that is broken off."""
GIVE_UP_SECONDS = 60.0
"""The same of a deletion: output may have to be drained first, and a runtime takes its time."""
KILLED = 137
TELL_SECONDS = 20.0
"""How long a shim may take to tell an exit that happened while the daemon was away."""

_RECOVER_AT_ONCE = 16


class Events(Protocol):
    """Where events go: ``cradled.events.exchange.Exchange``."""

    def publish(self, envelopes: Sequence[Envelope], /) -> None: ...

    def publish_late(self, envelopes: Sequence[Envelope], /) -> None: ...

    def forward(self, envelope: Envelope, /) -> None: ...


class TaskManager:
    """All tasks of the state directory that ``assembly`` makes them in.

    ``containers`` looks a container's record up, and raises NotFound. Call ``recover`` before
    anything else, ``aclose`` at the end: shims and containers go on.
    """

    def __init__(
        self,
        assembly: Assembly,
        containers: Callable[[Scope, str], Awaitable[Container]],
        events: Events,
    ) -> None:
        self._assembly = assembly
        self._shims = assembly.shims
        self._timeouts = assembly.launchers.timeouts
        self._containers = containers
        self._events = events
        self._tasks: dict[Key, Task] = {}
        self._locks: KeyedLock[Key] = KeyedLock("task")
        self._told = ToldExits()
        self._background: set[asyncio.Task[Any]] = set()
        self._closing = False

    # Making and taking apart

    async def create(self, scope: Scope, request: CreateTask) -> int:
        """Make a task of a container and return the pid of its init.

        Raises AlreadyExists ``task x``, and what shim and OCI runtime say; leaves nothing then. A
        caller that goes away meanwhile leaves nothing either: what was made is deleted.
        """
        container = await self._containers(scope, request.id)
        making = self._spawn(self._create(scope, container, request))
        try:
            return (await asyncio.shield(making)).pid
        except asyncio.CancelledError:
            self._spawn(self._take_back(making))
            raise

    async def delete(self, scope: Scope, id: str) -> Exit:
        """Take a task apart that has ended or was never started.

        It goes on when its caller goes away, as long as its shim may be thought to answer.
        """
        task = self._find(scope, id)
        deletion = self._spawn(self._delete(task))
        try:
            return await asyncio.shield(deletion)
        except asyncio.CancelledError:
            self._spawn(self._give_up(task, deletion))
            raise

    async def delete_process(self, scope: Scope, id: str, exec_id: str) -> Exit:
        """Remove an exec that has ended or was never started."""
        task = self._find(scope, id)
        end = await task.client.delete(id, exec_id)
        failpoints.hit("runtime.exec.deleted")
        task.forget(exec_id)
        self._told.forget(task.key, exec_id)
        return end

    # What goes straight to the shim

    async def start(self, scope: Scope, id: str, exec_id: str = INIT) -> int:
        task = self._find(scope, id)
        pid = await task.client.start(id, exec_id)
        failpoints.hit("runtime.exec.started" if exec_id else "runtime.start.started")
        task.has_started(exec_id, pid)
        if task.checkpoint and not exec_id:
            threads.begin("fs", remove_tree, task.checkpoint)
            task.checkpoint = ""
        return pid

    async def exec(self, scope: Scope, id: str, exec_id: str, stdio: Stdio, spec: AnyValue) -> None:
        """Register an exec; ``start`` starts it."""
        try:
            identifiers.validate(exec_id)
        except InvalidArgument as error:
            raise InvalidArgument(f"invalid exec id {exec_id}: {error.what}") from None
        await self._find(scope, id).client.exec(id, exec_id, stdio, spec)
        failpoints.hit("runtime.exec.added")

    async def get(self, scope: Scope, id: str, exec_id: str = INIT) -> Process:
        """The state of a process, as its shim tells it."""
        task = self._find(scope, id)
        try:
            return await task.client.state(id, exec_id, timeout=self._timeouts.state)
        except ConnectionLost as error:
            raise NotFound(f"task {id}") from error

    async def list(self, scope: Scope) -> Sequence[Process]:
        """All tasks of the namespace; asks no shim."""
        return [task.process() for task in self._of_namespace(scope)]

    async def wait(self, scope: Scope, id: str, exec_id: str = INIT) -> Exit:
        """Wait for a process to end. Raises Error ``ttrpc: closed`` when its shim goes away."""
        return await asyncio.shield(self._find(scope, id).ended(exec_id))

    async def kill(
        self, scope: Scope, id: str, signal: int, exec_id: str = INIT, all: bool = False
    ) -> None:
        await self._find(scope, id).client.kill(id, exec_id, signal, all)
        failpoints.hit("runtime.kill.sent")

    async def resize_pty(
        self, scope: Scope, id: str, exec_id: str, width: int, height: int
    ) -> None:
        await self._find(scope, id).client.resize_pty(id, exec_id, width, height)

    async def close_io(self, scope: Scope, id: str, exec_id: str, stdin: bool) -> None:
        """Have the process read the end of its stdin; without ``stdin`` nothing is done."""
        task = self._find(scope, id)
        if stdin:
            await task.client.close_stdin(id, exec_id)

    async def pause(self, scope: Scope, id: str) -> None:
        task = self._find(scope, id)
        await task.client.pause(id)
        task.status = Status.PAUSED

    async def resume(self, scope: Scope, id: str) -> None:
        task = self._find(scope, id)
        await task.client.resume(id)
        task.status = Status.RUNNING

    async def pids(self, scope: Scope, id: str) -> Sequence[tuple[int, AnyValue | None]]:
        return await self._find(scope, id).client.pids(id)

    async def update(
        self, scope: Scope, id: str, resources: AnyValue, annotations: Mapping[str, str]
    ) -> None:
        await self._find(scope, id).client.update(id, resources, annotations)

    async def checkpoint(
        self, scope: Scope, id: str, options: AnyValue | None
    ) -> Sequence[Descriptor]:
        """Write a checkpoint to the directory that the options name.

        Without one it becomes blobs of the scope, that nothing but the scope's lease keeps: what
        criu wrote, and the container's spec.
        """
        container = await self._containers(scope, id)
        return await self._assembly.checkpoint(scope, self._find(scope, id), container, options)

    async def metrics(self, scope: Scope, filters: Sequence[str]) -> Sequence[metrics.Metric]:
        return await metrics.collect(self._of_namespace(scope), filters, self._timeouts.stats)

    # Events, restart, end

    def forward(self, envelope: Envelope) -> None:
        """Take an event of a shim and publish it; an exit told before is not told again."""
        told = topics.read_task_exit(envelope.event) if envelope.topic == topics.TASK_EXIT else None
        if told is not None:
            failpoints.hit("runtime.exit.heard")
            container_id, process_id, end = told
            task = self._tasks.get((envelope.namespace, container_id))
            key = (envelope.namespace, container_id)
            if self._told.has(key, process_id, end.pid):
                return
            if task is not None:
                task.has_exited(INIT if process_id == container_id else process_id, end)
                self._told.add([(*key, process_id, end.pid)])
        self._events.forward(envelope)

    async def recover(self, told: Collection[Told] = ()) -> None:
        """Find all tasks again, or what is left of them; ``told`` are exits published already."""
        state, root = self._shims.state, self._shims.root
        found = await threads.run("fs", bundles, state, root)
        self._told.add(told)
        turn = asyncio.Semaphore(_RECOVER_AT_ONCE)

        async def one(bundle: Bundle) -> None:
            async with turn, self._locks((bundle.namespace, bundle.id)):
                try:
                    await self._recover(bundle)
                except (errors.Error, OSError) as error:
                    log.error("task %s is left as it is: %s", bundle.id, error)

        await asyncio.gather(*map(one, found))
        await threads.run("fs", remove_orphans, state, root)

    async def settle(self, seconds: float) -> bool:
        """Wait, so long at the most, until nothing is being made or taken apart; whether something
        was."""
        if not self._background:
            return False
        await asyncio.wait(self._background, timeout=seconds)
        return True

    async def aclose(self) -> None:
        """Hang up on all shims; waits under way end in an error.

        What is being made or taken apart gets ``CLOSE_SECONDS`` to become whole.
        """
        self._closing = True
        if self._background:
            _, late = await asyncio.wait(self._background, timeout=CLOSE_SECONDS)
            for work in late:
                work.cancel()
            if late:
                await asyncio.wait(late)
        await asyncio.gather(*(task.aclose() for task in self._tasks.values()))
        self._tasks.clear()

    # Inside

    def _find(self, scope: Scope, id: str) -> Task:
        task = self._tasks.get((scope.namespace, id))
        if task is None:
            raise _no_task(id)
        return task

    def _of_namespace(self, scope: Scope) -> Sequence[Task]:
        return [task for task in self._tasks.values() if task.key[0] == scope.namespace]

    def _register(self, task: Task) -> None:
        self._tasks[task.key] = task
        task.ended(INIT)  # hear of the exit even if the event is lost
        task.client.on_close(lambda: self._lost(task))

    async def _create(self, scope: Scope, container: Container, request: CreateTask) -> Task:
        key = (scope.namespace, request.id)
        async with self._locks(key):
            if key in self._tasks:
                raise AlreadyExists(f"task {request.id}")
            task = await self._assembly.make(scope, container, request)
            self._register(task)
            failpoints.hit("runtime.create.registered")
        return task

    async def _take_back(self, making: asyncio.Task[Task]) -> None:
        _, late = await asyncio.wait([making], timeout=TAKE_BACK_SECONDS)
        if late:  # its shim may never answer
            making.cancel()
            await asyncio.wait([making])
        try:
            if not making.cancelled():
                await self._delete(making.result())
        except errors.Error as error:
            log.info("a task that was not waited for: %s", error)

    async def _give_up(self, task: Task, deletion: asyncio.Task[Exit]) -> None:
        """Break off, for the sake of others, what the shim of a task does not answer."""
        _, late = await asyncio.wait([deletion], timeout=GIVE_UP_SECONDS)
        if late and task.deleting is not None:
            task.deleting.cancel()
        await asyncio.wait([deletion])

    async def _delete(self, task: Task) -> Exit:
        async with self._locks(task.key):
            if self._tasks.get(task.key) is not task:
                raise _no_task(task.id)
            try:
                task.deleting = self._spawn(self._assembly.delete(task))
                end = await task.deleting
                failpoints.hit("runtime.delete.deleted")
            except NotFound:  # an earlier deletion got no further
                await self._dismantle(task)
                raise
            await self._dismantle(task)
        return end

    async def _dismantle(self, task: Task) -> None:
        del self._tasks[task.key]
        self._told.forget(task.key)
        await self._assembly.dismantle(task)

    def _lost(self, task: Task) -> None:
        if not self._closing and self._tasks.get(task.key) is task:
            log.warning("shim of task %s is gone", task.id)
            self._spawn(self._reap_lost(task))

    async def _reap_lost(self, task: Task) -> None:
        async with self._locks(task.key):
            if self._tasks.get(task.key) is task:
                self._events.publish(await self._reap(task.bundle, task.launcher, task.pid))
                failpoints.hit("runtime.reap.told")
                del self._tasks[task.key]
                self._told.forget(task.key)
                await task.aclose()
                await self._shims.remove(task.bundle)

    async def _reap(self, bundle: Bundle, launcher: Launcher, pid: int) -> Sequence[Envelope]:
        """Clean up after a dead shim; what is to be told of its container, if there was one."""
        # Others' shims do not say which of their execs are there.
        execs = await threads.run("fs", bundle.execs) if launcher.is_tidy else ()
        end = await self._shims.bury(bundle, launcher, pid)
        failpoints.hit("runtime.reap.buried")
        if not end.pid:
            return ()
        ends = [
            (exec.id, Exit(exec.pid, KILLED if exec.lives else UNKNOWN_EXIT, end.exited_at))
            for exec in execs
        ]
        exits = [
            topics.task_exited(bundle.id, process_id, each)
            for process_id, each in (*ends, (bundle.id, end))
            if not self._told.has((bundle.namespace, bundle.id), process_id, each.pid)
        ]
        return _envelopes(bundle, *exits, topics.task_deleted(bundle.id, "", end))

    async def _recover(self, bundle: Bundle) -> None:
        facts = await gather(bundle, self._timeouts.load)
        verdict = judge(facts)
        log.info("task %s: %s", bundle.id, verdict.value)
        launchers = self._assembly.launchers
        try:
            if verdict is Verdict.KEEP:
                self._keep(facts, launchers.of_program(facts.program))
                return
            if verdict is Verdict.DISMISS and facts.client is not None:
                if facts.sandbox:
                    await self._assembly.leave(bundle, facts.client)
                else:
                    launcher = launchers.of_program(facts.program)
                    await self._assembly.dismiss(bundle, launcher, facts.client)
            elif verdict is Verdict.REAP:
                launcher = launchers.of_program(facts.program)
                self._events.publish_late(await self._reap(bundle, launcher, 0))
                failpoints.hit("runtime.recover.told")
            await self._shims.remove(bundle)
        finally:
            if verdict is not Verdict.KEEP:
                await facts.aclose()

    def _keep(self, facts: Facts, launcher: Launcher) -> None:
        bundle = facts.bundle
        assert facts.client is not None
        assert facts.shim_log is not None
        assert facts.process is not None
        sandboxed = bool(facts.sandbox)
        task = Task(bundle, launcher, facts.client, facts.shim_log, sandboxed=sandboxed)
        task.adopt(facts.process)
        self._register(task)
        task.ended(INIT).add_done_callback(lambda _: self._expect_told(task))

    def _expect_told(self, task: Task) -> None:
        """See to it that an exit is told. The shim still has it, behind what else it has to tell,
        and tries again; but one of another make may have given up while we were away."""
        end = task.exit
        if end is not None and not self._told.has(task.key, task.id, end.pid):
            loop = asyncio.get_running_loop()
            loop.call_later(TELL_SECONDS, self._tell_exit, task, end)

    def _tell_exit(self, task: Task, end: Exit) -> None:
        """Tell an exit in place of a shim that could not, while nobody was there to hear it."""
        if self._closing or self._tasks.get(task.key) is not task:
            return
        if not self._told.has(task.key, task.id, end.pid):
            self._told.add([(*task.key, task.id, end.pid)])
            event = topics.task_exited(task.id, task.id, end)
            self._events.publish_late(_envelopes(task.bundle, event))

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task


def _no_task(id: str) -> NotFound:
    return NotFound(f"task {id} not found", verbatim=True)


def _envelopes(bundle: Bundle, *events: topics.Event) -> list[Envelope]:
    now = time.time_ns()
    return [Envelope(now, bundle.namespace, *event) for event in events]
