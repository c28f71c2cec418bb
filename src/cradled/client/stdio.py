"""Async. The streams of a process: FIFOs between the client's process and the shim.

    <directory>/<random>/<id>-stdin  <id>-stdout  <id>-stderr

The readers are opened before the task is made and never block: a FIFO without a writer is merely
silent. The shim opens both ends of the outputs, so the container can write whether or not anybody
reads, and the end is seen when the shim lets go. A client that is killed leaves the directory; it
lies in the daemon's state, which does not outlive a boot.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from cradled.aio import threads
from cradled.core.tasks import Stdio

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

    @classmethod
    async def make(cls, directory: Path, id: str, streams: Streams) -> Pipes:
        """Make the FIFOs below ``directory`` and open the outputs for reading."""
        made, stdio = await threads.run("fs", _make_fifos, directory, id, streams)
        pipes = cls(made, stdio)
        try:
            await pipes._open_outputs()
        except BaseException:
            await pipes.aclose()
            raise
        return pipes

    @classmethod
    async def attach(cls, stdio: Stdio) -> Pipes:
        """Open the FIFOs that another client made; theirs are the files."""
        pipes = cls(None, stdio)
        try:
            await pipes._open_outputs()
            await pipes.connect_stdin()
        except BaseException:
            await pipes.aclose()
            raise
        return pipes

    async def connect_stdin(self) -> None:
        """Open the input; the shim must have the other end, as it has once the task is made."""
        if not self.stdio.stdin:
            return
        loop = asyncio.get_running_loop()
        file = _open(self.stdio.stdin, os.O_WRONLY)
        transport, protocol = await loop.connect_write_pipe(_protocol, file)
        self._transports.append(transport)
        self.stdin = asyncio.StreamWriter(transport, protocol, None, loop)

    async def aclose(self) -> None:
        """Close all ends and remove the files made here."""
        for transport in self._transports:
            transport.close()
        self._transports.clear()
        if self._directory is not None:
            # At once, not in a thread: three files of a state directory, and a program on its way
            # out would not wait for one.
            shutil.rmtree(self._directory, ignore_errors=True)

    async def _open_outputs(self) -> None:
        self.stdout = await self._reader(self.stdio.stdout)
        self.stderr = await self._reader(self.stdio.stderr)

    async def _reader(self, path: str) -> asyncio.StreamReader | None:
        if not path:
            return None
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(_LIMIT, loop)
        make: Callable[[], asyncio.BaseProtocol] = lambda: asyncio.StreamReaderProtocol(reader)  # noqa: E731
        transport, _ = await loop.connect_read_pipe(make, _open(path, os.O_RDONLY))
        self._transports.append(transport)
        return reader


def _protocol() -> asyncio.StreamReaderProtocol:
    """A protocol that knows when a write must wait; nothing is read."""
    return asyncio.StreamReaderProtocol(asyncio.StreamReader())


def _open(path: str, flags: int) -> BinaryIO:
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = "wb" if flags & os.O_WRONLY else "rb"
    return cast("BinaryIO", os.fdopen(fd, mode, buffering=0))


def _make_fifos(directory: Path, id: str, streams: Streams) -> tuple[Path, Stdio]:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=directory))
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
