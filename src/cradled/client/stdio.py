"""Async. The streams of a process: FIFOs between the client's process and the shim.

    <directory>/<owner><random>/<id>-stdin  <id>-stdout  <id>-stderr

The readers are opened before the task is made and never block: a FIFO without a writer is merely
silent. The shim opens both ends of the outputs, so the container can write whether or not anybody
reads, and the end is seen when the shim lets go. A client that goes away leaves the directory to
the next one, until the container is removed; it lies in the daemon's state, which does not outlive
a boot.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from cradled import outputs
from cradled.aio import threads
from cradled.core.tasks import Stdio
from cradled.errors import FailedPrecondition
from cradled.linux import fifo

_LIMIT = 1 << 18


@dataclass(frozen=True, slots=True)
class Streams:
    """Which streams the process shall have; a terminal has one output."""

    stdin: bool = False
    stdout: bool = True
    stderr: bool = True
    terminal: bool = False


class Pipes:
    """The client's ends of a process' FIFOs; what was not asked for is None."""

    def __init__(self, directory: Path | None, stdio: Stdio) -> None:
        self.stdio = stdio
        self.stdin: asyncio.StreamWriter | None = None
        self.stdout: asyncio.StreamReader | None = None
        self.stderr: asyncio.StreamReader | None = None
        self._directory = directory
        self._transports: list[asyncio.BaseTransport] = []
        self._follower: asyncio.Task[None] | None = None

    @classmethod
    async def make(cls, directory: Path, id: str, streams: Streams, owner: str = "") -> Pipes:
        """Make the FIFOs below ``directory`` and open the outputs for reading.

        What is left of an ``owner`` (``owner_of``) can be found without knowing its processes.
        """
        made, stdio = await threads.run("fs", _make_fifos, directory, id, streams, owner)
        pipes = cls(made, stdio)
        try:
            await pipes._open_outputs()
        except BaseException:
            await pipes.aclose()
            raise
        return pipes

    @classmethod
    async def attach(cls, stdio: Stdio, wait: Callable[[], Awaitable[object]]) -> Pipes:
        """Open the streams that another client made; theirs are the files.

        Output that goes to a log file is read from its present end on, until ``wait`` returns.
        Raises FailedPrecondition for output that nobody can read, OSError.
        """
        pipes = cls(None, stdio)
        try:
            scheme, path, _ = outputs.parse(stdio.stdout)
            if scheme == "file":
                await pipes._follow(path, wait())
            elif scheme == "fifo" and path and fifo.is_fifo(path):
                await pipes._open_outputs()
            else:
                raise FailedPrecondition("its output goes to no pipe or file")
            await pipes.connect_stdin()
        except BaseException:
            await pipes.leave()
            raise
        return pipes

    async def connect_stdin(self) -> None:
        """Open the input; the shim must have the other end, as it has once the task is made."""
        if self.stdio.stdin:
            self.stdin = await self._writer(_open(self.stdio.stdin, os.O_WRONLY))

    async def aclose(self) -> None:
        """Close all ends and remove the files made here."""
        await self.leave()
        if self._directory is not None:
            # At once, not in a thread: three files of a state directory, and a program on its way
            # out would not wait for one.
            shutil.rmtree(self._directory, ignore_errors=True)

    async def leave(self) -> None:
        """Close all ends; others may attach to the files."""
        follower, self._follower = self._follower, None
        if follower is not None:
            follower.cancel()
            await asyncio.wait((follower,))
        for transport in self._transports:
            transport.close()
        self._transports.clear()

    def remove(self, directory: Path) -> None:
        """Remove the files, if they were made below ``directory``."""
        remove(self.stdio, directory)

    async def _open_outputs(self) -> None:
        self.stdout = await self._open_reader(self.stdio.stdout)
        self.stderr = await self._open_reader(self.stdio.stderr)

    async def _follow(self, path: str, ended: Awaitable[object]) -> None:
        """Read a log file that grows, by way of a pipe."""
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        os.lseek(file, 0, os.SEEK_END)
        theirs, ours = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.stdout = await self._reader(cast("BinaryIO", os.fdopen(theirs, "rb", buffering=0)))
        writer = await self._writer(cast("BinaryIO", os.fdopen(ours, "wb", buffering=0)))
        self._follower = asyncio.ensure_future(_carry(file, ended, writer))

    async def _open_reader(self, path: str) -> asyncio.StreamReader | None:
        return await self._reader(_open(path, os.O_RDONLY)) if path else None

    async def _reader(self, file: BinaryIO) -> asyncio.StreamReader:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(_LIMIT, loop)
        make: Callable[[], asyncio.BaseProtocol] = lambda: asyncio.StreamReaderProtocol(reader)  # noqa: E731
        transport, _ = await loop.connect_read_pipe(make, file)
        self._transports.append(transport)
        return reader

    async def _writer(self, file: BinaryIO) -> asyncio.StreamWriter:
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.connect_write_pipe(_protocol, file)
        self._transports.append(transport)
        return asyncio.StreamWriter(transport, protocol, None, loop)


async def _carry(file: int, ended: Awaitable[object], writer: asyncio.StreamWriter) -> None:
    from cradled.client import growth

    try:
        async for data in growth.follow(file, ended):
            writer.write(data)
            await writer.drain()
    finally:
        os.close(file)
        writer.close()


def owner_of(namespace: str, container_id: str) -> str:
    """The owner of what processes of a container left; none's is the beginning of another's."""
    return f"{namespace}@{container_id}@"


def remove_owned(owner: str, directory: Path) -> None:
    """Remove all FIFOs of an owner below ``directory``."""
    with suppress(FileNotFoundError):
        for name in os.listdir(directory):
            if name.startswith(owner):
                shutil.rmtree(directory / name, ignore_errors=True)


def remove(stdio: Stdio, directory: Path) -> None:
    """Remove FIFOs that were made below ``directory`` and that no client has removed."""
    for path in filter(None, (stdio.stdin, stdio.stdout, stdio.stderr)):
        parent, name = os.path.split(path)
        with suppress(OSError):
            if Path(parent).parent == directory and name and fifo.is_fifo(path):
                os.unlink(path)
                os.rmdir(parent)  # when it was the last


def _protocol() -> asyncio.StreamReaderProtocol:
    """A protocol that knows when a write must wait; nothing is read."""
    return asyncio.StreamReaderProtocol(asyncio.StreamReader())


def _open(path: str, flags: int) -> BinaryIO:
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = "wb" if flags & os.O_WRONLY else "rb"
    return cast("BinaryIO", os.fdopen(fd, mode, buffering=0))


def _make_fifos(directory: Path, id: str, streams: Streams, owner: str) -> tuple[Path, Stdio]:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=owner or None, dir=directory))
    wanted = {
        "stdin": streams.stdin,
        "stdout": streams.stdout,
        "stderr": streams.stderr and not streams.terminal,
    }
    paths = {}
    for stream, is_wanted in wanted.items():
        paths[stream] = str(made / f"{id}-{stream}") if is_wanted else ""
        if is_wanted:
            os.mkfifo(paths[stream], 0o700)
    return made, Stdio(paths["stdin"], paths["stdout"], paths["stderr"], streams.terminal)
