"""A task manager with everything below it that is real: zygote, shims, runc, events, journal.

``Node`` stands for the part of a daemon that owns tasks. ``restart`` lets it go without a word, as
kill -9 does to what it has in memory, and starts another on the same directories.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from cradled.api import events_pb2, events_ttrpc_pb2, runc_options_pb2
from cradled.core.containers import Container, Runtime
from cradled.core.events import Envelope
from cradled.core.mount import Mount
from cradled.core.scope import Scope
from cradled.core.tasks import CreateTask, Stdio
from cradled.core.values import AnyValue
from cradled.errors import NotFound
from cradled.events.exchange import Exchange, Subscription
from cradled.events.journal import Journal
from cradled.rpc.service import Router
from cradled.rpc.ttrpc_server import TtrpcServer
from cradled.runtime.assembly import Assembly
from cradled.runtime.bootstrap import Daemon
from cradled.runtime.checkpoints import Checkpoints
from cradled.runtime.launcher import RUNC_OPTIONS, Launchers
from cradled.runtime.manager import TaskManager
from cradled.runtime.shims import Shims
from cradled.runtime.timeouts import DEFAULT, Timeouts
from cradled.services.events_ttrpc import EventsTtrpcService
from cradled.zygote.client import Zygote
from harness import leaks
from harness.shims import PROCESS, make_rootfs, make_spec

OWN = "io.containerd.runc.v2"
GO = "/usr/bin/containerd-shim-runc-v2"

SPEC = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
PROCESS_SPEC = "types.containerd.io/opencontainers/runtime-spec/1/Process"

PATIENCE = 20.0


def _no_checkpoints() -> Checkpoints:
    raise AssertionError("no test here has its checkpoints made blobs of")


async def _no_sandbox(scope: Scope, id: str) -> None:
    raise NotFound(f'sandbox "{id}"')


class Node:
    """Tasks of one namespace under one directory; ``runtime`` is that of all containers.

    With a ``group`` they are all in one shim.
    """

    def __init__(
        self, directory: Path, runtime: str, timeouts: Timeouts = DEFAULT, group: str = ""
    ) -> None:
        self.directory = directory
        self.runtime = runtime
        self.timeouts = timeouts
        self.group = group
        self.mark = "t" + secrets.token_hex(5)
        self.scope = Scope(self.mark)
        self.state = directory / "state"
        self.root = directory / "root"
        self.containers: dict[str, Container] = {}
        self.rootfs = directory / "image"
        make_rootfs(self.rootfs)
        self.events: list[Envelope] = []

    @property
    def address(self) -> str:
        return str(self.directory / "d.sock.ttrpc")

    async def start(self) -> None:
        """Come up, as a daemon does: listen, recover, serve."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.address)
        listener.listen()
        self.journal = Journal(str(self.directory / "journal"))
        self.exchange = Exchange(self.journal)
        self._subscription = self.exchange.subscribe()
        self._ear = asyncio.create_task(self._listen(self._subscription))
        self.zygote = Zygote(["cradled.shim.serve"])
        daemon = Daemon(
            str(self.directory / "d.sock"),
            self.address,
            str(self.directory / "s"),
            timeouts=self.timeouts,
        )
        runc_root = str(self.directory / "runc")
        launchers = Launchers(daemon, self.zygote, runc_root=runc_root, group=self.group)
        shims = Shims(str(self.state), str(self.root), launchers)
        assembly = Assembly(shims, _no_checkpoints, _no_sandbox)
        self.tasks = TaskManager(assembly, self._container, self.exchange)
        await self.tasks.recover(self.journal.exits())
        router = Router()
        router.add(events_ttrpc_pb2.Events, EventsTtrpcService(self.tasks.forward))
        self._server = TtrpcServer(router)
        await self._server.serve(listener)

    async def stop(self) -> None:
        """Go away, not in the moment of telling something; tasks go on."""
        while self.journal.handed < self.journal.last:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await self._server.stop(0)
        with suppress(FileNotFoundError):  # from Python 3.13 on asyncio does it
            os.unlink(self.address)
        await self.tasks.aclose()
        await self.zygote.aclose()
        self._subscription.close()
        self._ear.cancel()
        await asyncio.wait([self._ear])
        self.journal.close()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    def add(self, id: str, *args: str, options: AnyValue | None = None, **changes: Any) -> None:
        """Record a container that runs ``args``."""
        spec = json.dumps(make_spec(f"/{self.mark}/{id}", args, **changes)).encode()
        runtime = Runtime(self.runtime, options or self._options())
        self.containers[id] = Container(id, spec=AnyValue(SPEC, spec), runtime=runtime)

    def change(self, id: str, **changes: Any) -> None:
        self.containers[id] = dataclasses.replace(self.containers[id], **changes)

    async def create(self, id: str, *args: str, stdio: Stdio | None = None, **more: Any) -> int:
        """Create a task, recording its container if that is not there."""
        if id not in self.containers:
            self.add(id, *args)
        more.setdefault("rootfs", (Mount("bind", str(self.rootfs), ("rbind", "rw")),))
        request = CreateTask(id, stdio=stdio or Stdio(), **more)
        return await self.tasks.create(self.scope, request)

    async def run(self, id: str, *args: str) -> int:
        """Create and start."""
        await self.create(id, *args)
        return await self.tasks.start(self.scope, id)

    async def end(self, id: str) -> int:
        """Kill what runs, delete; the exit status."""
        with suppress(NotFound):
            await self.tasks.kill(self.scope, id, 9)
        await self.tasks.wait(self.scope, id)
        return (await self.tasks.delete(self.scope, id)).status

    async def exec(self, id: str, exec_id: str, *args: str, stdio: Stdio | None = None) -> int:
        spec = AnyValue(PROCESS_SPEC, json.dumps({**PROCESS, "args": list(args)}).encode())
        await self.tasks.exec(self.scope, id, exec_id, stdio or Stdio(), spec)
        return await self.tasks.start(self.scope, id, exec_id)

    def told(self, id: str) -> list[str]:
        """The topics told of a container so far."""
        return [topic for topic, event in self._task_events() if event.container_id == id]

    async def heard(self, id: str, *topics: str) -> list[Any]:
        """All events of a container, once these topics were told (and no others)."""
        async with asyncio.timeout(PATIENCE):
            while len(self.told(id)) < len(topics):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        told = self.told(id)
        assert told == list(topics)
        return [event for _, event in self._task_events() if event.container_id == id]

    def bundle(self, id: str) -> Path:
        return self.state / self.mark / id

    async def shim_pid(self, id: str) -> int:
        return (await self.tasks._tasks[self.mark, id].client.pids_of(id))[0]

    def saved(self, id: str) -> dict[str, Any]:
        """What is kept of where the shim serves."""
        return json.loads((self.bundle(id) / "bootstrap.json").read_text())  # type: ignore[no-any-return]

    def left(self) -> list[str]:
        """What of all tasks is still there: processes, mounts, cgroups, files."""
        found = leaks.mounts_below(str(self.directory))
        for place in (self.state, self.root, self.directory / "s", self.directory / "runc"):
            for directory, directories, files in os.walk(place):
                names = files if directory == str(place) else directories + files
                found += [f"{directory}/{name}" for name in names]
        zygote = self.zygote.pid
        marked = leaks.marked_processes(self.mark)
        return found + [f"{pid} {cmd}" for pid, cmd in marked.items() if pid != zygote]

    async def settled(self) -> None:
        """Return once nothing is left."""
        try:
            async with asyncio.timeout(PATIENCE / 4):
                while self.left():  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"left: {self.left()}") from None

    def _options(self) -> AnyValue | None:
        if self.runtime == OWN:
            return None
        message = runc_options_pb2.Options(root=str(self.directory / "runc"))
        return AnyValue(RUNC_OPTIONS, message.SerializeToString())

    async def _container(self, scope: Scope, id: str) -> Container:
        if scope != self.scope or id not in self.containers:
            raise NotFound(f'container "{id}" in namespace "{scope.namespace}"')
        return self.containers[id]

    def _task_events(self) -> list[tuple[str, Any]]:
        found = []
        for envelope in self.events:
            assert envelope.namespace == self.mark
            kind = getattr(events_pb2, envelope.event.type_url.rpartition(".")[2])
            topic = envelope.topic.removeprefix("/tasks/")
            found.append((topic, kind.FromString(envelope.event.value)))
        return found

    async def _listen(self, subscription: Subscription) -> None:
        async for envelope in subscription:
            self.events.append(envelope)


@asynccontextmanager
async def running(
    runtime: str, timeouts: Timeouts = DEFAULT, group: str = ""
) -> AsyncIterator[Node]:
    """A node, and the proof that nothing of it stays."""
    directory = Path(tempfile.mkdtemp(prefix="crt"))  # short: sockets are in it
    node = Node(directory, runtime, timeouts, group)
    os.environ[leaks.MARK] = node.mark
    try:
        await node.start()
        try:
            yield node
        finally:
            try:
                for process in await node.tasks.list(node.scope):
                    await node.end(process.id)
                await node.settled()
            finally:
                await node.stop()
        leaks.assert_settled(node.mark, str(directory))
    finally:
        del os.environ[leaks.MARK]
        leaks.remove_parents(node.mark)
    shutil.rmtree(directory)
