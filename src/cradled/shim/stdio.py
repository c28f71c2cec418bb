"""Async. The standard streams of a process: what the runtime is given, what the client gets.

A client names a FIFO for each stream it wants, or for its output a file or a logging program. The
process itself always gets pipes (or a terminal), so that what is in a container never holds, owns
or sees a file of its host; data moves from pipe to FIFO inside the kernel (splice).

FIFOs of output are opened for reading and writing. So a write never fails for want of a reader, a
client may leave and another come, and closing our one descriptor, when the process has closed its
end, is what the client sees as end of file. Of a stdin FIFO both ends are held apart: only
``close_stdin`` lets its reader see the end. A terminal whose input has ended is hung up.
"""

from __future__ import annotations

import os
from time import monotonic

from cradled.errors import Error
from cradled.linux import fifo
from cradled.shim.logs import start_logger
from cradled.shim.loop import Closed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cradled.shim.logs import Logger
    from cradled.shim.loop import Loop, Task
    from cradled.shim.messages import CreateTaskRequest, ExecProcessRequest
    from cradled.shim.reaper import Reaper

_CHUNK = 65536
_BURST = 16  # chunks moved before others get their turn
_TERMINAL = -1  # the source of a pump until the terminal is there


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
        self._pumps: list[tuple[int, int, bool]] = []  # from, to, whether by splice
        self._feeds: list[tuple[int, int, bool]] = []
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
        scheme, path, words = parse(request.stdout)
        try:
            if request.stdin:
                self._open_stdin(request.stdin)
            if scheme in ("binary", "binary-v2"):
                await self._open_logger([path, *words], environment, scheme == "binary-v2")
            elif scheme == "file":
                os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
                self._open_output(1, path)
                self._open_output(2, path)
            elif scheme == "fifo":
                self._open_output(1, path)
                self._open_output(2, parse(request.stderr)[1])
            else:
                raise Error(f"unknown STDIO scheme {scheme}")
        except OSError as error:
            text = f'opening file "{error.filename}" failed: {(error.strerror or "").lower()}'
            raise Error(f"failed to start io pipe copy: {text}") from None

    def attach(self, master: int) -> None:
        """Take a terminal's master, to which the streams belong from now on."""
        self._open.add(master)
        self.master = master
        self._pumps = [(master, sink, splice) for _, sink, splice in self._pumps]
        self._feeds = [(source, master, splice) for source, _, splice in self._feeds]

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

    async def close(self) -> None:
        """Let go of everything, and stop the logging program."""
        for fd in list(self._open):
            self._close(fd)
        self.master = -1
        logger, self._logger = self._logger, None
        if logger is not None:
            await logger.stop()

    def _open_stdin(self, path: str) -> None:
        source = self._own(fifo.open_reader(path))
        self._held = self._own(fifo.open_writer(path))
        sink = _TERMINAL
        if not self._request.terminal:
            self.child[0], sink = self._pipe()
            os.set_blocking(sink, False)
        self._feeds = [(source, sink, not self._request.terminal)]

    def _open_output(self, number: int, path: str) -> None:
        if self._request.terminal:
            if number == 1:
                self._pumps.append((_TERMINAL, self._own(_open_sink(path or os.devnull)[0]), False))
        elif path:
            sink, splice = _open_sink(path)
            self._own(sink)
            source, self.child[number] = self._pipe()
            os.set_blocking(source, False)
            self._pumps.append((source, sink, splice))

    async def _open_logger(
        self, argv: list[str], environment: dict[str, str], must_write: bool
    ) -> None:
        sources = []
        for number in (1, 2):
            source, self.child[number] = self._pipe()
            self._open.remove(source)
            sources.append(source)
        self._logger = await start_logger(
            self._loop, self._reaper, argv, environment, sources, must_write
        )
        sink = self.child[1]
        if self._request.terminal and sink is not None:
            os.set_blocking(sink, False)
            self._pumps = [(_TERMINAL, sink, False)]
            self.child[1] = None

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
        if fd in self._open:
            self._open.remove(fd)
            self._loop.close(fd)

    async def _pump(self, source: int, sink: int, splice: bool) -> None:
        move = _splice if splice else _copy
        try:
            while await move(self._loop, source, sink):
                pass
        except (OSError, Closed):
            pass  # the other side is gone, for a terminal that is its end
        self._close(source)
        self._close(sink)


def parse(uri: str) -> tuple[str, str, list[str]]:
    """Scheme, path and the words of the query: key, value, key, value, ..."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return "fifo", uri, []
    path, _, query = rest.partition("?")
    pairs: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        key, _, value = pair.replace("+", " ").partition("=")
        pairs.setdefault(_unquoted(key), _unquoted(value))
    return scheme, _unquoted(path), [word for pair in pairs.items() for word in pair]


def _unquoted(text: str) -> str:
    first, *parts = text.split("%")
    out = first.encode()
    for part in parts:
        try:
            out += bytes((int(part[:2], 16),)) + part[2:].encode()
        except ValueError:
            out += b"%" + part.encode()
    return out.decode(errors="surrogateescape")


def _open_sink(path: str) -> tuple[int, bool]:
    """A descriptor for output, and whether data can be spliced into it."""
    if fifo.is_fifo(path):
        return fifo.open_both(path), True
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC), False


async def _splice(loop: Loop, source: int, sink: int) -> bool:
    """Move what is there from pipe to pipe; False at the end."""
    await loop.readable(source)
    moved = 0
    for _ in range(_BURST):
        try:
            moved = os.splice(source, sink, _CHUNK, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            if not moved:  # there was something to read, so it is the sink that is full
                await loop.writable(sink)
            return True
        if not moved:
            return False
    return True


async def _copy(loop: Loop, source: int, sink: int) -> bool:
    """Move what is there; False at the end."""
    await loop.readable(source)
    try:
        data = os.read(source, _CHUNK)
    except BlockingIOError:
        return True
    await loop.write(sink, data)
    return bool(data)
