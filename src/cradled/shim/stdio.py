"""Async. The standard streams of a process: what the runtime is given, what the client gets.

A client names a FIFO for each stream it wants, or for its output a file or a logging program. The
process itself always gets pipes (or a terminal), so that what is in a container never holds, owns
or sees a file of its host; data moves from pipe to FIFO inside the kernel (splice).

FIFOs of output are opened for reading and writing. So a write never fails for want of a reader, a
client may leave and another come, and closing our one descriptor, when the process has closed its
end, is what the client sees as end of file. Of a stdin FIFO both ends are held apart: only
``close_stdin`` lets its reader see the end. A terminal whose input has ended is hung up.

Pipes and FIFOs are as small as they come, but those of a stream that fills them grow fourfold:
that doubles what it can carry and halves what it costs, and is all the memory it takes.

Files are written to by threads, because a disk may hang. Descriptors that a thread has are lent to
it: they are closed when it is back.
"""

from __future__ import annotations

import os
from time import monotonic

from cradled.errors import Error
from cradled.linux import copying, fifo
from cradled.linux.coroutines import Closed
from cradled.outputs import parse
from cradled.shim import log
from cradled.shim.logs import start_logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cradled.linux.coroutines import Loop, Task
    from cradled.linux.reaper import Reaper
    from cradled.shim.logs import Logger
    from cradled.shim.messages import CreateTaskRequest, ExecProcessRequest

    Move = Callable[[Loop, int, int], Awaitable[bool]]
    """Moves what is there from one descriptor to another; False at the end."""

_CHUNK = 65536
_BURST = 16  # chunks moved before others get their turn
_TERMINAL = -1  # the source of a pump until the terminal is there
_RETURN = 1.0  # seconds that a thread gets to come back from a write
_RETRY = 1.0  # seconds until a thread is asked for again, after none could be had
_NO_IO = "failed to create init process I/O"


class Streams:
    """The open streams of one process, as its request names them.

    ``owner`` gets the pipes that the process is given.
    """

    def __init__(
        self,
        loop: Loop,
        reaper: Reaper,
        request: CreateTaskRequest | ExecProcessRequest,
        owner: tuple[int, int],
    ) -> None:
        self._loop = loop
        self._reaper = reaper
        self._request = request
        self._owner = owner
        self._open: set[int] = set()
        self._lent: set[int] = set()
        self._leave: list[bool] = []  # not empty: threads shall come back
        self._pumps: list[tuple[int, int, Move]] = []
        self._feeds: list[tuple[int, int, Move]] = []
        self._outputs: list[Task] = []
        self._held = -1
        self._logger: Logger | None = None
        self.master = -1
        self.child: list[int | None] = [None, None, None]
        """What the runtime gets as descriptors 0, 1, 2; None is /dev/null."""

    async def open(self, environment: dict[str, str]) -> None:
        """Open what the client named. ``environment`` is that of a logging program.

        Raises Error; the caller closes in any case.
        """
        request = self._request
        try:
            scheme, path, words = parse(request.stdout)
            if scheme in ("binary", "binary-v2"):
                await self._open_logger([path, *words], environment, scheme == "binary-v2")
            elif scheme == "file":
                for number in (1,) if request.terminal else (1, 2):
                    file = self._own(await self._loop.aside(fifo.open_log, path))
                    self._add_output(number, file, self._write_aside)
            elif scheme != "fifo":
                raise Error(f"unknown STDIO scheme {scheme}")
        except OSError as error:
            raise Error(f"{_NO_IO}: {_reason(error)}") from None
        except Error as error:
            raise Error(f"{_NO_IO}: {error}") from None
        if scheme == "fifo":
            await self._open_output(1, path)
            if not request.terminal:
                await self._open_output(2, parse(request.stderr)[1])
        if request.stdin:
            self._open_stdin(request.stdin)

    def attach(self, master: int) -> None:
        """Take a terminal's master, to which the streams belong from now on."""
        self.master = self._own(master)
        self._pumps = [(master, sink, move) for _, sink, move in self._pumps]
        self._feeds = [(source, master, move) for source, _, move in self._feeds]

    def started(self) -> None:
        """The runtime has what it needs: close our copies and begin to move data."""
        for fd in self.child:
            if fd is not None:
                self._close(fd)
        self.child = [None, None, None]
        self._outputs = [self._loop.spawn(self._pump(*pump)) for pump in self._pumps]
        for feed in self._feeds:
            self._loop.spawn(self._pump(*feed))

    def close_stdin(self) -> None:
        """Let the process see the end of its input, once the client has closed its side too."""
        self._close(self._held)

    async def drain(self, seconds: float) -> None:
        """Wait until all output has been passed on, but no longer."""
        deadline = monotonic() + seconds
        for task in self._outputs:
            await self._loop.within(task, max(0.0, deadline - monotonic()))
        if self._logger is not None:
            await self._logger.finish(deadline)

    async def close(self) -> None:
        """Let go of everything, and stop the logging program."""
        self._leave.append(True)
        for fd in list(self._open):
            self._close(fd)
        for task in self._outputs if self._lent else ():
            await self._loop.within(task, _RETURN)
        logger, self._logger = self._logger, None
        if logger is not None:
            await logger.stop()

    def _open_stdin(self, path: str) -> None:
        try:
            source = self._own(fifo.open_reader(path))
            self._held = self._own(fifo.open_writer(path))
        except OSError as error:
            raise Error(f"failed to open stdin fifo {path}: {_reason(error, 'stat')}") from None
        if self._request.terminal:
            self._feeds = [(source, _TERMINAL, _copy)]
        else:
            self.child[0], sink = self._pipe()
            os.set_blocking(sink, False)
            self._feeds = [(source, sink, _splice)]

    async def _open_output(self, number: int, path: str) -> None:
        try:
            if not path:
                if self._request.terminal:
                    self._add_output(number, self._own(fifo.open_both(os.devnull)), _copy)
            elif fifo.is_fifo(path):
                move = _copy if self._request.terminal else _splice
                self._add_output(number, self._own(fifo.open_both(path)), move)
            else:
                file = self._own(await self._loop.aside(fifo.open_appender, path))
                self._add_output(number, file, self._write_aside)
        except OSError as error:
            text = f"failed to start console copy: {_reason(error, 'stat')}"
            if not self._request.terminal:
                text = f'containerd-shim: opening file "{path}" failed: {_reason(error)}'
                text = f"failed to start io pipe copy: unable to copy pipes: {text}"
            raise Error(text) from None

    def _add_output(self, number: int, sink: int, move: Move) -> None:
        source = _TERMINAL
        if not self._request.terminal:
            source, self.child[number] = self._pipe()
            os.set_blocking(source, False)
        self._pumps.append((source, sink, move))

    async def _open_logger(
        self, argv: list[str], environment: dict[str, str], must_write: bool
    ) -> None:
        (stdout, out), (stderr, err) = self._pipe(), self._pipe()
        logger = await start_logger(
            self._loop, self._reaper, argv, environment, (stdout, stderr), must_write
        )
        self._logger = logger
        logger.ended.then(lambda _: self._drop((stdout, stderr)))
        self.child[2] = err
        if self._request.terminal:
            os.set_blocking(out, False)
            self._pumps = [(_TERMINAL, out, _copy)]
        else:
            self.child[1] = out

    def _drop(self, sources: tuple[int, int]) -> None:
        """The logging program has ended: nobody else reads what the process goes on to write."""
        for source in sources:
            if source in self._open:
                os.set_blocking(source, False)
                sink = self._own(fifo.open_both(os.devnull))
                self._loop.spawn(self._pump(source, sink, _splice))

    def _pipe(self) -> tuple[int, int]:
        ends = os.pipe2(os.O_CLOEXEC)
        self._open.update(ends)
        if any(self._owner):
            for end in ends:
                os.fchown(end, *self._owner)
        return ends

    def _own(self, fd: int) -> int:
        self._open.add(fd)
        return fd

    def _close(self, fd: int) -> None:
        if fd in self._lent:
            self._leave.append(True)
        elif fd in self._open:
            self._open.remove(fd)
            self._loop.close(fd)
            if fd == self.master:
                self.master = -1

    async def _pump(self, source: int, sink: int, move: Move) -> None:
        try:
            while source in self._open:  # closed before this had begun, the number is another's
                await self._loop.readable(source)
                if not await move(self._loop, source, sink):
                    break
        except (OSError, Closed):
            pass  # the other side is gone, for a terminal that is its end
        self._close(source)
        self._close(sink)

    async def _write_aside(self, loop: Loop, source: int, sink: int) -> bool:
        """Move what comes into a file."""
        lent = {source, sink}
        self._lent |= lent
        try:
            goes_on = await loop.aside(copying.copy, source, sink, self._leave, _lost)
        except OSError as error:
            log.line(f"output waits: {error}")
            await loop.sleep(_RETRY)
            goes_on = True
        finally:
            self._lent -= lent
        return bool(goes_on) and not self._leave


def _lost(error: OSError, size: int) -> None:
    log.line(f"{size} bytes of output are lost: {error.strerror}")


def _reason(error: OSError, action: str = "open") -> str:
    return f"{action} {error.filename}: {(error.strerror or str(error)).lower()}"


async def _splice(loop: Loop, source: int, sink: int) -> bool:
    """Move what is there out of a pipe, without a copy."""
    moved = 0
    for _ in range(_BURST):
        try:
            moved = os.splice(source, sink, fifo.LARGE, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            if not moved:  # there was something to read, so it is the sink that is full
                await loop.writable(sink)
            return True
        if not moved:
            return False
        if fifo.USUAL // 2 <= moved <= fifo.USUAL:  # filled faster than we come round
            fifo.enlarge(source)
            fifo.enlarge(sink)
    return True


async def _copy(loop: Loop, source: int, sink: int) -> bool:
    """Move what is there, where the kernel splices nothing: into a terminal and out of it."""
    try:
        data = os.read(source, _CHUNK)
    except BlockingIOError:
        return True
    await loop.write(sink, data)
    return bool(data)
