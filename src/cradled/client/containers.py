"""Async. Containers: made from an image, started, found again, removed."""

from __future__ import annotations

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
from cradled.core.tasks import CreateTask, Status, Stdio
from cradled.errors import FailedPrecondition, NotFound

if TYPE_CHECKING:
    from cradled.client.images import Images
    from cradled.client.options import Options
    from cradled.client.stdio import Pipes
    from cradled.core.images import Image

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
        standard output and error, as a logger does. Raises AlreadyExists while there is a task.
        """
        task = await self.create_task(stdin=stdin, output=output)
        try:
            await task.start()
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

    async def remove(self, *, force: bool = False) -> None:
        """Delete the task, the container and its file system.

        Raises FailedPrecondition while it runs, unless ``force``, which kills it.
        """
        with suppress(NotFound):
            await self._remove_task(force=force)
        await self._session.containers.delete(self.id)
        if self.record.snapshot_key:
            with suppress(NotFound):
                snapshots = self._session.snapshots(self.record.snapshotter)
                await snapshots.remove(self.record.snapshot_key)

    async def _remove_task(self, *, force: bool) -> None:
        from cradled.client import stdio

        task = await self.task()
        state = await task.state()
        if state.status not in (Status.STOPPED, Status.CREATED):
            if not force:
                raise FailedPrecondition(f'container "{self.id}" is running')
            with suppress(NotFound):  # it exits by itself just now
                await task.kill("KILL", all=True)
            await task.wait()
        await task.delete()
        stdio.remove(state.stdio, self._session.fifo_dir)

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
