"""Async. One container: its init, the execs in it, and the order in which their lives are told.

``create`` is told before ``start``, that before ``exit``: the end of an init that dies while it is
started is held back until its start has been told. The end of init is told last, after those of
all execs that ran. When init is not the first of a pid namespace of its own, the kernel does not
end what it leaves behind, so then the whole cgroup is killed. The end of init is written to the
bundle (``exit.json``) before it is told: a daemon that was away can always learn it.
"""

from __future__ import annotations

import os

from cradled import failpoints
from cradled.errors import AlreadyExists, Error, FailedPrecondition, NotFound
from cradled.linux import cgroup, direct, fs, leftovers, plain_json, pty
from cradled.linux.coroutines import Future, Lock
from cradled.linux.oom_watch import OomWatch
from cradled.linux.signals import SIGKILL
from cradled.shim import bundle, log, runc
from cradled.shim import messages as m
from cradled.shim.cgroup import metrics
from cradled.shim.process import CREATED, PAUSED, PAUSING, RUNNING, STOPPED, State
from cradled.shim.publisher import timestamp
from cradled.shim.stdio import Streams
from cradled.ttrpc.codec import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cradled.linux.cgroup import Cgroup
    from cradled.linux.coroutines import Loop
    from cradled.linux.reaper import Ending, Reaper
    from cradled.shim.publisher import Publisher

DRAIN = 10.0
"""Seconds that the deletion of a process waits for its output to be passed on."""


class Supervisor:
    """What all containers of a shim share."""

    def __init__(
        self,
        loop: Loop,
        reaper: Reaper,
        publisher: Publisher,
        namespace: str,
        limit: float | None,
    ) -> None:
        self.loop = loop
        self.reaper = reaper
        self.publisher = publisher
        self.namespace = namespace
        self.limit = limit
        """Seconds for a command of a runtime; None are as many as it takes."""


class Process:
    """An init (``id`` empty) or an exec."""

    __slots__ = (
        "ended", "exit_status", "exited", "exited_at", "id", "lock",
        "pid", "request", "starting", "state", "streams",
    )  # fmt: skip

    def __init__(self, id: str, request: m.CreateTaskRequest | m.ExecProcessRequest) -> None:
        self.id = id
        self.request = request
        self.state = State(init=not id)
        self.lock = Lock()
        self.streams: Streams | None = None
        self.pid = 0
        self.ended = Future()
        """The ``Ending``: from here on the pid may be another process's."""
        self.exited = Future()
        """Done when the end has been told."""
        self.starting: Future | None = None
        """While not done, the end must not be told."""
        self.exit_status = 0
        self.exited_at = 0

    @property
    def end(self) -> m.Timestamp | None:
        """When it ended, as it is told; None for one that has not, or never ran."""
        return timestamp(self.exited_at) if self.exited_at else None


class Container:
    """A container in a bundle, from before its creation to its deletion."""

    def __init__(self, shim: Supervisor, request: m.CreateTaskRequest, options: m.Options) -> None:
        self._shim = shim
        self.id = request.id
        self.bundle = request.bundle
        self._request = request
        self._options = options
        root = f"{options.root or runc.DEFAULT_ROOT}/{shim.namespace}"
        log = f"{request.bundle}/log.json"
        self._runc = runc.Runc(shim, options, root, log, shim.limit)
        self._notes = f"{root}/{self.id}"  # where most runtimes keep what they know
        self._direct = direct.of(self._runc.name, self._notes)
        self.init = Process("", request)
        self.execs: dict[str, Process] = {}
        self._consoles = 0
        self._group: Cgroup | None = None
        self._oom: OomWatch | None = None
        self._first_of_namespace = False

    def process(self, exec_id: str) -> Process:
        """The init, or an exec. Raises NotFound."""
        if not exec_id:
            return self.init
        process = self.execs.get(exec_id)
        if process is None:
            raise NotFound(f"process does not exist {exec_id}")
        return process

    # The life of init

    async def create(self) -> int:
        """Mount the root file system and have the runtime create; undone when it fails.

        Of a container that is to be restored from a checkpoint, creation is left to the start.
        """
        request, options = self._request, self._options
        bundle.save_options(self.bundle, options, self._runc.binary)
        failpoints.hit("shim.create.options")
        bundle.mount_rootfs(self.bundle, request.rootfs)
        failpoints.hit("shim.create.mounted")
        is_new = not os.path.lexists(self._notes)
        try:
            if not request.checkpoint:
                words = runc.create_words(options, self.bundle, self._pid_file("init"), self.id)
                await self._launch(self.init, "OCI runtime create failed", words)
                failpoints.hit("shim.create.made")
        except BaseException:
            if is_new:
                await self._clear(os.getpid())
            bundle.unmount_rootfs(self.bundle, request.rootfs)
            raise
        io = m.TaskIO(stdin=request.stdin, stdout=request.stdout, stderr=request.stderr,
                      terminal=request.terminal)  # fmt: skip
        told = {"bundle": self.bundle, "rootfs": request.rootfs, "checkpoint": request.checkpoint}
        self._tell("create", m.TaskCreate, io=io, pid=self.init.pid, **told)
        failpoints.hit("shim.create.told")
        if self.init.pid:
            self._attend()
        return self.init.pid

    async def start(self) -> int:
        """Start what was created; returns the pid."""
        init = self.init
        async with init.lock:
            init.state.check("start")
            init.starting = Future()
            failpoints.hit("shim.start.asked")
            try:
                await self._start()
                failpoints.hit("shim.start.started")
                self._started()
            finally:
                init.starting.set()
        failpoints.hit("shim.start.told")
        return init.pid

    async def delete(self) -> Process:
        """Remove what is left of an ended, or never started, container."""
        init = self.init
        async with init.lock:
            init.state.check("delete")
            if init.state.now == STOPPED and init.streams is not None:
                await init.streams.drain(DRAIN)
            failpoints.hit("shim.delete.drained")
            if not (init.state.now == STOPPED and self._direct and self._direct.delete()):
                await self._runc.delete(self.id)
            failpoints.hit("shim.delete.deleted")
            if init.pid:  # deleting kills one that was never started
                if not init.ended.done:
                    os.kill(init.pid, SIGKILL)
                await self._shim.loop.within(init.exited, DRAIN)
            if self._group is not None and self._group.exists():
                await self._clear()  # so the runtime has not
            for process in (*self.execs.values(), init):
                if process.streams is not None:
                    await process.streams.close()
                process.exited.set()  # of those that never ran, too
            if self._oom is not None:
                self._oom.close()
            bundle.unmount_rootfs(self.bundle, self._request.rootfs)
            failpoints.hit("shim.delete.unmounted")
            init.state.done("delete")
        ended = {"exit_status": init.exit_status, "exited_at": init.end}
        self._tell("delete", m.TaskDelete, pid=init.pid, **ended)
        failpoints.hit("shim.delete.told")
        return init

    # The life of an exec

    def add_exec(self, request: m.ExecProcessRequest) -> None:
        """Register an exec. Raises AlreadyExists."""
        if request.exec_id in self.execs:
            raise AlreadyExists(f"id {request.exec_id}")
        self.init.state.check("exec")
        self.execs[request.exec_id] = Process(request.exec_id, request)
        self._tell("exec-added", m.TaskExecAdded, exec_id=request.exec_id)
        failpoints.hit("shim.exec.added")

    async def start_exec(self, exec_id: str) -> int:
        """Start a registered exec; returns its pid."""
        process = self.process(exec_id)
        async with process.lock:
            if self.init.ended.done:
                raise FailedPrecondition(f"container {self.id} init process is not running")
            process.state.check("start")
            process.starting = Future()
            try:
                await self._start_exec(process)
            except BaseException:
                process.exited.set()  # it never will: nobody shall wait for it
                raise
            finally:
                process.starting.set()
        return process.pid

    async def delete_exec(self, exec_id: str) -> Process:
        """Forget an exec that has ended or was never started."""
        process = self.process(exec_id)
        async with process.lock:
            process.state.check("delete")
            if process.streams is not None:
                await process.streams.drain(DRAIN)
                await process.streams.close()
            process.state.done("delete")
            process.exited.set()
            self.execs.pop(exec_id, None)
        return process

    # What is done to processes

    def status(self, process: Process) -> int:
        """Its state, which is the container's while that is frozen."""
        now = self.init.state.now
        return now if now in (PAUSED, PAUSING) else process.state.now

    async def kill(self, exec_id: str, signal: int, *, all: bool) -> None:
        """Send a signal to a process, or to all of the container."""
        process = self.process(exec_id)
        if process.pid == 0:
            raise FailedPrecondition("process not created")
        of_all = all and not exec_id
        if process.ended.done and not of_all:
            raise NotFound("process already finished")
        if of_all or not (exec_id or self._runc.plain):
            try:
                await self._runc.kill(self.id, signal, all=all)
            except Error:
                if signal != SIGKILL or process.state.now != CREATED:
                    raise
                os.kill(process.pid, SIGKILL)  # a sandbox, where nothing can be signalled yet
            return
        failpoints.hit("shim.kill.asked")
        try:
            os.kill(process.pid, signal)
        except (OSError, OverflowError) as error:  # there is no such signal
            raise Error(f"unknown error after kill: {error}") from None
        failpoints.hit("shim.kill.sent")
        if not exec_id and signal == SIGKILL and process.state.now == PAUSED and self._group:
            self._group.thaw()  # or the signal would wait for resume

    async def pause(self) -> None:
        """Freeze all processes."""
        state = self.init.state
        async with self.init.lock:
            state.check("pause")
            state.now = PAUSING
            try:
                await self._runc.run("OCI runtime pause failed", "pause", self.id)
                state.done("pause")
            finally:
                if state.now == PAUSING:
                    state.now = RUNNING
                    if self._group is not None:
                        self._group.thaw()  # a runtime that was killed may leave it half frozen
        self._tell("paused", m.TaskPaused)

    async def resume(self) -> None:
        """Let frozen processes run."""
        async with self.init.lock:
            self.init.state.check("resume")
            try:
                await self._runc.run("OCI runtime resume failed", "resume", self.id)
                self.init.state.done("resume")
            except Error:
                if self._runc.plain and self._group and not self._group.is_frozen():
                    self.init.state.done("resume")
                raise
        self._tell("resumed", m.TaskResumed)

    async def dump(self, path: str, options: m.CheckpointOptions) -> None:
        """Write a checkpoint to ``path``."""
        words = runc.checkpoint_words(options, path, self._criu_work(), self.id)
        await self._locked("checkpoint", "OCI runtime checkpoint failed", *words)

    async def update(self, resources: bytes) -> None:
        """Set resource limits, given as JSON."""
        fd = os.memfd_create("resources", os.MFD_CLOEXEC)
        try:
            fs.write_all(fd, resources)
            os.lseek(fd, 0, os.SEEK_SET)
            failure = "OCI runtime update failed"
            await self._locked("update", failure, "update", "--resources=-", self.id, stdin=fd)
        finally:
            os.close(fd)

    async def pids(self) -> list[m.ProcessInfo]:
        """All processes; those that were started as execs say so."""
        if self._runc.plain:
            pids = self._group.pids() if self._group is not None and self._group.exists() else []
        else:
            failure = "OCI runtime ps failed"
            pids = runc.pids(await self._runc.output(failure, "ps", "--format", "json", self.id))
        execs = {process.pid: process.id for process in self.execs.values() if process.pid}
        return [m.ProcessInfo(pid=pid, info=_details(execs.get(pid))) for pid in pids]

    def stats(self) -> m.Any:
        """The cgroup's figures. Raises NotFound."""
        if self._group is None or not self._group.exists():
            raise NotFound("cgroup does not exist")
        message = metrics(self._group)
        return m.Any(type_url=message.NAME, value=encode(message))

    def close_stdin(self, exec_id: str) -> None:
        """Let a process see the end of its input."""
        streams = self.process(exec_id).streams
        if streams is not None:
            streams.close_stdin()

    def resize(self, exec_id: str, width: int, height: int) -> None:
        """Set the size of a process's terminal; nothing happens where it has none."""
        streams = self.process(exec_id).streams
        if streams is not None and streams.master >= 0:
            pty.set_size(streams.master, width, height)

    # Inside

    async def _start(self) -> None:
        checkpoint, pid_file = self._request.checkpoint, self._pid_file("init")
        if not checkpoint:
            loop, ended = self._shim.loop, self.init.ended
            if not (self._direct and await self._direct.start(loop, ended)):
                try:
                    await self._runc.run("OCI runtime start failed", "start", self.id)
                except Error:
                    if await self._runs():
                        self._started()
                    raise
            return
        image = (checkpoint, self._criu_work())
        words = runc.restore_words(self._options, image, self.bundle, pid_file, self.id)
        await self._launch(self.init, "OCI runtime restore failed", words)
        self._attend()

    def _started(self) -> None:
        self.init.state.done("start")
        self._tell("start", m.TaskStart, pid=self.init.pid)

    async def _runs(self) -> bool:
        """Whether a runtime that failed to start it, maybe killed, had come so far."""
        try:
            state = await self._runc.output("OCI runtime state failed", "state", self.id)
        except Error:
            return False
        status = plain_json.parse(state.decode(errors="replace")).get("status")
        return bool(status == "running")

    async def _start_exec(self, process: Process) -> None:
        spec, given = f"{self.bundle}/{process.id}.process", process.request
        value = given.spec.value if isinstance(given, m.ExecProcessRequest) and given.spec else b""
        fs.atomic_write(spec, value, 0o600, sync=False)
        failpoints.hit("shim.exec.spec")
        try:
            words = runc.exec_words(spec, self._pid_file(process.id), self.id)
            await self._launch(process, "OCI runtime exec failed", words)
            failpoints.hit("shim.exec.made")
        finally:
            os.unlink(spec)
        process.state.done("start")
        self._tell("exec-started", m.TaskExecStarted, exec_id=process.id, pid=process.pid)
        failpoints.hit("shim.exec.told")
        self._shim.loop.spawn(self._follow(process))

    async def _launch(self, process: Process, failure: str, words: list[str]) -> None:
        """Have the runtime make a process, on its streams."""
        shim = self._shim
        owner = (self._options.io_uid, self._options.io_gid)
        streams = process.streams = Streams(shim.loop, shim.reaper, process.request, owner)
        try:
            failpoints.hit("shim.streams.asked")
            await streams.open({"CONTAINER_ID": self.id, "CONTAINER_NAMESPACE": shim.namespace})
            with shim.reaper:
                if process.request.terminal:
                    await self._run_on_terminal(streams, failure, words)
                else:
                    await self._runc.make(failure, *words, fds=streams.child)
                self._adopt(process)
        except BaseException:
            if process.id:
                self._end_stray(process)
            await streams.close()
            raise
        streams.started()

    async def _run_on_terminal(self, streams: Streams, failure: str, words: list[str]) -> None:
        self._consoles += 1
        with pty.HandOver(self.bundle, f"{self._consoles}.pty") as console:
            await self._runc.make(failure, *runc.on_console(words, console.path))
            try:
                streams.attach(console.receive())
            except OSError as error:
                raise Error(f"failed to retrieve console master: {error}") from None

    def _adopt(self, process: Process) -> None:
        """Take over what the runtime says that it has made. Raises Error."""
        try:
            pid = bundle.read_pid(self._pid_file(process.id or "init"))
            process.ended = self._shim.reaper.adopt(pid)
        except Error as error:
            raise Error(f"failed to retrieve OCI runtime container pid: {error}") from None
        process.pid = pid

    def _end_stray(self, process: Process) -> None:
        """Kill what a runtime has made before it failed."""
        try:
            self._adopt(process)
        except Error:
            pass  # it got no further
        else:
            os.kill(process.pid, SIGKILL)
            process.pid = 0
        fs.discard(self._pid_file(process.id))

    def _attend(self) -> None:
        """Learn what is known only while init lives, and wait for its end."""
        try:
            self._group = cgroup.of_process(self.init.pid)
            self._first_of_namespace = cgroup.is_first_of_namespace(self.init.pid)
        except OSError:
            pass  # dead already
        if self._group is not None:
            self._oom = OomWatch(self._shim.loop, self._group, self._tell_oom)
        self._shim.loop.spawn(self._follow(self.init))

    def _tell_oom(self) -> None:
        self._tell("oom", m.TaskOOM)

    async def _follow(self, process: Process) -> None:
        """Wait for the end of a process and tell it when its turn has come."""
        ending: Ending = await process.ended
        if process.starting is not None:
            await process.starting
        if process is self.init:
            failpoints.hit("shim.exit.seen")
            await self._last_rites()
            failpoints.hit("shim.exit.last")
            bundle.save_exit(self.bundle, process.pid, ending.status, ending.at)
            failpoints.hit("shim.exit.saved")
        if self._oom is not None:
            self._oom.look()  # what has killed it is told first
        process.exit_status = ending.status
        process.exited_at = ending.at
        process.state.done("exit")
        ended = {"exit_status": ending.status, "exited_at": process.end}
        note = self._pid_file(process.id) if process.id else ""
        exited = {"id": process.id or self.id, "pid": process.pid, **ended}
        self._tell("exit", m.TaskExit, note, **exited)
        failpoints.hit("shim.exit.told" if process is self.init else "shim.exec.exited")
        process.exited.set()

    async def _last_rites(self) -> None:
        """End what init has left behind, and wait until the ends of all execs have been told."""
        if not self._first_of_namespace:
            try:
                await self._runc.kill(self.id, SIGKILL, all=True, limit=runc.CLEANUP)
            except Error:  # mostly because nothing is left
                leftovers.kill(self.bundle, self.id)
        for process in list(self.execs.values()):
            if process.starting is not None:
                await process.starting
            if process.pid:
                await process.exited

    async def _locked(
        self, action: str, failure: str, *words: str, stdin: int | None = None
    ) -> None:
        async with self.init.lock:
            self.init.state.check(action)
            await self._runc.run(failure, *words, stdin=stdin)
            self.init.state.done(action)

    async def _clear(self, parent: int = 0) -> None:
        """Remove what the runtime should not have left, as far as ``parent`` made it."""
        if os.path.lexists(self._notes):
            try:
                words = "delete", "--force", self.id
                await self._runc.run("clean-up failed", *words, limit=runc.CLEANUP)
            except Error as error:
                log.line(str(error))
        for _ in range(leftovers.ROUNDS):
            if leftovers.remove(self.bundle, self.id, self._notes, parent):
                break
            await self._shim.loop.sleep(leftovers.PAUSE)

    def _tell(self, topic: str, event: Any, note: str = "", /, **fields: Any) -> None:
        self._shim.publisher.send(f"/tasks/{topic}", event(container_id=self.id, **fields), note)

    def _pid_file(self, name: str) -> str:
        return f"{self.bundle}/{name}.pid"

    def _criu_work(self) -> str:
        return self._options.criu_work_path or f"{self.bundle}/work/criu-work"


def _details(exec_id: str | None) -> m.Any | None:
    if exec_id is None:
        return None
    details = m.ProcessDetails(exec_id=exec_id)
    return m.Any(type_url=details.NAME, value=encode(details))
