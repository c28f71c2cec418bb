"""Containers that live while what serves them dies at points that the test names.

``World`` is a daemon whose processes read failpoints from files, kept alive by ``kept``; ``Life``
takes one container from its creation to its removal over every step that fails because something
died; ``Ledger`` is a client that listens to exits all the while, over the deaths of its daemon.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cradled
from cradled.api.types_pb2 import Envelope as EnvelopeMessage
from cradled.client import Client, Process
from cradled.convert import events as convert
from cradled.core.tasks import Exit as End
from cradled.core.tasks import Process as State
from cradled.core.tasks import Status
from cradled.errors import AlreadyExists, Error, NotFound, Unavailable
from cradled.events import topics
from cradled.events.cursor import Cursor
from cradled.failpoints import VARIABLE
from harness import leaks
from harness.daemon import Daemon, wait_until
from harness.disk import TASKS, names

FIRST = "first"
IMAGE = "docker.io/library/busybox:test"
KILLED, UNKNOWN = 128 + signal.SIGKILL, 255
EXEC_CODE = 3
SHIM, WORKER = "cradled-shim", "cradled-worker"
AT_ONCE = 6
POLL = 0.01
JOURNAL = "io.cradled.journal.v1.events"
PATIENCE = 30.0
DYING = 1.0
"""Seconds that a killed process may be met after its death, on a busy machine."""

Exit = tuple[str, str, int, int]
"""Container id, process id, pid, status."""


async def until(condition: Callable[[], bool], what: str | Callable[[], str]) -> None:
    """As ``wait_until``, on the loop."""
    await asyncio.to_thread(wait_until, condition, what)


class Points:
    """Failpoints in other processes, armed by files in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()

    def arm(self, names: Iterable[str], number: int = signal.SIGKILL) -> None:
        for name in names:
            place = self.directory / f".{name}"
            place.write_text(str(int(number)))
            place.rename(self.directory / name)

    @property
    def taken(self) -> dict[str, int]:
        """The points that were come to, and by which process."""
        found = {}
        for path in self.directory.iterdir():
            name, _, pid = path.name.rpartition(".")
            if pid.isdecimal():
                found[name] = int(pid)
        return found

    async def stopped(self, *names: str) -> list[int]:
        """Wait until a process is stopped at each of these points; which."""
        await until(lambda: not self.waiting, lambda: f"nobody came to {self.waiting}")
        taken = self.taken
        pids = [taken[name] for name in names]
        await until(lambda: all(map(_is_stopped, pids)), "all of them are stopped")
        return pids

    @property
    def waiting(self) -> list[str]:
        """The points that nobody has come to yet."""
        return sorted(p.name for p in self.directory.iterdir() if not p.suffix[1:].isdecimal())

    def clear(self) -> None:
        for path in self.directory.iterdir():
            path.unlink()


class World:
    """A daemon with failpoints, and everything that a test may ask about it."""

    def __init__(self, daemon: Daemon, flags: Sequence[str] = ()) -> None:
        self.daemon = daemon
        self._flags = flags
        self.unsure: Counter[Exit] = Counter()
        """Exits that daemons told so shortly before their deaths that they may be told again."""
        self.points = Points(daemon.directory / "points")
        self.deaths = 0
        """How many processes have been killed so far, whatever they were."""
        self.last_kill = 0.0
        self.boots = 0
        self.progress = 0
        """How many steps of lives have been done."""
        self.up = asyncio.Event()
        self._turn = asyncio.Lock()
        temporary = daemon.directory / "tmp"
        temporary.mkdir()
        daemon.env |= {VARIABLE: str(self.points.directory), "TMPDIR": str(temporary)}

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        socket = str(self.daemon.socket)
        async with cradled.connect(socket, namespace=self.daemon.namespace) as client:
            yield client

    async def start(self) -> None:
        """Start the daemon, unless it is up."""
        async with self._turn:
            if not self.is_down():
                return
            self.up.clear()
            if self.daemon.state.exists():
                self.unsure += Counter(journalled(self.daemon, handed=False))
            await asyncio.to_thread(self.daemon.start, *self._flags)
            self.boots += 1
            self.up.set()

    async def start_to_die(self) -> None:
        """Start a daemon that does not live long enough to answer; returns when it is dead."""
        command = [*self.daemon.command(), *self._flags]
        process = await asyncio.create_subprocess_exec(
            *command, env=self.daemon.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        async with asyncio.timeout(PATIENCE):
            assert await process.wait() == -signal.SIGKILL

    async def died(self) -> None:
        """Wait until the daemon has died at a point."""
        await until(self.is_down, "the daemon has died")
        self.up.clear()

    def reboot(self) -> None:
        """Lose, while the daemon is down, what a boot loses: processes, mounts, cgroups, state."""
        daemon = self.daemon
        tops = leaks.cgroups_named(daemon.mark)
        groups = [path for top in tops for path, _, _ in os.walk(top, topdown=False)]
        pids = set(leaks.marked_processes(daemon.mark))
        for group in groups:
            pids |= set(map(int, Path(group, "cgroup.procs").read_text().split()))
        self.kill(*pids)
        wait_until(lambda: not any(os.path.exists(f"/proc/{x}") for x in pids), "all are dead")
        for point in reversed(leaks.mounts_below(str(daemon.state))):
            subprocess.run(["umount", point], check=True)
        for group in groups:
            os.rmdir(group)
        shutil.rmtree(daemon.state)

    def is_down(self) -> bool:
        process = self.daemon.process
        return not self.up.is_set() or process is None or process.poll() is not None

    def disturbances(self) -> int:
        """How many deaths, and returns from death, there have been."""
        return self.deaths + self.boots + len(self.points.taken)

    async def kill_daemon(self) -> None:
        async with self._turn:
            self.deaths += 1
            self.up.clear()
            await asyncio.to_thread(self.daemon.kill)

    def kill(self, *pids: int) -> None:
        for pid in pids:
            self.deaths += 1
            self.last_kill = time.monotonic()
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def bundle(self, name: str) -> Path:
        return self.daemon.state / TASKS / self.daemon.namespace / name

    def shims(self) -> list[int]:
        """The forked shims of containers."""
        return self.named(SHIM)

    def named(self, name: str) -> list[int]:
        """All processes of this name."""
        return [pid for pid in leaks.marked_processes(self.daemon.mark) if _name(pid) == name]

    def children(self) -> list[int]:
        """The daemon's own: its zygote and, for a moment, others."""
        assert self.daemon.process is not None
        pid = self.daemon.process.pid
        return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def left(self) -> list[str]:
        """What is still there though there is no container any more."""
        daemon = self.daemon
        found = [*leaks.mounts_below(str(daemon.directory)), *leaks.mounts_below(str(daemon.state))]
        for place in (
            *(top / TASKS / daemon.namespace for top in (daemon.state, daemon.root)),
            daemon.state / "runc" / daemon.namespace,
            daemon.state / "s",
            daemon.directory / "fifo",
            daemon.directory / "tmp",
        ):
            found += [f"{place}/{name}" for name in names(place)]
        marked = leaks.marked_processes(daemon.mark)
        own = {daemon.process.pid, *self.children()} if daemon.process is not None else set()
        found += [
            f"{pid} {line}"
            for pid, line in marked.items()
            if pid not in own and _name(pid) != WORKER  # one is kept for a while
        ]
        groups = leaks.cgroups_named(daemon.mark)
        return found + [x for x in groups if not leaks.is_empty_parent(x, daemon.mark)]

    async def settled(self) -> None:
        """Return once nothing is left."""
        await until(lambda: not self.left(), lambda: "left: " + "\n".join(self.left()))


@asynccontextmanager
async def kept(world: World) -> AsyncIterator[None]:
    """Start the daemon anew whenever it has died, at a point or by ``World.kill_daemon``."""
    over = asyncio.Event()
    keeper = asyncio.create_task(_keep(world, over))
    try:
        yield
    finally:
        over.set()
        await keeper


async def _keep(world: World, over: asyncio.Event) -> None:
    while not over.is_set():
        await world.start()
        await asyncio.sleep(POLL)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


class Ledger:
    """All exits that one client has heard of, over restarts of its daemon."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.exits: list[Exit] = []
        self._statuses: dict[tuple[str, str, int], list[int]] = {}
        self._ready = asyncio.Event()
        self._task = asyncio.create_task(self._listen())

    @classmethod
    @asynccontextmanager
    async def open(cls, world: World) -> AsyncIterator[Ledger]:
        """One that hears everything from now on."""
        ledger = cls(world)
        try:
            daemon, number = world.daemon, 0
            while not ledger._ready.is_set():  # any event tells that it has subscribed
                number += 1
                words = ("namespaces", "label", daemon.namespace, f"ready={number}")
                await asyncio.to_thread(daemon.ctr, *words)
            yield ledger
        finally:
            await _end(ledger._task)

    async def _listen(self) -> None:
        while True:
            try:
                async with self._world.client() as client:
                    async for event in client.events():
                        self._ready.set()
                        told = topics.read_task_exit(event.envelope.event)
                        if told is not None:
                            self._hear(*told)
            except (Unavailable, OSError, Error):
                await asyncio.sleep(POLL)

    def _hear(self, container_id: str, process_id: str, end: End) -> None:
        self.exits.append((container_id, process_id, end.pid, end.status))
        self._statuses.setdefault((container_id, process_id, end.pid), []).append(end.status)

    def of(self, container_id: str, process_id: str, pid: int) -> list[int]:
        """The statuses that were told of a process."""
        return self._statuses.get((container_id, process_id, pid), [])

    def doubled(self) -> list[Exit]:
        """Exits that were told more often than the deaths of the daemon explain."""
        unsure = self._world.unsure
        return [x for x, times in Counter(self.exits).items() if times > 1 + unsure[x]]


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def journalled(daemon: Daemon, *, handed: bool = True) -> list[Exit]:
    """All exits in the journal of a daemon that is down; or those that may have reached nobody."""
    directory = daemon.state / JOURNAL
    cursor = Cursor(str(directory))
    if handed:
        cursor.seek(0)
    else:
        cursor.number = int.from_bytes((directory / "handed").read_bytes(), "little")
    found = []
    while records := cursor.read(sys.maxsize):
        for _, payload in records:
            envelope = convert.from_proto(EnvelopeMessage.FromString(payload))
            told = topics.read_task_exit(envelope.event)
            if told is not None:
                container_id, process_id, end = told
                found.append((container_id, process_id, end.pid, end.status))
    cursor.close()
    return found


@dataclass
class Life:
    """One container from creation to removal; what was acknowledged of it must stay true."""

    world: World
    name: str
    code: int = 7
    pid: int = 0
    """Of init, once its creation was acknowledged."""
    execs: dict[str, int] = field(default_factory=dict)
    """The execs whose start was acknowledged, and their pids."""
    losses: int = 0
    started: bool = False
    vanished: bool = False
    terminated: bool = False
    over: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    unseen: set[int] = field(default_factory=lambda: {KILLED})
    """The codes it may be told to have ended with when its shim did not see its end."""
    _exec_done: bool = False

    async def live(self) -> None:
        """To the end, whatever dies meanwhile; only a death may make a step fail."""
        async with asyncio.timeout(4 * PATIENCE):
            await self._surely(self.record)
            while not self.over:
                await self._surely(self._step)
            await self._surely(self._remove)

    async def prepare(self, client: Client) -> None:
        """Make the container and its task, while nothing dies."""
        await self.record(client)
        self.pid = (await (await client.containers.get(self.name)).create_task(output="null")).pid

    async def terminate(self, client: Client) -> None:
        """Have it exit with its code, while nothing dies."""
        task = await (await client.containers.get(self.name)).task()
        while (await task.state()).status == Status.RUNNING:
            await self._terminate(task)

    async def _surely(self, step: Any) -> None:
        world = self.world
        while True:
            await world.up.wait()
            before, began = world.disturbances(), time.monotonic()
            try:
                async with world.client() as client:
                    await step(client)
                world.progress += 1
                return
            except (Error, OSError) as error:
                await asyncio.sleep(POLL)
                calm = world.last_kill < began - DYING and world.disturbances() == before
                if calm and not world.is_down():
                    raise AssertionError(f"{self}: {error!r}") from error
                self.losses += 1

    async def record(self, client: Client) -> None:
        """Make the container, unless it is there."""
        script = f"trap 'exit {self.code}' TERM; sleep 1000 & wait"
        make = ["sh", "-c", script]
        try:
            await client.containers.create(IMAGE, make, name=self.name, **self.options)
        except AlreadyExists:  # it was made though nobody was told; or half of it
            try:
                await client.containers.get(self.name)
            except NotFound:
                await client.session.snapshots().remove(self.name)
                await client.containers.create(IMAGE, make, name=self.name, **self.options)

    async def _remove(self, client: Client) -> None:
        with suppress(NotFound):
            await (await client.containers.get(self.name)).remove()

    async def _step(self, client: Client) -> None:
        try:
            state = await client.session.tasks.get(self.name)
        except NotFound:
            state = None
        if state is None:
            await self._absent(client)
        elif not self._is_true(state):
            await asyncio.sleep(POLL)
        elif state.status == Status.CREATED:
            await self._created(client, state)
        elif state.status == Status.RUNNING:
            await self._running(client, state)
        elif state.status == Status.STOPPED:
            await self._stopped(client, state)
        else:
            raise AssertionError(f"{self}: {state}")

    async def _absent(self, client: Client) -> None:
        if self.pid:  # there was one, and who supervised it has died
            self.vanished = self.over = True
            return
        container = await client.containers.get(self.name)
        try:
            self.pid = (await container.create_task(output="null")).pid
        except AlreadyExists:
            if self.world.daemon.kind == "cradled":
                raise
            await asyncio.sleep(POLL)  # containerd has refused already, and cleans up only then

    async def _created(self, client: Client, state: State) -> None:
        assert not self.started, self
        await client.session.tasks.start(self.name)
        self.started = True

    async def _running(self, client: Client, state: State) -> None:
        self.started = True
        container = await client.containers.get(self.name)
        task = await container.task()
        if not self._exec_done:
            process = await task.exec(["sh", "-c", f"exit {EXEC_CODE}"], output=False)
            self.execs[process.exec_id] = process.pid
            self._exec_done = True
            async with process:
                assert (await process.wait()).status == EXEC_CODE
                await process.delete()
            return
        await self._terminate(task)

    async def _terminate(self, task: Process) -> None:
        """Ask it to exit, which it does not heed before it has set its trap."""
        with suppress(FileNotFoundError, ProcessLookupError):
            while Path(f"/proc/{self.pid}/comm").read_text() != "sh\n":  # noqa: ASYNC110
                await asyncio.sleep(POLL)
        self.terminated = True
        with suppress(NotFound):
            await task.kill("TERM")
        await asyncio.sleep(POLL)

    async def _stopped(self, client: Client, state: State) -> None:
        assert self.terminated, self
        assert state.exit_status == self.code, (self, state)
        assert not os.path.exists(f"/proc/{self.pid}"), self
        told = await client.session.tasks.delete(self.name)
        assert (told.pid, told.status) == (self.pid, self.code), (self, told)
        self.over = True

    def _is_true(self, state: State) -> bool:
        """Whether the state is that of the process; an exit that is not yet seen soon will be."""
        self.pid = self.pid or state.pid
        assert state.pid == self.pid, (self, state)
        return state.status == Status.STOPPED or os.path.exists(f"/proc/{self.pid}")

    def untold(self, ledger: Ledger) -> list[tuple[str, int]]:
        """The processes that were acknowledged, and whose ends have not been told."""
        known = [*self.execs.items(), *([(self.name, self.pid)] if self.pid else [])]
        return [process for process in known if not ledger.of(self.name, *process)]

    def check(self, ledger: Ledger) -> None:
        """All its processes that were acknowledged were told to have ended, once and truly."""
        killed = self.unseen if self.vanished else set()
        if self.pid:
            (code,) = set(ledger.of(self.name, self.name, self.pid))
            assert code in killed | ({self.code} if self.terminated else set()), (self, code)
        for exec_id, pid in self.execs.items():
            told = set(ledger.of(self.name, exec_id, pid))
            assert len(told) == 1, (self, exec_id, told)
            unseen = {KILLED, UNKNOWN} if self.vanished else set()
            assert told <= {EXEC_CODE, *unseen}, (self, exec_id, told)


def points(*rooms: str) -> list[str]:
    """All failpoints that these rooms name."""
    found = set[str]()
    for room in rooms:
        for path in (Path(cradled.__file__).parent / room).glob("*.py"):
            for call in re.findall(r"failpoints\.hit\(([^)]*)\)", path.read_text()):
                found |= set(re.findall(r'"([a-z._]+)"', call))
    return sorted(found)


async def lives_until_all_are_reached(
    world: World, steps: Sequence[str], **options: str
) -> list[Life]:
    """Live so many lives that somebody dies at each of the steps."""
    world.points.arm(steps)
    lives: list[Life] = []

    async def one_after_the_other() -> None:
        while world.points.waiting and len(lives) < 4 * len(steps):
            life = Life(world, f"s{len(lives)}", options=options)
            lives.append(life)
            await life.live()

    await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))
    assert world.points.waiting == []
    return lives


async def all_live(lives: Iterable[Life]) -> None:
    async with asyncio.TaskGroup() as group:
        for life in lives:
            group.create_task(life.live())


async def check(world: World, ledger: Ledger, lives: Sequence[Life]) -> None:
    """Exits were told once and truly, to those who listen and in the journal; nothing is left."""
    await world.settled()
    await until(
        lambda: not any(life.untold(ledger) for life in lives),
        lambda: "untold: " + str([(x, x.untold(ledger)) for x in lives if x.untold(ledger)]),
    )
    assert ledger.doubled() == [], ledger.doubled()
    for life in lives:
        life.check(ledger)
    await asyncio.to_thread(world.daemon.stop)
    written = journalled(world.daemon)
    written = [x for x in written if x[0] != FIRST]
    assert sorted(written) == sorted(set(ledger.exits)), set(written) ^ set(ledger.exits)


@asynccontextmanager
async def prepared(
    directory: Path,
    archive: Path,
    kind: str = "cradled",
    flags: Sequence[str] = (),
    state: Path | None = None,
    options: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[World]:
    """A daemon with the image, which has run a container already, made with ``options``."""
    directory.mkdir()
    daemon = Daemon(directory, kind)
    daemon.state = state or daemon.state
    world = World(daemon, flags)
    await world.start()
    try:
        await asyncio.to_thread(daemon.ctr, "images", "import", str(archive))
        await Life(world, FIRST, options=dict(options)).live()  # the zygote is ready now
        yield world
    finally:
        world.points.clear()
        await asyncio.to_thread(daemon.destroy)
        shutil.rmtree(directory)
