"""Async. Containers: made from an image, started, found again, removed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from cradled.client.processes import Task
from cradled.client.session import Session
from cradled.core.containers import Container as Record
from cradled.core.mount import Mount
from cradled.core.restart import POLICY, STATUS
from cradled.core.tasks import CreateTask, Process, Status, Stdio
from cradled.errors import FailedPrecondition, NotFound

if TYPE_CHECKING:
    from cradled.client.images import Images
    from cradled.client.options import Limits, Options
    from cradled.client.stdio import Pipes
    from cradled.core.images import Image
    from cradled.core.usage import Usage

STOP_SECONDS = 10.0
STOP_SIGNAL = "io.containerd.image.config.stop-signal"
"""Label with the signal that an image asks for."""

Output = Literal["pipe", "null"] | Path | str
"""Pipes of this process, nothing, a file, or a URI such as ``binary:///bin/logger?tag=x``."""


class Container:
    """A container of one namespace; it need not run.

    ``record`` is what the server keeps of it.
    """

    def __init__(
        self, session: Session, record: Record, root: Sequence[Mount] | None = None
    ) -> None:
        self._session = session
        self._root = root
        self.record = record

    @property
    def id(self) -> str:
        return self.record.id

    def spec(self) -> dict[str, Any]:
        """The runtime spec, decoded; empty when the container has none."""
        return json.loads(self.record.spec.value) if self.record.spec else {}

    async def start(self, *, stdin: bool = False, output: Output = "pipe") -> Task:
        """Run it. Output goes to pipes of this process, to a file or logger, or nowhere.

        A file is appended to by the shim, whatever becomes of this process, and takes both
        standard output and error, as a logger does. A container with a restart policy is kept
        running from now on. Raises AlreadyExists while there is a task.
        """
        task = await self.create_task(stdin=stdin, output=output)
        try:
            await task.start()
            await self._begin_supervision(output)
        except BaseException:
            with suppress(NotFound, FailedPrecondition):
                await task.delete()
            await task.aclose()
            raise
        return task

    async def create_task(self, *, stdin: bool = False, output: Output = "pipe") -> Task:
        """Make everything ready to run, the process stopped before its first instruction."""
        from cradled.client.stdio import Pipes, Streams

        terminal = bool(self.spec().get("process", {}).get("terminal"))
        pipes = None
        if output == "pipe" or stdin:
            wanted = output == "pipe"
            streams = Streams(stdin, wanted, wanted, terminal)
            pipes = await Pipes.make(self._session.fifo_dir, self.id, streams)
        task = Task(self._session, self.record, pipes)
        try:
            stdio = _stdio(pipes, output, terminal=terminal)
            root = await self._mounts()
            task.pid = await self._session.tasks.create(CreateTask(self.id, root, stdio))
            if pipes is not None:
                await pipes.connect_stdin()
        except BaseException:
            await task.aclose()
            raise
        return task

    async def task(self) -> Task:
        """The task that runs or ran, without streams. Raises NotFound."""
        task = Task(self._session, self.record)
        task.pid = (await task.state()).pid
        return task

    async def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Stop it: by the signal that its image asks for (TERM), after so many seconds by KILL.

        It stays stopped, whatever its restart policy.
        """
        await self._end_supervision()
        with suppress(NotFound):  # no task, or one that has exited: stopped it is
            task = await self.task()
            if (await task.state()).status == Status.PAUSED:
                await task.resume()  # or it could not act on the signal
            await task.kill(self.record.labels.get(STOP_SIGNAL, "TERM"))
            try:
                async with asyncio.timeout(seconds):
                    await task.wait()
            except TimeoutError:
                await task.kill("KILL", all=True)
                await task.wait()

    async def update(self, **limits: Unpack[Limits]) -> None:
        """Change limits and the restart policy, at once if it runs, and for when it runs again.

        Raises InvalidArgument.
        """
        from cradled.client import changes

        self.record = await changes.change(self._session, self.record, limits)

    async def label(self, key: str, value: str) -> None:
        """Set a label; an empty value removes it."""
        from cradled.client import supervision

        self.record = await supervision.set_labels(self._session, self.record, {key: value})

    async def remove(self, *, force: bool = False) -> None:
        """Delete the task, the container and its file system.

        Raises FailedPrecondition while it runs, unless ``force``, which kills it.
        """
        from cradled.client import stdio

        try:
            state = await self._session.tasks.get(self.id)
        except NotFound:
            state = None
        alive = state is not None and state.status not in (Status.STOPPED, Status.CREATED)
        if alive and not force:
            raise FailedPrecondition(f'container "{self.id}" is running')
        await self._end_supervision()
        if state is not None:
            with suppress(NotFound):
                await self._remove_task(state, alive=alive)
        await self._session.containers.delete(self.id)
        owner = stdio.owner_of(self._session.scope.namespace, self.id)
        stdio.remove_owned(owner, self._session.fifo_dir)
        if self.record.snapshot_key:
            with suppress(NotFound):
                snapshots = self._session.snapshots(self.record.snapshotter)
                await snapshots.remove(self.record.snapshot_key)

    async def _remove_task(self, state: Process, *, alive: bool) -> None:
        from cradled.client import stdio

        task = Task(self._session, self.record)
        if alive:
            with suppress(NotFound):  # it exits by itself just now
                await task.kill("KILL", all=True)
            await task.wait()
        await task.delete()
        stdio.remove(state.stdio, self._session.fifo_dir)

    async def _begin_supervision(self, output: Output) -> None:
        if POLICY in self.record.labels:
            from cradled.client import supervision

            uri = _stdio(None, output, terminal=False).stdout
            self.record = await supervision.begin(self._session, self.record, uri)

    async def _end_supervision(self) -> None:
        if STATUS in self.record.labels:
            from cradled.client import supervision

            self.record = await supervision.end(self._session, self.record)

    async def _mounts(self) -> Sequence[Mount]:
        record = self.record
        if self._root is None and record.snapshot_key:
            snapshots = self._session.snapshots(record.snapshotter)
            self._root = await snapshots.mounts(record.snapshot_key)
        return self._root or ()


class Containers:
    """The containers of one namespace."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @cached_property
    def _images(self) -> Images:
        from cradled.client.images import Images

        return Images(self._session)

    async def list(self, *filters: str) -> list[Container]:
        """All containers, or those that one of the filters matches."""
        records = await self._session.containers.list(filters)
        return [Container(self._session, record) for record in records]

    async def get(self, id: str) -> Container:
        """Raises NotFound."""
        return Container(self._session, await self._session.containers.get(id))

    async def usage(self, *ids: str) -> dict[str, Usage]:
        """What containers use that run, by id; of all, or of those that are named."""
        from cradled.convert import usage

        found = await self._session.tasks.metrics([f'id=="{id}"' for id in ids])
        return {id: usage.from_any(measured, time) for id, time, measured in found}

    async def create(
        self,
        image: str | Image,
        args: Sequence[str] = (),
        *,
        name: str = "",
        **options: Unpack[Options],
    ) -> Container:
        """Make a container of an image; ``args`` take the place of the image's command.

        It has a file system of its own, and does not run yet. Raises NotFound without the image,
        AlreadyExists when the name is taken, InvalidArgument.
        """
        from cradled.client import creation  # all of images and specs, not wanted to look around

        record, root = await creation.create(
            self._session, self._images, image, args, name, options
        )
        return Container(self._session, record, root)


def _stdio(pipes: Pipes | None, output: Output, *, terminal: bool) -> Stdio:
    stdio = pipes.stdio if pipes else Stdio(terminal=terminal)
    if output in ("pipe", "null"):
        return stdio
    uri = output.absolute().as_uri() if isinstance(output, Path) else output
    return Stdio(stdio.stdin, uri, "" if terminal else uri, terminal)
