"""Async. Running processes: the task of a container, and further processes in it."""

from __future__ import annotations

import asyncio
import os
import signal as signals
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, Unpack

from cradled.client.session import Session
from cradled.core.containers import Container
from cradled.core.tasks import Exit
from cradled.core.tasks import Process as State
from cradled.core.values import AnyValue
from cradled.errors import Error, FailedPrecondition, InvalidArgument, NotFound, Unavailable

if TYPE_CHECKING:
    from cradled.client.options import ExecOptions
    from cradled.client.stdio import Pipes

_RETRIES = 200
_RETRY_SECONDS = 0.05
_GONE = (BrokenPipeError, ConnectionResetError)


@dataclass(frozen=True, slots=True)
class Result:
    """How a process ended, and what it wrote to pipes."""

    status: int
    stdout: bytes = b""
    stderr: bytes = b""

    @property
    def output(self) -> str:
        """Standard output as text."""
        return self.stdout.decode(errors="replace")


class Process:
    """A process in a container.

    ``stdin``, ``stdout`` and ``stderr`` are asyncio streams where pipes were asked for, else None.
    A process whose output nobody reads stops when its pipe is full.
    """

    def __init__(
        self, session: Session, container_id: str, exec_id: str = "", pipes: Pipes | None = None
    ) -> None:
        self._session = session
        self._pipes = pipes
        self.container_id = container_id
        self.exec_id = exec_id
        self.pid = 0

    @property
    def stdin(self) -> asyncio.StreamWriter | None:
        return self._pipes.stdin if self._pipes else None

    @property
    def stdout(self) -> asyncio.StreamReader | None:
        return self._pipes.stdout if self._pipes else None

    @property
    def stderr(self) -> asyncio.StreamReader | None:
        return self._pipes.stderr if self._pipes else None

    async def start(self) -> None:
        self.pid = await self._session.tasks.start(self.container_id, self.exec_id)

    async def wait(self) -> Exit:
        """Returns when the process has exited; it stays known until ``delete``.

        A daemon that is restarted meanwhile is waited for: the process does not notice it either.
        """
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            began = loop.time()
            try:
                return await self._session.tasks.wait(self.container_id, self.exec_id)
            except Unavailable:
                failures = 1 if loop.time() - began > _RETRY_SECONDS else failures + 1
                if failures > _RETRIES:
                    raise
                await asyncio.sleep(_RETRY_SECONDS)

    async def state(self) -> State:
        return await self._session.tasks.get(self.container_id, self.exec_id)

    async def kill(self, signal: int | str = signals.SIGTERM, *, all: bool = False) -> None:
        """``signal`` by number or name; ``all`` reaches every process of the container.

        Raises NotFound when the process has exited.
        """
        number = parse_signal(signal)
        await self._session.tasks.kill(self.container_id, number, self.exec_id, all=all)

    async def resize(self, width: int, height: int) -> None:
        """Tell the terminal its size, in characters."""
        await self._session.tasks.resize_pty(self.container_id, self.exec_id, width, height)

    async def close_stdin(self) -> None:
        """Let the process read the end of its input, after what was written."""
        if self.stdin is not None:
            with suppress(*_GONE):
                await self.stdin.drain()
            self.stdin.close()
        await self._session.tasks.close_io(self.container_id, self.exec_id)

    async def delete(self) -> Exit:
        """Forget the process, which must have exited, and let go of its streams' other ends."""
        if not self.exec_id:
            return await self._session.tasks.delete(self.container_id)
        end = await self._session.tasks.delete_process(self.container_id, self.exec_id)
        if self._pipes is not None:
            self._pipes.remove(self._session.fifo_dir)
        return end

    async def communicate(self, input: bytes | None = None) -> Result:
        """Write input, read all output, wait for the end and delete the process."""
        readers = [asyncio.ensure_future(_read(r)) for r in (self.stdout, self.stderr)]
        feed = asyncio.ensure_future(self._feed(input))
        try:
            await self.wait()
            # A child that still holds the output must not keep us: deleting cuts it off.
            end = await self.delete()
            out, err = await asyncio.gather(*readers)
            return Result(end.status, out, err)
        finally:
            for task in (feed, *readers):
                task.cancel()
            await asyncio.gather(feed, *readers, return_exceptions=True)
            await self.aclose()

    async def aclose(self) -> None:
        """Close the streams; the process goes on."""
        pipes, self._pipes = self._pipes, None
        if pipes is not None:
            await pipes.aclose()

    async def leave(self) -> None:
        """Close the streams, and let others attach to them."""
        pipes, self._pipes = self._pipes, None
        if pipes is not None:
            await pipes.leave()

    async def attach(self) -> None:
        """Open the streams of a process that was started elsewhere: its input and, from now on, its
        output, be it pipes or a log file. Of pipes, each client reads what the others have not.

        Raises FailedPrecondition when the output goes elsewhere, or is gone with its maker.
        """
        from cradled.client.stdio import Pipes

        stdio = (await self.state()).stdio
        try:
            self._pipes = await Pipes.attach(stdio, self.wait)
        except FailedPrecondition as error:
            raise FailedPrecondition(f'"{self.container_id}": {error.what}') from error
        except OSError as error:
            text = f'streams of "{self.container_id}" are gone: {error.strerror}'
            raise FailedPrecondition(text) from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def _feed(self, input: bytes | None) -> None:
        if self.stdin is None:
            return
        if input:
            with suppress(*_GONE):
                self.stdin.write(input)
                await self.stdin.drain()
        with suppress(NotFound):  # it has exited without reading
            await self.close_stdin()


class Task(Process):
    """The first process of a container, and with it the running container."""

    def __init__(self, session: Session, record: Container, pipes: Pipes | None = None) -> None:
        super().__init__(session, record.id, pipes=pipes)
        self._record = record

    async def pause(self) -> None:
        await self._session.tasks.pause(self.container_id)

    async def resume(self) -> None:
        await self._session.tasks.resume(self.container_id)

    async def pids(self) -> list[int]:
        """All processes of the container, as the host numbers them."""
        return [pid for pid, _ in await self._session.tasks.pids(self.container_id)]

    async def processes(self) -> list[tuple[int, str]]:
        """All processes, with the id of the exec that one is; empty for all others."""
        from cradled.convert.tasks import exec_id

        found = await self._session.tasks.pids(self.container_id)
        return [(pid, exec_id(details)) for pid, details in found]

    def process(self, exec_id: str) -> Process:
        """A further process that was started elsewhere, without streams."""
        return Process(self._session, self.container_id, exec_id)

    async def exec(
        self,
        args: Sequence[str],
        *,
        stdin: bool = False,
        output: bool = True,
        **options: Unpack[ExecOptions],
    ) -> Process:
        """Start a further process; ``output`` False leaves it without any.

        Environment, directory and user are those of the first process unless given.
        """
        from cradled.client.options import exec_spec
        from cradled.client.stdio import Pipes, Streams, owner_of

        process_spec = await exec_spec(self._session, self._record, args, options)
        exec_id = f"exec-{os.urandom(8).hex()}"
        streams = Streams(stdin, output, output, options.get("tty", False))
        owner = owner_of(self._session.scope.namespace, self.container_id)
        pipes = await Pipes.make(self._session.fifo_dir, exec_id, streams, owner)
        process = Process(self._session, self.container_id, exec_id, pipes)
        try:
            await self._add(process, pipes, process_spec)
        except BaseException:
            await process.aclose()
            raise
        return process

    async def _add(self, process: Process, pipes: Pipes, process_spec: AnyValue) -> None:
        tasks = self._session.tasks
        await tasks.exec(self.container_id, process.exec_id, pipes.stdio, process_spec)
        try:
            await process.start()
            await pipes.connect_stdin()
        except BaseException:
            with suppress(Error):  # it may not run
                await process.kill(signals.SIGKILL)
            with suppress(Error):  # it may not have ended yet
                await process.delete()
            raise


def parse_signal(signal: int | str) -> int:
    """``15``, ``TERM``, ``SIGTERM``, ``RTMIN+1``: the number. Raises InvalidArgument."""
    text = str(int(signal)) if isinstance(signal, int) else signal.upper()
    if text.isdigit():
        number = int(text)
    else:
        name, plus, offset = text.removeprefix("SIG").partition("+")
        found = getattr(signals, f"SIG{name}", None)
        if not isinstance(found, signals.Signals) or (plus and not offset.isdigit()):
            raise InvalidArgument(f'signal "{signal}"')
        number = found + int(offset or 0)
    if not 1 <= number < signals.NSIG:
        raise InvalidArgument(f'signal "{signal}"')
    return number


async def _read(reader: asyncio.StreamReader | None) -> bytes:
    return b"" if reader is None else await reader.read()
